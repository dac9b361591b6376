"""The tokenizer of a checkpoint, as `transformers` reads the files it comes with.

    tokenizer = read_tokenizer(pathlib.Path("checkpoints/medgemma-4b-it"))

A checkpoint says what its tokenizer is in up to five files, and they may disagree. `tokenizer.json` goes before
`tokenizer.model`. The class that `tokenizer_config.json` names decides what of it counts: Gemma's own builds all but the
vocabulary and its merges again, the general one takes the file as it stands. Tokens are added by all of the files.
Where that reading cannot be followed, the checkpoint is refused with the file and the key that stand in the way.

Does not read slow or remote tokenizers. Chat templates are `io.carried`'s business.
Source: transformers 5.24, `AutoTokenizer`, `TokenizersBackend.convert_to_native_format`, `GemmaTokenizer`.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.streaming import WeightsError
from medkor_jax.model.fields import Fields

_GEMMA, _GENERAL = "GemmaTokenizer", ("PreTrainedTokenizer", "TokenizersBackend")
_GEMMA_NAMES = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_STANDARD = (*_GEMMA_NAMES, "sep_token", "cls_token")
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(directory: pathlib.Path) -> Tokenizer:
    """Returns the tokenizer of a checkpoint; the same object while its files are the same: a large one takes seconds to read.

    Raises: FileNotFoundError if there is no tokenizer; WeightsError if its files are broken or cannot be followed.
    """
    named = [*directory.glob("*token*.json"), *directory.glob("tokenizer.model")]
    files = tuple((path.name, path.read_bytes()) for path in sorted(named) if path.is_file())
    return _read(directory, files)


@functools.lru_cache(maxsize=4)
def _read(directory: pathlib.Path, files: tuple[tuple[str, bytes], ...]) -> Tokenizer:
    """files: all that is read of the directory; they tell one tokenizer from another."""
    path = directory / "tokenizer.json"
    try:
        config = read_tokenizer_config(directory)
        if path.is_file():
            return Tokenizer.from_spec(_spec(directory, config))
        tokenizer = Tokenizer.load(directory)
        _check_sentencepiece(directory, config)
        return tokenizer
    except WeightsError:
        raise
    except ValueError as error:
        words = str(error)
        raise WeightsError(words if str(directory) in words else f"{path}: {words}") from error


def read_tokenizer_config(directory: pathlib.Path) -> Fields:
    """Returns the values of tokenizer_config.json; none if there is no such file."""
    path = directory / "tokenizer_config.json"
    return Fields(_read_object(path) if path.is_file() else {}, str(path))


def special_names(config: Fields, defaults: dict[str, str]) -> list[str]:
    """Returns the texts that the config gives a special part (bos_token, image_token, ...), in its order."""
    named = dict(defaults)
    for key, value in config.values.items():
        if key in _STANDARD or (
            key.endswith("_token") and isinstance(value, (str, dict))
        ):  # not add_bos_token and its like
            named[key] = value
    texts = [_token_text(config, key, value) for key, value in named.items() if value is not None]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        extra = config.values.get(key)
        extra = [] if extra is None else extra
        if not isinstance(extra, (list, dict)):
            config.refuse(key, "a list of tokens, or an object of named ones")
        texts += [
            _token_text(config, key, value)
            for value in (extra.values() if isinstance(extra, dict) else extra)
        ]
    return list(dict.fromkeys(texts))


def _spec(directory: pathlib.Path, config: Fields) -> dict[str, Any]:
    """Returns the content of a tokenizer.json that the general class reads as transformers reads these files."""
    spec = _read_object(directory / "tokenizer.json")
    whole = Fields(spec, str(directory / "tokenizer.json"))
    model = whole.part("model")
    vocab, listed = (
        model.part("vocab").values,
        whole.listed("added_tokens", dict, "tokens", default=[]),
    )
    model.listed("merges", (list, str), "pairs")
    in_file = _tokens(
        Fields({str(token.get("id")): token for token in listed}, f"{whole.where}: added_tokens")
    )
    stated = _stated_tokens(directory, config)
    name = config.text("tokenizer_class", default=_GEMMA, null=True).removesuffix("Fast")
    if name == _GEMMA:
        added = in_file if stated is None else stated
        names = special_names(config, _GEMMA_NAMES)
        unknown = _token_text(config, "unk_token", config.values.get("unk_token") or "<unk>")
        spec = {
            **spec,
            "normalizer": _REPLACE,
            "pre_tokenizer": None,
            "decoder": _DECODER,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": unknown,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": model.values["merges"],
            },
        }
    elif name in _GENERAL:
        held = {token["content"] for token in in_file}
        added = in_file + [token for token in stated or () if token["content"] not in held]
        names = special_names(config, {})
    else:
        config.refuse(
            "tokenizer_class", f"{_GEMMA} or PreTrainedTokenizerFast or TokenizersBackend"
        )
    held = {token["content"] for token in added}
    added += [
        {"content": text, **dict.fromkeys(_FLAGS, False), "special": True}
        for text in names
        if text not in held
    ]
    return {**spec, "added_tokens": _numbered(added, vocab)}


def _stated_tokens(directory: pathlib.Path, config: Fields) -> list[dict[str, Any]] | None:
    """Returns the tokens that other files than tokenizer.json add; None if they say nothing of any."""
    if (stated := config.part("added_tokens_decoder", default=None, null=True)) is not None:
        return _tokens(stated)
    path = directory / "added_tokens.json"
    if not path.is_file():
        return None
    named = set(special_names(config, _GEMMA_NAMES))
    tokens = Fields(_read_object(path), str(path))
    flags = lambda text: {
        **dict.fromkeys(_FLAGS, False),
        "normalized": text not in named,
        "special": text in named,
    }
    order = sorted(tokens.values, key=lambda text: tokens.integer(text, least=0))
    return [{"content": text, **flags(text)} for text in order]


def _tokens(stated: Fields) -> list[dict[str, Any]]:
    """Returns the tokens of an object {number: token}, in the order of the numbers."""
    found = {}
    for number in stated.values:
        if not number.isdecimal():
            raise ValueError(
                f"{stated.where}: a token has the number {number!r}; expected a whole number"
            )
        token = stated.part(number)
        found[int(number)] = {
            "content": token.text("content"),
            **{flag: token.boolean(flag, default=False) for flag in _FLAGS},
        }
    return [found[number] for number in sorted(found)]


def _numbered(added: Iterable[dict[str, Any]], vocab: dict[str, int]) -> list[dict[str, Any]]:
    """Returns added tokens with the numbers that they get: that of the vocabulary, or else the next one."""
    ids: dict[str, int] = {}
    for token in added:
        following = max(len(vocab), 1 + max(ids.values(), default=-1))
        ids.setdefault(token["content"], vocab.get(token["content"], following))
    tokens = {token["content"]: {"id": ids[token["content"]], **token} for token in added}
    return sorted(tokens.values(), key=lambda token: token["id"])


def _check_sentencepiece(directory: pathlib.Path, config: Fields) -> None:
    """Raises: WeightsError where transformers finds in a text what sentencepiece alone does not.

    Without a tokenizer.json, transformers makes one of tokenizer.model and the tokens that the other files add.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    path = directory / "tokenizer.model"
    pieces = ModelProto.FromString(path.read_bytes()).pieces
    whole = {piece.piece for piece in pieces if piece.type == ModelProto.SentencePiece.USER_DEFINED}
    if runs := sorted(piece for piece in whole if len(piece) > 1 and not piece.strip(" ")):
        raise WeightsError(
            f"{path} holds {len(runs)} runs of plain spaces, such as {runs[0]!r}, where Gemma's has U+2581: transformers reads "
            "spaces otherwise with it than sentencepiece does. Save the tokenizer with transformers (tokenizer.json)"
        )
    added = [
        token["content"]
        for token in _stated_tokens(directory, config) or ()
        if not token["special"]
    ]
    if beside := sorted(set(added) - whole):
        raise WeightsError(
            f"{directory} adds tokens that its tokenizer.model does not find whole: {', '.join(map(repr, beside[:8]))}. "
            "Save the tokenizer with transformers, which writes a tokenizer.json that holds them"
        )


def _token_text(config: Fields, key: str, value: Any) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return (
        text
        if isinstance(text, str)
        else config.refuse(key, "a token: a text, or an object with its content")
    )


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}; expected an object")
    return value
