"""Text to token ids and back, over a sentencepiece model.

    tokenizer = Tokenizer.load("runs/a/bases/phase0-1234")    # what `save` wrote; for checkpoints `io.tokenizer_files`
    tokenizer.decode(tokenizer.encode("정답：B"))

Ids equal those of the reference fast tokenizer, with one deliberate difference: control tokens are
never read out of text. The characters "<start_of_turn>" in an exam question are ordinary text, and
only code can place the token. Newline and tab runs and markup tags, which the vocabulary marks as
whole pieces, are still found in text as the reference finds them. Two control tokens are shown in text that a model
wrote: those around its thought (`thinking`), as the reference shows them.

What a file carries along beside its vocabulary is left out when it is read, see `tokenizer_engines`.

Does not add bos or eos, pad, truncate or apply chat templates.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medkor_jax.data.contents import sha256_of
from medkor_jax.data.language import LanguageAutomaton, has_hangul, language_automaton
from medkor_jax.data.new_tokens import Extended, NewTokens
from medkor_jax.data.tokenizer_engines import (
    CONTROL_PIECE,
    Engine,
    FastTokenizer,
    SentencePiece,
    model_proto,
)

_NEVER_WRITTEN = re.compile(
    r"<(pad|bos|unk|mask|image_soft_token|start_of_image|end_of_image)>|\[multimodal\]"
)
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
THOUGHT_OPENS, THOUGHT_CLOSES = "<unused94>", "<unused95>"  # around what MedGemma thinks
_MARK = re.compile(f"({THOUGHT_OPENS}|{THOUGHT_CLOSES})")


class Tokenizer:
    """One vocabulary. V is `vocab_size`; a checkpoint's embedding may have more rows, which no text reaches."""

    def __init__(self, engine: Engine, n_pieces: int | None = None) -> None:
        """n_pieces: how many of the engine's pieces there are rows for; no text reaches the others."""
        self._engine = engine
        pieces = engine.pieces[:n_pieces]
        self.vocab_size = len(pieces)
        ids = {pieces[i]: i for i in range(len(pieces) - 1, -1, -1) if pieces[i].startswith("<")}
        missing = [name for name in ("<bos>", "<eos>", "<pad>") if name not in ids]
        if missing:
            raise ValueError(
                f"the vocabulary of {len(pieces)} pieces has no {', '.join(missing)}; is it Gemma's?"
            )
        self.bos_id, self.eos_id, self.pad_id = ids["<bos>"], ids["<eos>"], ids["<pad>"]
        self.end_of_turn_id = ids.get("<end_of_turn>")
        self.control_ids = {piece: i for piece, i in ids.items() if CONTROL_PIECE.fullmatch(piece)}
        marks = (THOUGHT_OPENS, THOUGHT_CLOSES)
        self._marks = {ids[mark]: mark for mark in marks if mark in self.control_ids}
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
            raise ValueError(
                f"{len(pieces)} pieces, {len(scores)} scores, {len(types)} types; they must be as many"
            )
        try:
            return cls(SentencePiece(model_proto(pieces, scores, types, unk_id)))
        except RuntimeError as error:
            raise ValueError(
                f"the vocabulary of {len(pieces)} pieces is no sentencepiece model: {error}"
            ) from error

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Tokenizer:
        """Returns the tokenizer of a `tokenizer.json`, parsed. Raises: ValueError if it is none, or not of byte pairs."""
        try:
            return cls(FastTokenizer(spec))
        except Exception as error:  # the library has exceptions of its own
            raise ValueError(f"not a readable tokenizer: {error}") from error

    @classmethod
    def parse_sentencepiece(cls, raw: bytes) -> Tokenizer:
        """Returns the tokenizer of a `tokenizer.model`. Raises: ValueError if it is none."""
        try:
            return cls(SentencePiece.parse(raw))
        except Exception as error:  # the libraries have exceptions of their own
            raise ValueError(f"not a readable tokenizer: {error}") from error

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> Tokenizer:
        """Returns the tokenizer of a directory; `tokenizer.json` is preferred to `tokenizer.model`, as in transformers.

        Raises: FileNotFoundError if it has neither; ValueError if the file cannot be read.
        """
        directory = pathlib.Path(directory)
        for engine in (FastTokenizer, SentencePiece):
            path = directory / engine.file_name
            if path.is_file():
                try:
                    return _of_bytes(engine, path.read_bytes())
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
        spelled = [
            text for piece in beyond.values() for text in (piece, piece.replace("\u2581", " "))
        ]
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

    def extended(self, new: NewTokens) -> Tokenizer:
        """Returns this vocabulary with new tokens behind the embedding's last row. Raises: ValueError if they are of another."""
        if new.base != self.digest or self.vocab_size > new.first_id:
            raise ValueError(
                f"new tokens were learnt beside a tokenizer with digest {new.base[:12]} and begin at id {new.first_id}; this "
                f"one has digest {self.digest[:12]} and {self.vocab_size} pieces"
            )
        return Tokenizer(Extended(self._engine, new))

    @property
    def new_tokens(self) -> NewTokens | None:
        """What `extended` added, None of a base's own tokenizer."""
        return self._engine.new if isinstance(self._engine, Extended) else None

    @property
    def without_new(self) -> Tokenizer:
        """The base's own tokenizer."""
        if not isinstance(self._engine, Extended):
            return self
        return Tokenizer(self._engine.base, self._engine.new.first_id)

    @functools.cached_property
    def n_replaced(self) -> np.ndarray:
        """[V] float32: of how many of the base's own tokens each stands in the place."""
        n = np.ones(self.vocab_size, np.float32)
        if new := self.new_tokens:
            n[new.first_id :] = [len(word) for word in new.spelt]
        return n

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes the one file that `load` reads back to the same ids and digest.

        Raises: ValueError where there are new tokens, which have a file of their own.
        """
        if self.new_tokens:
            raise ValueError("a tokenizer with new tokens is not saved whole: save the base's own")
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
        """Returns the text; control tokens give none, but for the marks of a thought; nor do rows of an embedding beyond the
        vocabulary, which a model may write all the same; bytes that form no character give U+FFFD."""
        parts: list[str] = []
        between: list[int] = []
        for i in (int(i) for i in ids if i < self.vocab_size):
            if i in self._marks:
                parts += [self._engine.decode(between), self._marks[i]]
                between = []
            else:
                between.append(i)
        return "".join([*parts, self._engine.decode(between)])

    def encode_marked(self, text: str) -> list[int]:
        """Returns ids of a text that code wrote, in which the marks of a thought are meant as such; never for data.

        Raises: ValueError if the vocabulary does not have them.
        """
        found: list[int] = []
        for part in _MARK.split(text):
            if _MARK.fullmatch(part) and part not in self.control_ids:
                raise ValueError(
                    f"the vocabulary has no piece {part!r} to think with; use other reasoning tags"
                )
            found += [self.control_ids[part]] if _MARK.fullmatch(part) else self.encode(part)
        return found

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends a text that a model writes: <eos>, and the end of its turn where the vocabulary has one."""
        return tuple(token for token in (self.eos_id, self.end_of_turn_id) if token is not None)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of what `save` writes, in hex."""
        return sha256_of([self._engine.serialized])

    @functools.cached_property
    def is_writable(self) -> np.ndarray:
        """[V] bool: what a model may write. Not padding, <bos>, <unk>, <mask> and image tokens, which no text can mean; ends
        of turns and the unused pieces, which a checkpoint may have given a meaning, may be written; nor rows that have no piece."""
        pieces = self._engine.pieces[: self.vocab_size]
        return np.array([piece != "" and not _NEVER_WRITTEN.fullmatch(piece) for piece in pieces])

    @functools.cached_property
    def languages(self) -> LanguageAutomaton:
        return language_automaton(self)


@functools.lru_cache(maxsize=4)
def _of_bytes(engine: type[FastTokenizer] | type[SentencePiece], raw: bytes) -> Tokenizer:
    """Returns the tokenizer of a file; the same object for the same bytes: 262,144 pieces take seconds to read."""
    return Tokenizer(engine.parse(raw))
