"""Packs tokenised documents into rows of fixed length, so that no document sees another.

    rows = PackedRows(batch_size=2, seq_len=8, loss_positions=8, bos_id=2, pad_id=0)
    rows.place(encode(example, style))         # how many of its tokens found room
    batch = rows.arrays(tokenizer, language_unit="token")

Each document begins with bos at position 0 and has a segment of its own. Text that may be cut fills a row
to its end and goes on elsewhere as a new segment, again after bos (Gemma is far off without it); each of
its tokens is still predicted exactly once. What may not be cut goes whole into the first row with room.
What it does not do: choose which document comes next (`batches`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medkor_jax.data.language import LANGUAGES, token_languages
from medkor_jax.data.rows import BadRow, Example
from medkor_jax.data.stored import StoredExamples
from medkor_jax.data.style import Plain, Style

if TYPE_CHECKING:
    from medkor_jax.data.tokenizer import Tokenizer

LANGUAGE_IDS = {name: row for row, name in enumerate(LANGUAGES)}
_MEASURED = 512  # examples of a source, from which the share of predicted tokens is taken
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One document as tokens, without bos. tokens: [n] int32; loss: [n] bool, whether the token is predicted."""

    id: str
    tokens: np.ndarray
    loss: np.ndarray
    language: int
    splittable: bool
    losses: str = ""  # which of the stage's: see `Source.loss`


def encode(example: Example, style: Style, losses: str = "") -> Encoded:
    """Returns the example's tokens in the form in which the model is taught; running text is the same in every form.

    losses: of its source."""
    if example.is_dialogue:
        ids, loss = style.dialogue(example.parts, marked=example.is_marked)
    else:
        ids, loss = Plain(style.tokenizer).dialogue(example.parts)
        if not example.eos:
            ids, loss = ids[:-1], loss[:-1]
    return Encoded(
        example.id,
        np.array(ids, np.int32),
        np.array(loss, bool),
        LANGUAGE_IDS[example.language],
        style.may_cut(example.splittable, example.is_dialogue),
        losses,
    )


def find_too_long(
    name: str,
    examples: Sequence[Example],
    style: Style,
    *,
    seq_len: int,
    loss_positions: int,
) -> dict[int, BadRow]:
    """Returns {index: why} for the examples that may not be cut and fit no row. name: of their source."""
    found: dict[int, BadRow] = {}
    asked: Sequence[int]
    room = min(seq_len, loss_positions)
    if isinstance(examples, StoredExamples):  # what their sizes tell needs no reading
        sizes = np.diff(examples.row_ends) + 1 + style.markup * examples.n_parts
        whole = ~examples.is_splittable | (
            examples.is_dialogue & (not style.may_cut(splittable=True, is_dialogue=True))
        )
        asked = np.flatnonzero(whole & (sizes > room)).tolist()
    else:
        asked = range(len(examples))
    for index in asked:
        example = examples[index]
        may_cut = style.may_cut(example.splittable, example.is_dialogue)
        if may_cut or _surely_fits(example, style, room):
            continue
        encoded = encode(example, style)
        length, losses = len(encoded.tokens) + 1, int(encoded.loss.sum())
        if length > seq_len:
            found[index] = BadRow(
                name,
                index + 1,
                f"{example.id} has {length} tokens and may not be cut, seq_len is {seq_len}",
            )
        elif losses > loss_positions:
            reason = (
                f"{example.id} has {losses} tokens with loss, loss_positions is {loss_positions}"
            )
            found[index] = BadRow(name, index + 1, reason)
    return found


def _surely_fits(example: Example, style: Style, room: int) -> bool:
    """Returns whether the example fits whatever its tokens are: no token is shorter than a byte; bos and the form add some."""
    added = 1 + style.markup * len(example.parts)
    return sum(len(text.encode()) for text, _ in example.parts) + added <= room


class PackedRows:
    """B rows of T tokens being filled, of which at most M a row may be predicted."""

    def __init__(
        self, *, batch_size: int, seq_len: int, loss_positions: int, bos_id: int, pad_id: int
    ):
        shape = (batch_size, seq_len)
        self._tokens = np.full(shape, pad_id, np.int32)
        self._positions = np.zeros(shape, np.int32)
        self._segments = np.zeros(shape, np.int32)
        self._documents = np.zeros(shape, np.int32)  # the document's language
        self._loss_positions = np.zeros((batch_size, loss_positions), np.int32)
        self._targets = np.zeros((batch_size, loss_positions), np.int32)
        self._weights = np.zeros((batch_size, loss_positions), np.float32)
        self._held = np.zeros((batch_size, loss_positions), np.float32)
        self._bos_id = bos_id
        self._used = [0] * batch_size
        self._used_loss = [0] * batch_size

    @property
    def tokens_placed(self) -> int:
        return sum(self._used)

    def is_full(self) -> bool:
        """Returns whether no row can take even bos and one token."""
        return all(self._room(row) < 1 for row in range(len(self._used)))

    def place(self, document: Encoded, start: int = 0) -> int:
        """Puts tokens from `start` on into the first row that can take them; returns how many, 0 if none can."""
        for row in range(len(self._used)):
            count = self._fitting(document, start, row)
            if count:
                self._write(document, start, count, row)
                return count
        return 0

    def arrays(self, tokenizer: Tokenizer, *, language_unit: str, apart: bool = False) -> Batch:
        """Returns the batch: tokens, positions, segment_ids, langs [B, T]; loss_positions, targets, loss_weights [B, M],
        and `held_weights` [B, M] if what is learnt and what is held to the reference are `apart`.

        language_unit: "token" takes each token's language from its text, "document" from its document.
        """
        if language_unit == "token":
            # One walk for all rows: bos and padding lie between documents, so none sees the bytes of another.
            langs = token_languages(self._tokens.reshape(-1), tokenizer).reshape(self._tokens.shape)
        else:
            langs = self._documents
        return {
            "tokens": self._tokens,
            "positions": self._positions,
            "segment_ids": self._segments,
            "langs": langs.astype(np.int32),
            "loss_positions": self._loss_positions,
            "targets": self._targets,
            "loss_weights": self._weights,
            **({"held_weights": self._held} if apart else {}),
        }

    def _room(self, row: int) -> int:
        """Returns how many tokens the row can take after a bos; 0 or less when it is full."""
        if self._used_loss[row] >= self._targets.shape[1]:
            return 0
        return self._tokens.shape[1] - self._used[row] - 1

    def _fitting(self, document: Encoded, start: int, row: int) -> int:
        """Returns how many tokens from `start` on fit the row: all or none if the document may not be cut."""
        rest = len(document.tokens) - start
        count = min(rest, self._room(row))
        if count <= 0:
            return 0
        loss_room = self._targets.shape[1] - self._used_loss[row]
        losses = np.cumsum(document.loss[start : start + count])
        if losses[-1] > loss_room:
            count = int(np.searchsorted(losses, loss_room, side="right"))
        return count if document.splittable or count == rest else 0

    def _write(self, document: Encoded, start: int, count: int, row: int) -> None:
        bos_at = self._used[row]
        here = slice(bos_at, bos_at + count + 1)
        self._tokens[row, bos_at] = self._bos_id
        self._tokens[row, bos_at + 1 : here.stop] = document.tokens[start : start + count]
        self._positions[row, here] = np.arange(count + 1)
        self._segments[row, here] = self._segments[row].max() + 1
        self._documents[row, here] = document.language
        lossy = np.flatnonzero(document.loss[start : start + count])
        spots = slice(self._used_loss[row], self._used_loss[row] + len(lossy))
        self._loss_positions[row, spots] = (
            bos_at + lossy
        )  # token i stands at bos_at + 1 + i: predicted one before
        self._targets[row, spots] = document.tokens[start + lossy]
        self._weights[row, spots] = document.losses != "each_layer"
        self._held[row, spots] = document.losses != "next_token"
        self._used[row] = here.stop
        self._used_loss[row] = spots.stop


def derive_loss_positions(sources: Sequence[Sequence[Example]], style: Style, seq_len: int) -> int:
    """Returns M for these examples, a multiple of 8 and at most T.

    Where nothing may be cut: a quarter more than the share of predicted tokens asks for (in the source that
    has most), and enough for any one example that fits a row. A row that has used up its M takes no more
    examples, so M bounds the cost of the head and never loses a loss.
    """
    needed = 0.0
    for examples in sources:
        first = examples[0]
        if style.may_cut(first.splittable, first.is_dialogue):
            return seq_len
        sample = [
            encode(examples[i], style)
            for i in range(0, len(examples), max(1, len(examples) // _MEASURED))
        ]
        share = sum(e.loss.sum() for e in sample) / sum(len(e.tokens) + 1 for e in sample)
        needed = max(needed, 1.25 * share * seq_len)
        asked: Sequence[int] = range(len(examples))
        if isinstance(examples, StoredExamples):  # what their sizes tell needs no reading
            asked = np.flatnonzero(examples.loss_bytes + examples.n_parts > needed).tolist()
        for example in map(examples.__getitem__, asked):
            said = [text for text, has_loss in example.parts if has_loss]
            # a token a byte at most, and one that ends each part: else it has fewer
            if sum(len(text.encode()) + 1 for text in said) > needed:
                encoded = encode(example, style)
                if len(encoded.tokens) < seq_len:
                    needed = max(needed, int(encoded.loss.sum()))
    return min(seq_len, 8 * math.ceil(needed / 8))
