"""Text to token ids and back, over a sentencepiece model.

    tokenizer = Tokenizer.load("runs/a/bases/phase0-1234")    # what `save` wrote; for checkpoints `io.tokenizer_files`
    tokenizer.decode(tokenizer.encode("정답：B"))

Ids equal those of the reference fast tokenizer, with one deliberate difference: control tokens are
never read out of text. The characters "<start_of_turn>" in an exam question are ordinary text, and
only code can place the token. Newline and tab runs and markup tags, which the vocabulary marks as
whole pieces, are still found in text as the reference finds them.

What a file carries along beside its vocabulary is left out when it is read: the truncation and padding of somebody's last
call, what is put in front of or behind a text, dropout, scores that the reference does not merge by.

Does not add bos or eos, pad, truncate or apply chat templates.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medkor_jax.data.language import LanguageAutomaton, has_hangul, language_automaton

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

# Some files mark these as text ("user defined") and some as control; here they are always control.
_CONTROL = re.compile(
    r"<(pad|eos|bos|unk|mask|unused\d+|image_soft_token|start_of_turn|end_of_turn|start_of_image|end_of_image)>"
    r"|\[multimodal\]"
)
# Some fine-tunes mark these as "special"; in Gemma's vocabulary they are text.
_TEXT = re.compile(
    r"\s+|\u2581+|</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|a|html|body|img"
    r"|span|bbox|ul|li|div|iframe|footer)>"
)
_NEVER_WRITTEN = re.compile(r"<(pad|bos|unk|mask|image_soft_token|start_of_image|end_of_image)>|\[multimodal\]")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_NORMAL, _UNKNOWN, _CONTROL_TYPE, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # sentencepiece's own numbers


class _Engine(Protocol):
    """What a backing library must give; `pieces` is the vocabulary's text in id order."""

    file_name: str
    serialized: bytes
    pieces: list[str]

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...
    def decode(self, ids: list[int]) -> str: ...


class Tokenizer:
    """One vocabulary. V is `vocab_size`; a checkpoint's embedding may have more rows, which no text reaches."""

    def __init__(self, engine: _Engine, n_pieces: int | None = None) -> None:
        """n_pieces: how many of the engine's pieces there are rows for; no text reaches the others."""
        self._engine = engine
        pieces = engine.pieces[:n_pieces]
        self.vocab_size = len(pieces)
        ids = {pieces[i]: i for i in range(len(pieces) - 1, -1, -1) if pieces[i].startswith("<")}
        missing = [name for name in ("<bos>", "<eos>", "<pad>") if name not in ids]
        if missing:
            raise ValueError(f"the vocabulary of {len(pieces)} pieces has no {', '.join(missing)}; is it Gemma's?")
        self.bos_id, self.eos_id, self.pad_id = ids["<bos>"], ids["<eos>"], ids["<pad>"]
        self.end_of_turn_id = ids.get("<end_of_turn>")
        self.control_ids = {piece: i for piece, i in ids.items() if _CONTROL.fullmatch(piece)}
        self.is_hangul_piece = np.fromiter(map(has_hangul, pieces), bool, len(pieces))
        self.byte_value = np.full(len(pieces), -1, np.int16)
        for piece, i in ids.items():
            if match := _BYTE_PIECE.fullmatch(piece):
                self.byte_value[i] = int(match[1], 16)

    @classmethod
    def from_vocabulary(
        cls, pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, unk_id: int
    ) -> Tokenizer:
        """Returns the tokenizer of a byte-pair vocabulary with byte fallback, as GGUF metadata lists it.

        types: sentencepiece's numbers (1 normal, 2 unknown, 3 control, 4 user defined, 6 byte).

        Raises: ValueError if the three lists differ in length, or are no vocabulary.
        """
        if not len(pieces) == len(scores) == len(types):
            raise ValueError(f"{len(pieces)} pieces, {len(scores)} scores, {len(types)} types; they must be as many")
        try:
            return cls(_SentencePiece(_model_proto(pieces, scores, types, unk_id)))
        except RuntimeError as error:
            raise ValueError(f"the vocabulary of {len(pieces)} pieces is no sentencepiece model: {error}") from error

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Tokenizer:
        """Returns the tokenizer of a `tokenizer.json`, parsed. Raises: ValueError if it is none, or not of byte pairs."""
        try:
            return cls(_FastTokenizer(spec))
        except Exception as error:  # the library has exceptions of its own
            raise ValueError(f"not a readable tokenizer: {error}") from error

    @classmethod
    def parse_sentencepiece(cls, raw: bytes) -> Tokenizer:
        """Returns the tokenizer of a `tokenizer.model`. Raises: ValueError if it is none."""
        try:
            return cls(_SentencePiece.parse(raw))
        except Exception as error:  # the libraries have exceptions of their own
            raise ValueError(f"not a readable tokenizer: {error}") from error

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> Tokenizer:
        """Returns the tokenizer of a directory; `tokenizer.json` is preferred to `tokenizer.model`, as in transformers.

        Raises: FileNotFoundError if it has neither; ValueError if the file cannot be read.
        """
        directory = pathlib.Path(directory)
        for engine in (_FastTokenizer, _SentencePiece):
            path = directory / engine.file_name
            if path.is_file():
                try:
                    return cls(engine.parse(path.read_bytes()))
                except Exception as error:  # each library has its own exceptions for a broken file
                    raise ValueError(f"{path} is not a readable tokenizer: {error}") from error
        raise FileNotFoundError(
            f"{directory} has neither tokenizer.model nor tokenizer.json; copy one from the base model"
        )

    def within(self, n_rows: int) -> Tokenizer:
        """Returns this tokenizer for an embedding of `n_rows` rows; `vocab_size` is then no larger.

        Raises: ValueError, naming them, if a text can reach pieces that have no row.
        """
        if self.vocab_size <= n_rows:
            return self
        beyond = {i: self._engine.pieces[i] for i in range(n_rows, self.vocab_size)}
        spelled = [text for piece in beyond.values() for text in (piece, piece.replace("\u2581", " "))]
        # A piece that any text gives is given by its own characters: the same merges, undisturbed.
        found = set().union(*self.encode_batch(spelled))
        always = (i for i, piece in beyond.items() if self.byte_value[i] >= 0 or piece == "<unk>")
        if reached := sorted(found & set(beyond) | set(always)):
            more = f" and {len(reached) - 8} more" if len(reached) > 8 else ""
            named = ", ".join(f"{i} {beyond[i]!r}" for i in reached[:8])
            raise ValueError(
                f"its tokenizer has {self.vocab_size} pieces, its embedding {n_rows} rows, and texts reach pieces that have "
                f"none: {named}{more}. Use the tokenizer these weights were trained with"
            )
        return Tokenizer(self._engine, n_rows)

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes the one file that `load` reads back to the same ids and digest."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / self._engine.file_name).write_bytes(self._engine.serialized)

    @property
    def pieces(self) -> list[str]:
        """The vocabulary's texts in the order of their ids, those without a row too."""
        return self._engine.pieces

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return self._engine.encode_batch(list(texts))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text; control tokens give none, and bytes that form no character give U+FFFD."""
        return self._engine.decode([int(i) for i in ids])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of what `save` writes, in hex."""
        return hashlib.sha256(self._engine.serialized).hexdigest()

    @functools.cached_property
    def is_writable(self) -> np.ndarray:
        """[V] bool: what a model may write. Not padding, <bos>, <unk>, <mask> and image tokens, which no text can mean; ends
        of turns and the unused pieces, which a checkpoint may have given a meaning, may be written."""
        return np.array([_NEVER_WRITTEN.fullmatch(piece) is None for piece in self._engine.pieces])

    @functools.cached_property
    def languages(self) -> LanguageAutomaton:
        return language_automaton(self)


class _SentencePiece:
    file_name = "tokenizer.model"

    def __init__(self, proto: ModelProto) -> None:
        import sentencepiece

        if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
            raise ValueError("it is no byte-pair vocabulary, as Gemma's is")
        for piece in proto.pieces:
            if piece.type == _USER_DEFINED:
                _mend_user_defined(piece)
        _mend_order(proto)
        _leave_text_alone(proto)
        self.pieces = [piece.piece for piece in proto.pieces]
        self.serialized = proto.SerializeToString(deterministic=True)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.serialized)

    @classmethod
    def parse(cls, raw: bytes) -> _SentencePiece:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        return cls(ModelProto.FromString(raw))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts) if texts else []

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


class _FastTokenizer:
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
    def parse(cls, raw: bytes) -> _FastTokenizer:
        return cls(json.loads(raw))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _is_control(content: str, is_special: bool) -> bool:
    """Whether a token is never read out of text: what is marked so, and what is marked so in Gemma's own files."""
    return _CONTROL.fullmatch(content) is not None or is_special and _TEXT.fullmatch(content) is None


def _mend_user_defined(piece: ModelProto.SentencePiece) -> None:
    """Gives control tokens their type, and runs of spaces the treatment that the reference gives them.

    The reference finds runs of spaces by merging, before anything else and short runs first; matched
    whole, as the file says, a run longer than the longest piece would be cut elsewhere.
    """
    if _CONTROL.fullmatch(piece.piece):
        piece.type = _CONTROL_TYPE
    elif not piece.piece.strip(" \u2581"):
        piece.type = _NORMAL
        piece.piece = piece.piece.replace(" ", "\u2581")  # GGUF writes these as plain spaces
        piece.score = 1000.0 - len(piece.piece)


def _mend_order(proto: ModelProto) -> None:
    """Gives pieces scores that fall with their number, where theirs do not: the reference merges in the order of the numbers."""
    normal = [piece for piece in proto.pieces if piece.type == _NORMAL and len(piece.piece) > 1]
    if any(after.score >= before.score for before, after in zip(normal, normal[1:])):
        for i, piece in enumerate(proto.pieces):
            if piece.type == _NORMAL:
                piece.score = float(-i)


def _leave_text_alone(proto: ModelProto) -> None:
    """Makes a model change nothing in the text but space to U+2581, as the reference does whatever the file says."""
    proto.ClearField("normalizer_spec")
    proto.ClearField("denormalizer_spec")
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True


def _model_proto(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], unk_id: int) -> ModelProto:
    """Source: sentencepiece's `sentencepiece_model.proto`; the normaliser is off as in Gemma's own model."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

    piece = ModelProto.SentencePiece
    proto = ModelProto(pieces=[piece(piece=p, score=s, type=t) for p, s, t in zip(pieces, scores, types, strict=True)])
    # GGUF lists <unk> as control; sentencepiece refuses a model without exactly one unknown piece.
    proto.pieces[unk_id].type = _UNKNOWN
    proto.trainer_spec.model_type = TrainerSpec.BPE
    proto.trainer_spec.vocab_size = len(pieces)
    proto.trainer_spec.byte_fallback = any(t == _BYTE for t in types)
    for name in ("unk", "bos", "eos", "pad"):
        piece_text = f"<{name}>"
        setattr(proto.trainer_spec, f"{name}_piece", piece_text)
        if piece_text in pieces:
            setattr(proto.trainer_spec, f"{name}_id", pieces.index(piece_text))
    _leave_text_alone(proto)
    return proto
