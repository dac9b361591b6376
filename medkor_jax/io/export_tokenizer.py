"""Writes our tokenizer so that `transformers.AutoTokenizer` gives the same ids, <bos> in front.

    write_tokenizer(tokenizer, directory, max_positions=8192)     # tokenizer.model, tokenizer.json, tokenizer_config.json

A sentencepiece byte-pair vocabulary has scores where the fast tokenizer has an ordered list of merges: a piece
merges from every pair of pieces that spells it, in the order of the scores. One difference stays, which is the
convention over there: control tokens written out in a text ("<end_of_turn>") are read as the tokens.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.new_tokens import NewTokens
from medkor_jax.data.tokenizer import THOUGHT_CLOSES, THOUGHT_OPENS, Tokenizer
from medkor_jax.data.tokenizer_engines import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from medkor_jax.io.files import write_json

_SPACE = "\u2581"
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_MODEL = "tokenizer.model"
_NO_MODEL = "no tokenizer.model: sentencepiece cannot say {}; llama.cpp converts only from it"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
PROBES = (
    "The patient was given aspirin.",
    "환자는 아스피린을 복용하였다. 정답：B",
    "항문열창(anal fissure)의 치료:  37.5도\n\nA. 수술\n",
    "",
    " ",
    "  a",
    "a   b    c",
    " " * 40 + "x",
    "\n",
    "\n \n\n\t\td\t",
    "\r\n",
    "\n" * 40,
    "뷁 쮋",
    "\u1100\u1161",
    "ㅋ" * 30,
    "\uffa1",
    "<b>x</b><table>",
    "<R> reasoning <R/> C",
    "mg/dL±3 37.5℃ ≥2×10⁹/L",
    "=" * 77,
    "1234567890.05%",
    "🏳️‍🌈👨‍👩‍👧",
    "𠮷",
    "\x00\x07",
    "\ufffd",
    "\u200b\u3000\xa0",
    "\u2581",
    "a\u2581b",
)
"""Texts that tokenizers tell apart: both languages, spaces, newlines, tags, rare syllables, signs, bytes."""


def write_tokenizer(
    tokenizer: Tokenizer,
    directory: pathlib.Path,
    *,
    max_positions: int,
    names: dict[str, Any] | None = None,
    sentencepiece: bytes = b"",
) -> list[str]:
    """Writes tokenizer.json, its config and, where it can be made, tokenizer.model; returns notes.
    names: more to say in tokenizer_config.json. sentencepiece: the base's own tokenizer.model, if it has one.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    base, new, notes = tokenizer.without_new, tokenizer.new_tokens, list[str]()
    base.save(directory)
    called = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    if (directory / _MODEL).is_file():
        pieces = ModelProto.FromString((directory / _MODEL).read_bytes()).pieces
        spec = fast_spec(
            *zip(*((p.piece, p.score, p.type) for p in pieces), strict=True),
            bos_id=tokenizer.bos_id,
        )
        called["unk_token"] = next(p.piece for p in pieces if p.type == UNKNOWN)
    else:
        spec = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        called["unk_token"] = spec["model"].get("unk_token") or "<unk>"
        spec["post_processor"] = _bos_in_front("<bos>", tokenizer.bos_id)
        if new is None:
            notes += _write_model(directory, tokenizer, sentencepiece, spec)
    if new is not None:
        (directory / _MODEL).unlink(missing_ok=True)
        spec["model"] = _with_new(spec["model"], tokenizer.pieces, new)
        notes.append(_NO_MODEL.format("that new tokens are merged last"))
    (directory / "tokenizer.json").write_text(
        json.dumps(spec, ensure_ascii=False), encoding="utf-8"
    )
    # Not GemmaTokenizer: that class adds a <mask> of its own and rebuilds what tokenizer.json says.
    write_json(
        directory / "tokenizer_config.json",
        {
            **called,
            **(names or {}),
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": True,
            "add_eos_token": False,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_positions,
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )
    return notes


def _write_model(
    directory: pathlib.Path, tokenizer: Tokenizer, sentencepiece: bytes, spec: dict[str, Any]
) -> list[str]:
    """Writes a tokenizer.model that says what tokenizer.json says; returns a note if there is none."""
    offered = (sentencepiece, sentencepiece_of(spec))
    made = next((raw for raw in offered if raw and _says_the_same(tokenizer, raw)), None)
    if made is None:
        return [_NO_MODEL.format("what tokenizer.json says here")]
    (directory / _MODEL).write_bytes(made)
    return []


def _with_new(model: dict[str, Any], pieces: Sequence[str], new: NewTokens) -> dict[str, Any]:
    """Returns the model of a tokenizer.json with new tokens: their merges behind all others, so that these come first."""
    ids = dict(zip(new.pieces, range(new.first_id, new.first_id + len(new.pieces))))
    is_text = any(isinstance(pair, str) for pair in model["merges"])  # as older files write a pair
    pairs = [[pieces[left], pieces[right]] for left, right, _ in new.merges]
    merges = [*model["merges"], *(map(" ".join, pairs) if is_text else pairs)]
    return {**model, "vocab": {**model["vocab"], **ids}, "merges": merges}


def sentencepiece_of(spec: dict[str, Any]) -> bytes:
    """Returns a tokenizer.model with the vocabulary and the merges of a tokenizer.json; b"" if it has no place for them.

    It has none for merges in an order that does not go by the piece that comes of them, nor for another normalizer.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = spec["model"]
    if spec.get("normalizer") != _NORMALIZER or not model.get("byte_fallback"):
        return b""
    added = {token["id"]: token for token in spec["added_tokens"]}
    ids = {**model["vocab"], **{token["content"]: i for i, token in added.items()}}
    pieces = sorted(ids, key=ids.get)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))) or model.get(
        "unk_token"
    ) not in ids:
        return b""
    kinds = [_kind(piece, added.get(i), model["unk_token"]) for i, piece in enumerate(pieces)]
    merged = {
        piece for piece, kind in zip(pieces, kinds) if kind == NORMAL
    }  # the others are found whole, before any merge
    merges = [
        merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model["merges"]
    ]
    merges = [merge for merge in merges if "".join(merge) in merged]
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    scores = [float(-rank.get(piece, len(rank))) for piece in pieces]
    order = [
        rank[left + right] for left, right in merges
    ]  # which of several pairs that spell a piece is first, no score can say
    if order != sorted(order) or set(map(tuple, merges)) != set(
        map(tuple, _merges(pieces, scores, kinds, ids))
    ):
        return b""
    proto = ModelProto(
        pieces=[
            ModelProto.SentencePiece(piece=p, score=s, type=k)
            for p, s, k in zip(pieces, scores, kinds)
        ]
    )
    trainer = proto.trainer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, len(pieces), True
    trainer.unk_id, trainer.unk_piece = ids[model["unk_token"]], model["unk_token"]
    for name in ("bos", "eos", "pad"):
        setattr(trainer, f"{name}_piece", f"<{name}>")
        setattr(trainer, f"{name}_id", ids.get(f"<{name}>", -1))
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString(deterministic=True)


def _kind(piece: str, added: dict[str, Any] | None, unknown: str) -> int:
    if piece == unknown:
        return UNKNOWN
    if _BYTE_PIECE.fullmatch(piece):
        return BYTE
    return (
        NORMAL
        if added is None or not piece.strip(_SPACE)
        else CONTROL
        if added["special"]
        else USER_DEFINED
    )


def _says_the_same(tokenizer: Tokenizer, raw: bytes) -> bool:
    """Whether a tokenizer.model gives the ids that `tokenizer` gives, for texts of many kinds and for every piece as a text."""
    try:
        other = Tokenizer.parse_sentencepiece(raw)
    except ValueError:
        return False
    n = min(other.vocab_size, tokenizer.vocab_size)
    texts = [*PROBES, *(piece.replace(_SPACE, " ") for piece in tokenizer.pieces)]
    return other.pieces[:n] == tokenizer.pieces[:n] and other.encode_batch(
        texts
    ) == tokenizer.encode_batch(texts)


def _bos_in_front(piece: str, bos_id: int) -> dict[str, Any]:
    bos = {"id": piece, "type_id": 0}
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": bos}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": bos},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": bos | {"type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {piece: {"id": piece, "ids": [bos_id], "tokens": [piece]}},
    }


def fast_spec(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, bos_id: int
) -> dict[str, Any]:
    """Returns the content of a tokenizer.json for a sentencepiece byte-pair vocabulary with byte fallback.

    The marks of a thought are not called special, as in the published files, so that what was thought can be told from what
    was said in the text that `transformers` decodes.

    Source: the format of `tokenizers` 0.2x, as published with Gemma 3.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED and piece not in (THOUGHT_OPENS, THOUGHT_CLOSES),
            }
            for i, (piece, kind) in enumerate(zip(pieces, types, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ],
        "normalizer": _NORMALIZER,
        "pre_tokenizer": None,
        "post_processor": _bos_in_front(pieces[bos_id], bos_id),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[types.index(UNKNOWN)],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": _merges(pieces, scores, types, ids),
        },
    }


def _merges(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], ids: dict[str, int]
) -> list[list[str]]:
    """Returns [left, right] pairs, the one to merge first at the head.

    Only normal pieces are merged to; the others are found whole or, like bytes, put in where nothing fits.
    """
    ranked = []
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        if kind == NORMAL:
            cuts = [(k, piece[:k], piece[k:]) for k in range(1, len(piece))]
            ranked += [
                (-score, k, left, right) for k, left, right in cuts if left in ids and right in ids
            ]
    ranked.sort(key=lambda item: item[:2])
    return [[left, right] for *_, left, right in ranked]
