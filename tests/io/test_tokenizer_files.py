"""A checkpoint's tokenizer files, agreeing or not: our ids are those of transformers, or the checkpoint is refused by name."""

import json
import pathlib

import pytest

from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.export_tokenizer import PROBES, write_tokenizer
from medkor_jax.io.streaming import WeightsError
from medkor_jax.io.tokenizer_files import read_tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    *PROBES, "환자는 <tool>열이 나요</tool> 다.", "the patient <tool> has fever", "aspirinaspirin 500", "정답：B\n\n정답：C", "\n\n\n", "ﬁne ①",
]  # fmt: skip
CONFIG, FILE, MODEL = "tokenizer_config.json", "tokenizer.json", "tokenizer.model"


@pytest.fixture
def checkpoint(tiny_base_dir, tmp_path) -> pathlib.Path:
    """A directory with all three tokenizer files, which agree, under Gemma's own class."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    write_tokenizer(Tokenizer.load(tiny_base_dir), directory, max_positions=512)
    (directory / "config.json").write_text('{"model_type": "gemma3_text"}')
    change(directory, CONFIG, lambda config: config.update(tokenizer_class="GemmaTokenizer"))
    return directory


def change(directory: pathlib.Path, name: str, edit) -> None:
    path = directory / name
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    edit(value)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def token(content, *, special=False, normalized=False):
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }


def save_with_state(directory):
    """What a script leaves behind that pads and cuts its last batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer(["a b c d e f"], truncation=True, max_length=4, padding="max_length")
    tokenizer.save_pretrained(directory)


def other_vocabulary(directory):
    pieces = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *"abcdefghij",
    ]
    Tokenizer.from_vocabulary(
        pieces, [0.0] * len(pieces), [3, 3, 3, 2, *[6] * 256, *[1] * 10], unk_id=3
    ).save(directory)


def reorder_merges(spec):
    spec["model"]["merges"].reverse()


def drop_added(directory, *names):
    change(
        directory,
        FILE,
        lambda spec: spec.update(
            added_tokens=[t for t in spec["added_tokens"] if t["content"] not in names]
        ),
    )


NFKC = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFKC"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ],
}
GENERAL = {"tokenizer_class": "PreTrainedTokenizerFast"}
DISAGREEMENTS = {
    "all three agree": lambda d: None,
    "no tokenizer_config": lambda d: (d / CONFIG).unlink(),
    "only tokenizer.json": lambda d: [(d / name).unlink() for name in (CONFIG, MODEL)],
    "only tokenizer.model": lambda d: [(d / name).unlink() for name in (CONFIG, FILE)],
    "tokenizer.model is another": other_vocabulary,
    "cut and padded": save_with_state,
    "cut and padded, without tokenizer.model": lambda d: (save_with_state(d), (d / MODEL).unlink()),
    "merges in another order": lambda d: change(d, FILE, reorder_merges),
    "a normalizer that Gemma's class leaves out": lambda d: change(
        d, FILE, lambda s: s.update(normalizer=NFKC)
    ),
    "a normalizer that the general class obeys": lambda d: (
        change(d, FILE, lambda s: s.update(normalizer=NFKC)),
        change(d, CONFIG, lambda c: c.update(GENERAL)),
    ),
    "fuse_unk": lambda d: change(
        d, FILE, lambda s: s["model"].update(fuse_unk=False, byte_fallback=False)
    ),
    "a token in the config alone": lambda d: change(
        d, CONFIG, lambda c: c.update(added_tokens_decoder={"1000": token("<tool>")})
    ),
    "a token in the config alone, general class": lambda d: change(
        d, CONFIG, lambda c: c.update(GENERAL, added_tokens_decoder={"1000": token("<tool>")})
    ),
    "a token in added_tokens.json": lambda d: change(
        d, "added_tokens.json", lambda c: c.update({"<tool>": 1000})
    ),
    "a token in tokenizer.json alone": lambda d: change(
        d, FILE, lambda s: s["added_tokens"].append({"id": 1000, **token("<tool>")})
    ),
    "a token that the config does not list": lambda d: (
        change(d, FILE, lambda s: s["added_tokens"].append({"id": 1000, **token("<tool>")})),
        change(
            d, CONFIG, lambda c: c.update(added_tokens_decoder={"1": token("<eos>", special=True)})
        ),
    ),
    "a word as a token": lambda d: change(
        d,
        CONFIG,
        lambda c: c.update(
            added_tokens_decoder={"1000": token("환자", normalized=True), "1001": token("</tool>")}
        ),
    ),
    "special names": lambda d: change(
        d,
        CONFIG,
        lambda c: c.update(
            image_token="<image_soft_token>", extra_special_tokens=["<think>", "<eos>"]
        ),
    ),
    "named special tokens": lambda d: change(
        d, CONFIG, lambda c: c.update(extra_special_tokens={"tool_token": "<toolbox>"})
    ),
    "an end behind each text": lambda d: change(
        d, CONFIG, lambda c: c.update(add_eos_token=True, model_max_length=7)
    ),
}


@pytest.mark.parametrize("how", DISAGREEMENTS)
def test_ids_are_those_of_transformers_whatever_the_files_say(checkpoint, how):
    DISAGREEMENTS[how](checkpoint)
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ours = read_tokenizer(checkpoint)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    named = {content: i for content, i in theirs.get_added_vocab().items() if content != "<mask>"}
    assert {content: ours.pieces.index(content) for content in named} == named


def test_control_tokens_stay_unread_whatever_the_files_add(checkpoint):
    change(
        checkpoint,
        CONFIG,
        lambda c: c.update(
            extra_special_tokens=["<think>"], added_tokens_decoder={"1000": token("<end_of_turn>")}
        ),
    )
    ours = read_tokenizer(checkpoint)
    for name in ("<think>", "<end_of_turn>", "<eos>"):
        assert (
            ours.pieces.index(name) not in ours.encode(f"a {name} b")
            and ours.decode(ours.encode(f"a {name} b")) == f"a {name} b"
        )


REFUSED = {
    "a class of another model": (lambda d: change(d, CONFIG, lambda c: c.update(tokenizer_class="LlamaTokenizerFast")), "tokenizer_class is .LlamaTokenizerFast.; expected GemmaTokenizer or"),
    "tokenizer.model and a token beside it": (
        lambda d: ((d / FILE).unlink(), change(d, CONFIG, lambda c: c.update(added_tokens_decoder={"1000": token("<tool>")}))),
        "adds tokens that its tokenizer.model does not find whole: '<tool>'",
    ),
    "not of byte pairs": (lambda d: change(d, FILE, lambda s: (s["model"].update(type="WordLevel"), change(d, CONFIG, lambda c: c.update(GENERAL)))), "type 'WordLevel'"),
    "half a file": (lambda d: (d / FILE).write_text('{"model": '), "tokenizer.json cannot be read"),
    "a list": (lambda d: (d / CONFIG).write_text("[]"), "tokenizer_config.json holds a list; expected an object"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(checkpoint, how):
    damage, expected = REFUSED[how]
    damage(checkpoint)
    with pytest.raises(WeightsError, match=expected) as caught:
        read_tokenizer(checkpoint)
    assert str(checkpoint) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [None, 3, -1, 0, 0.5, float("nan"), True, "x", [], [3], {"a": 1}], ids=repr
)
@pytest.mark.parametrize(
    ("file", "key"),
    [(CONFIG, "tokenizer_class"), (CONFIG, "added_tokens_decoder"), (CONFIG, "bos_token"), (CONFIG, "unk_token"), (CONFIG, "extra_special_tokens"),
     (FILE, "model"), (FILE, "added_tokens"), ("added_tokens.json", "<tool>")],
)  # fmt: skip
def test_every_value_read_is_checked(checkpoint, file, key, bad):
    change(checkpoint, file, lambda value: value.update({key: bad}))
    try:
        read_tokenizer(checkpoint)
    except WeightsError as error:
        assert (
            key in str(error)
            and file.removesuffix(".json") in str(error)
            and "\n" not in str(error)
        )
        return
    fine = {
        "tokenizer_class": [None], "added_tokens_decoder": [None], "bos_token": [None, "x"], "unk_token": [None, "x"],
        "extra_special_tokens": [None, []], "<tool>": [3, 0], "added_tokens": [[]],
    }  # fmt: skip
    assert any(
        bad is one or (bad == one and type(bad) is type(one)) for one in fine.get(key, [])
    ), (key, bad)


def test_a_tokenizer_is_read_once_while_its_files_are_the_same(tiny_base_dir, tmp_path):
    write_tokenizer(Tokenizer.load(tiny_base_dir), tmp_path, max_positions=64)
    first = read_tokenizer(tmp_path)
    assert read_tokenizer(tmp_path) is first
    assert Tokenizer.load(tiny_base_dir) is Tokenizer.load(tiny_base_dir)
    spec = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"truncation": None}))
    assert read_tokenizer(tmp_path) is not first
