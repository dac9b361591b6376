"""The two libraries that make ids of text: sentencepiece, and the reference's own `tokenizers`, both mended to agree.

    SentencePiece.parse(raw).encode_batch(["정답：B"])            # of a tokenizer.model
    FastTokenizer(json.loads(raw)).encode_batch(["정답：B"])      # of a tokenizer.json

What a file carries along beside its vocabulary is left out when it is read: the truncation and padding of somebody's last
call, what is put in front of or behind a text, dropout, scores that the reference does not merge by. What ids mean to a
model is `tokenizer`'s.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

# Some files mark these as text ("user defined") and some as control; here they are always control.
CONTROL_PIECE = re.compile(
    r"<(pad|eos|bos|unk|mask|unused\d+|image_soft_token|start_of_turn|end_of_turn|start_of_image|end_of_image)>"
    r"|\[multimodal\]"
)
# Some fine-tunes mark these as "special"; in Gemma's vocabulary they are text.
_TEXT = re.compile(
    r"\s+|\u2581+|</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|a|html|body|img"
    r"|span|bbox|ul|li|div|iframe|footer)>"
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # kinds of pieces: sentencepiece's own numbers


class Engine(Protocol):
    """What a backing library must give; `pieces` is the vocabulary's text in id order."""

    file_name: str
    serialized: bytes
    pieces: list[str]

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...
    def decode(self, ids: list[int]) -> str: ...


class SentencePiece:
    file_name = "tokenizer.model"

    def __init__(self, proto: ModelProto) -> None:
        import sentencepiece

        if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
            raise ValueError("it is no byte-pair vocabulary, as Gemma's is")
        for piece in proto.pieces:
            if piece.type == USER_DEFINED:
                _mend_user_defined(piece)
        _mend_order(proto)
        _leave_text_alone(proto)
        self.pieces = [piece.piece for piece in proto.pieces]
        self.serialized = proto.SerializeToString(deterministic=True)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.serialized)

    @classmethod
    def parse(cls, raw: bytes) -> SentencePiece:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        return cls(ModelProto.FromString(raw))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts) if texts else []

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


class FastTokenizer:
    file_name = "tokenizer.json"

    def __init__(self, spec: dict[str, Any]) -> None:
        import tokenizers

        if spec["model"].get("type", "BPE") != "BPE":
            raise ValueError(f"it is of type {spec['model']['type']!r}, not of byte pairs, as Gemma's is")
        spec = {**spec, "truncation": None, "padding": None, "post_processor": None, "model": {**spec["model"], "dropout": None}}
        self.serialized = json.dumps(spec, ensure_ascii=False).encode("utf-8", "surrogatepass")
        added = [{**token, "special": _is_control(token["content"], token["special"])} for token in spec["added_tokens"]]
        control = {token["content"] for token in added if token["special"]}
        merges = [pair for pair in spec["model"]["merges"] if "".join(pair.split(" ") if isinstance(pair, str) else pair) not in control]
        engine = {**spec, "added_tokens": added, "model": {**spec["model"], "merges": merges}}
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(engine))
        self._tokenizer.encode_special_tokens = True  # reads "special" tokens in text as plain text
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.pieces = [""] * (max(ids.values()) + 1)
        for piece, i in ids.items():
            self.pieces[i] = piece

    @classmethod
    def parse(cls, raw: bytes) -> FastTokenizer:
        return cls(json.loads(raw))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _is_control(content: str, is_special: bool) -> bool:
    """Whether a token is never read out of text: what is marked so, and what is marked so in Gemma's own files."""
    return CONTROL_PIECE.fullmatch(content) is not None or is_special and _TEXT.fullmatch(content) is None


def _mend_user_defined(piece: ModelProto.SentencePiece) -> None:
    """Gives control tokens their type, and runs of spaces the treatment that the reference gives them.

    The reference finds runs of spaces by merging, before anything else and short runs first; matched
    whole, as the file says, a run longer than the longest piece would be cut elsewhere.
    """
    if CONTROL_PIECE.fullmatch(piece.piece):
        piece.type = CONTROL
    elif not piece.piece.strip(" \u2581"):
        piece.type = NORMAL
        piece.piece = piece.piece.replace(" ", "\u2581")  # GGUF writes these as plain spaces
        piece.score = 1000.0 - len(piece.piece)


def _mend_order(proto: ModelProto) -> None:
    """Gives pieces scores that fall with their number, where theirs do not: the reference merges in the order of the numbers."""
    normal = [piece for piece in proto.pieces if piece.type == NORMAL and len(piece.piece) > 1]
    if any(after.score >= before.score for before, after in itertools.pairwise(normal)):
        for i, piece in enumerate(proto.pieces):
            if piece.type == NORMAL:
                piece.score = float(-i)


def _leave_text_alone(proto: ModelProto) -> None:
    """Makes a model change nothing in the text but space to U+2581, as the reference does whatever the file says."""
    proto.ClearField("normalizer_spec")
    proto.ClearField("denormalizer_spec")
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True


def model_proto(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], unk_id: int) -> ModelProto:
    """Source: sentencepiece's `sentencepiece_model.proto`; the normaliser is off as in Gemma's own model."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

    piece = ModelProto.SentencePiece
    proto = ModelProto(pieces=[piece(piece=p, score=s, type=t) for p, s, t in zip(pieces, scores, types, strict=True)])
    # GGUF lists <unk> as control; sentencepiece refuses a model without exactly one unknown piece.
    proto.pieces[unk_id].type = UNKNOWN
    proto.trainer_spec.model_type = TrainerSpec.BPE
    proto.trainer_spec.vocab_size = len(pieces)
    proto.trainer_spec.byte_fallback = any(t == BYTE for t in types)
    for name in ("unk", "bos", "eos", "pad"):
        piece_text = f"<{name}>"
        setattr(proto.trainer_spec, f"{name}_piece", piece_text)
        if piece_text in pieces:
            setattr(proto.trainer_spec, f"{name}_id", pieces.index(piece_text))
    _leave_text_alone(proto)
    return proto
