"""A small real tokenizer, and files to read."""

import json

import pytest

from medkor_jax.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, so that lengths can be counted by hand. pad 0, eos 1, bos 2."""
    pieces = (
        ["<pad>", "<eos>", "<bos>", "<unk>"]
        + [f"<0x{value:02X}>" for value in range(256)]
        + ["A", "\u2581"]
    )
    return Tokenizer.from_vocabulary(
        pieces, [0.0] * len(pieces), [3, 3, 3, 2] + [6] * 256 + [1, 1], unk_id=3
    )


@pytest.fixture
def write_jsonl(tmp_path):
    def write(name: str, rows: list) -> str:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
        )
        return str(path)

    return write


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """What a test keeps of its sources lies apart from a user's, and another run of the tests does not find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDKOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
