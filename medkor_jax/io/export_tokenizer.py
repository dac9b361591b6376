"""Writes our tokenizer so that `transformers.AutoTokenizer` gives the same ids, <bos> in front.

    write_tokenizer(tokenizer, directory)     # tokenizer.model, tokenizer.json, tokenizer_config.json

A sentencepiece byte-pair vocabulary has scores where the fast tokenizer has an ordered list of merges: a piece
merges from every pair of pieces that spells it, in the order of the scores. One difference stays, which is the
convention over there: control tokens written out in a text ("<end_of_turn>") are read as the tokens.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.files import write_json

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # sentencepiece's own numbers
_SPACE = "\u2581"


def write_tokenizer(tokenizer: Tokenizer, directory: pathlib.Path, *, max_positions: int) -> None:
    """Writes what `tokenizer.save` writes and what the fast tokenizer of transformers needs beside it."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    tokenizer.save(directory)
    names = {name: f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    if (path := directory / "tokenizer.model").is_file():
        pieces = ModelProto.FromString(path.read_bytes()).pieces
        spec = fast_spec(*zip(*((p.piece, p.score, p.type) for p in pieces), strict=True), bos_id=tokenizer.bos_id)
        (directory / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
        names["unk"] = next(p.piece for p in pieces if p.type == _UNKNOWN)
    # Not GemmaTokenizer: that class adds a <mask> of its own and rebuilds what tokenizer.json says.
    write_json(directory / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **{f"{name}_token": text for name, text in names.items()},
        "add_bos_token": True, "add_eos_token": False, "padding_side": "left", "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions, "model_input_names": ["input_ids", "attention_mask"],
    })  # fmt: skip


def fast_spec(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, bos_id: int) -> dict[str, Any]:
    """Returns the content of a tokenizer.json for a sentencepiece byte-pair vocabulary with byte fallback.

    Source: the format of `tokenizers` 0.2x, as published with Gemma 3.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    bos = {"id": pieces[bos_id], "type_id": 0}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": kind != _USER_DEFINED}
            for i, (piece, kind) in enumerate(zip(pieces, types, strict=True))
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": bos}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": bos}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": bos | {"type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {pieces[bos_id]: {"id": pieces[bos_id], "ids": [bos_id], "tokens": [pieces[bos_id]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": pieces[types.index(_UNKNOWN)], "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": ids, "merges": _merges(pieces, scores, types, ids),
        },
    }  # fmt: skip


def _merges(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], ids: dict[str, int]) -> list[list[str]]:
    """Returns [left, right] pairs, the one to merge first at the head.

    Only normal pieces are merged to; the others are found whole or, like bytes, put in where nothing fits.
    """
    ranked = []
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        if kind == _NORMAL:
            cuts = [(k, piece[:k], piece[k:]) for k in range(1, len(piece))]
            ranked += [(-score, k, left, right) for k, left, right in cuts if left in ids and right in ids]
    ranked.sort(key=lambda item: item[:2])
    return [[left, right] for *_, left, right in ranked]
