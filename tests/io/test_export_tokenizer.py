"""A tokenizer.model beside every tokenizer.json that it can speak for, and none beside another."""

import json

import pytest

from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.export_tokenizer import PROBES, write_tokenizer


@pytest.fixture(scope="module")
def spec(tiny_base_dir, tmp_path_factory) -> dict:
    directory = tmp_path_factory.mktemp("fast")
    write_tokenizer(Tokenizer.load(tiny_base_dir), directory, max_positions=512)
    return json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))


def written(spec, directory, **options):
    """Returns the notes, and the tokenizer.model or None."""
    tokenizer = Tokenizer.from_spec(spec)
    notes = write_tokenizer(tokenizer, directory, max_positions=512, **options)
    path = directory / "tokenizer.model"
    if not path.is_file():
        return notes, None
    made = Tokenizer.parse_sentencepiece(path.read_bytes())
    assert made.encode_batch(PROBES) == tokenizer.encode_batch(PROBES)
    return notes, made


def test_it_is_made_from_a_tokenizer_json(spec, tiny_base_dir, tmp_path):
    notes, made = written(spec, tmp_path)
    assert notes == [] and made.pieces == Tokenizer.load(tiny_base_dir).pieces


def test_the_order_of_pairs_that_spell_one_piece_does_not_matter(spec, tmp_path):
    place = {}
    for left, right in spec["model"]["merges"]:
        place.setdefault(left + right, len(place))
    merges = sorted(spec["model"]["merges"], key=lambda pair: (place["".join(pair)], -len(pair[0])))
    assert merges != spec["model"]["merges"]
    notes, made = written({**spec, "model": {**spec["model"], "merges": merges}}, tmp_path)
    assert notes == [] and made is not None


def test_tokens_that_are_found_whole_stay_so(spec, tmp_path):
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    more = [
        {"id": 1000, "content": "\n\n", **token},
        {"id": 1001, "content": "<tool>", **token},
        {"id": 1002, "content": "<image_soft_token>", **token, "special": True},
    ]
    changed = {**spec, "added_tokens": [*spec["added_tokens"], *more]}
    notes, made = written(changed, tmp_path)
    assert (
        notes == []
        and made.encode("<tool>\n\n") == [1001, 1000]
        and 1002 not in made.encode("<image_soft_token>")
    )


@pytest.mark.parametrize("change", ["merges", "normalizer", "bytes", "a hole"])
def test_what_sentencepiece_cannot_say_is_noted(spec, tmp_path, change):
    spec = json.loads(json.dumps(spec))
    if change == "merges":
        spec["model"]["merges"] = spec["model"]["merges"][::2] + spec["model"]["merges"][1::2]
    elif change == "normalizer":
        spec["normalizer"] = {
            "type": "Sequence",
            "normalizers": [{"type": "NFKC"}, spec["normalizer"]],
        }
    elif change == "bytes":
        spec["model"]["byte_fallback"] = False
    else:
        spec["model"]["vocab"]["far away"] = 1005
    notes, made = written(spec, tmp_path)
    assert made is None and "no tokenizer.model" in notes[0]


def test_the_base_s_own_is_kept_where_it_says_the_same_and_made_anew_where_not(
    spec, tiny_base_dir, tmp_path
):
    own = (tiny_base_dir / "tokenizer.model").read_bytes()
    written(spec, tmp_path / "a", sentencepiece=own)
    assert (tmp_path / "a/tokenizer.model").read_bytes() == own
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), "a"]
    Tokenizer.from_vocabulary(pieces, [0.0] * 261, [3, 3, 3, 2, *[6] * 256, 1], unk_id=3).save(
        tmp_path / "other"
    )
    other = (tmp_path / "other/tokenizer.model").read_bytes()
    _, made = written(spec, tmp_path / "b", sentencepiece=other)
    assert made.vocab_size == 1000


def test_state_of_a_last_call_is_not_handed_on(spec, tmp_path):
    state = {
        "truncation": {
            "direction": "Right",
            "max_length": 5,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "post_processor": None,
    }
    written({**spec, **state}, tmp_path)
    said = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert (
        said["truncation"] is None
        and said["padding"] is None
        and said["post_processor"] == spec["post_processor"]
    )
