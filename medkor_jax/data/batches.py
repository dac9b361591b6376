"""The stream of batches: which document comes next, and where the stream stands.

    batches = Batches([(source, examples)], style, batch_size=8, seq_len=512, seed=0)
    for batch in batches:                          # dict of arrays, see PackedRows.arrays
        cursor = batches.get_state()               # small JSON: set_state(cursor) goes on with the next batch

`grain` gives the order: each source shuffled again in every epoch and repeated, the sources mixed by
weight, and any place in that order found at once, so a cursor is a number. Documents that do not fit
the batch wait for the next one, while later and shorter ones may still fill its rows. All processes build
the same global batch from the same seed, whatever their number. What it does not do: put arrays on devices.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.contents import content_digest
from medkor_jax.data.language import check_language_unit
from medkor_jax.data.packing import (
    Batch,
    Encoded,
    PackedRows,
    derive_loss_positions,
    encode,
    find_too_long,
)
from medkor_jax.data.rows import BadDataError, BadRow, Example, Source
from medkor_jax.data.style import Style

# How many documents may wait for a later batch. Measured on doctor questions, 8 rows of 512 tokens: 1 fills
# 89 % of the tokens, 32 fill 94 %, 64 fill 95 %.
MAX_WAITING = 32


class Batches:
    """Iterates over batches of B rows of T tokens, at most M of them predicted in each row.

    sources: (source, its examples); the examples are read by index, in any order. style: the form dialogues have.
    loss_positions: M. None derives it: T where text may be cut, else what rows full of such questions need.
    epochs: None repeats for ever, with sources mixed by weight. A number shows every document that often and
        then ends with a padded batch; documents are then mixed as they are many, so weights must be equal.
    drop_bad: leave out what may not be cut and fits no row (listed in `dropped`) instead of raising.

    Raises: BadDataError for documents that fit no row; ValueError for settings that contradict each other.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, Sequence[Example]]],
        style: Style,
        *,
        batch_size: int,
        seq_len: int,
        loss_positions: int | None = None,
        seed: int = 0,
        epochs: int | None = None,
        language_unit: str = "token",
        shuffle: bool = True,
        drop_bad: bool = False,
    ):
        _check_settings(sources, batch_size, seq_len, loss_positions, epochs, language_unit)
        self._examples = [examples for _, examples in sources]
        self._losses = [source.loss for source, _ in sources]
        self._style, self._tokenizer = style, style.tokenizer
        self.batch_size, self.seq_len, self.language_unit = batch_size, seq_len, language_unit
        self.loss_positions = loss_positions or derive_loss_positions(
            self._examples, style, seq_len
        )
        self.dropped: list[BadRow] = []
        kept = [self._kept(source, examples) for source, examples in sources]
        if self.dropped and not drop_bad:
            raise BadDataError(
                self.dropped, advice="raise seq_len, or go on without them with --drop-bad"
            )
        self._order = document_order(
            kept,
            [source.weight for source, _ in sources],
            seed=seed,
            epochs=epochs,
            shuffle=shuffle,
        )
        self._settings = {
            "sources": [
                f"{source.name} ({source.kind}, {len(indices)} rows, weight {source.weight}"
                f"{f', loss {source.loss}' if source.loss else ''})"
                for (source, _), indices in zip(sources, kept)
            ],
            "batch_size": batch_size,
            "seq_len": seq_len,
            "loss_positions": self.loss_positions,
            "seed": seed,
            "epochs": epochs,
            "route": language_unit,
            "shuffle": shuffle,
            "tokenizer": style.tokenizer.digest,
            **({"style": style.digest} if style.digest else {}),
            "content": [content_digest(examples) for examples in self._examples],
        }
        self._next = 0  # place in the order
        self._waiting: list[
            tuple[int, int, Encoded]
        ] = []  # (place in the order, tokens already placed, document)
        self._batch = 0
        self._placed = self._slots = 0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        rows = PackedRows(
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            loss_positions=self.loss_positions,
            bos_id=self._tokenizer.bos_id,
            pad_id=self._tokenizer.pad_id,
        )
        self._waiting = [left for waiting in self._waiting if (left := _place(rows, *waiting))]
        while (
            not rows.is_full()
            and len(self._waiting) < MAX_WAITING
            and self._next < len(self._order)
        ):
            left = _place(rows, self._next, 0, self._encoded(self._next))
            self._next += 1
            if left:
                self._waiting.append(left)
        if not rows.tokens_placed:
            raise StopIteration
        self._batch += 1
        self._placed += rows.tokens_placed
        self._slots += self.batch_size * self.seq_len
        return rows.arrays(
            self._tokenizer, language_unit=self.language_unit, apart=any(self._losses)
        )

    @property
    def packing_efficiency(self) -> float:
        """Share of the tokens handed out by this object so far that are not padding."""
        return self._placed / self._slots if self._slots else math.nan

    def get_state(self) -> dict[str, Any]:
        """Returns where the stream stands, as JSON: its next batch is the next batch of whoever sets this state."""
        return {
            "next": self._next,
            "waiting": [[place, start] for place, start, _ in self._waiting],
            "batch": self._batch,
            "settings": self._settings,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `state` stood.

        Raises: ValueError, naming what differs, if it is the state of another stream.
        """
        check_cursor(state, self._settings)
        self._next, self._batch = state["next"], state["batch"]
        self._waiting = [(place, start, self._encoded(place)) for place, start in state["waiting"]]

    def _kept(self, source: Source, examples: Sequence[Example]) -> Sequence[int]:
        """Returns the indices of the examples that fit, noting the others in `dropped`."""
        long = find_too_long(
            source.name,
            examples,
            self._style,
            seq_len=self.seq_len,
            loss_positions=self.loss_positions,
        )
        self.dropped += long.values()
        if len(long) == len(examples):
            raise BadDataError(
                list(long.values()),
                advice=f"source {source.name!r} has {len(examples)} rows and none fits",
            )
        return (
            range(len(examples)) if not long else [i for i in range(len(examples)) if i not in long]
        )

    def _encoded(self, place: int) -> Encoded:
        source, index = self._order[place]
        return encode(self._examples[source][index], self._style, self._losses[source])


def check_cursor(state: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises: ValueError, naming what differs, if the cursor `state` was made under other `settings`."""
    settings = json.loads(json.dumps(settings))
    said = (
        dict.fromkeys(settings, "") | state["settings"]
    )  # a setting that a cursor lacks was not in force
    differing = [
        f"{name} was {was!r}, is {settings.get(name)!r}"
        for name, was in said.items()
        if settings.get(name) != was
    ]
    if differing:
        raise ValueError(
            "this cursor belongs to other batches: "
            + "; ".join(differing)
            + ". Restore those settings, or start the stage again"
        )


def one_pass(
    sources: Sequence[tuple[Source, Sequence[Example]]],
    style: Style,
    *,
    batch_size: int,
    seq_len: int,
    loss_positions: int | None = None,
    language_unit: str = "token",
    drop_bad: bool = False,
) -> Batches:
    """Returns every document once, in file order, the last batch padded: for the loss on held-out text.

    All of it carries that loss, whatever it would carry in training."""
    return Batches(
        [(dataclasses.replace(source, loss=""), examples) for source, examples in sources],
        style,
        batch_size=batch_size,
        seq_len=seq_len,
        loss_positions=loss_positions,
        epochs=1,
        language_unit=language_unit,
        shuffle=False,
        drop_bad=drop_bad,
    )


def _place(
    rows: PackedRows, place: int, start: int, document: Encoded
) -> tuple[int, int, Encoded] | None:
    """Puts what is left of the document into the rows; returns what must wait, or None."""
    while start < len(document.tokens):
        count = rows.place(document, start)
        if not count:
            return place, start, document
        start += count
    return None


def document_order(
    kept: Sequence[Sequence[int]],
    weights: Sequence[float],
    *,
    seed: int,
    epochs: int | None,
    shuffle: bool,
):
    """Returns the sequence of (source number, index into its examples), a grain dataset read by place."""
    import grain  # slow to import

    streams = []
    for number, indices in enumerate(kept):
        stream = grain.MapDataset.source(indices).map(
            lambda index, number=number: (number, int(index))
        )
        streams.append(stream.seed(seed + number))
    if epochs is not None:
        joined = grain.MapDataset.concatenate(streams).seed(seed)
        return (joined.shuffle() if shuffle else joined).repeat(epochs)
    streams = [(stream.shuffle() if shuffle else stream).repeat() for stream in streams]
    return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights=list(weights))


def _check_settings(
    sources,
    batch_size: int,
    seq_len: int,
    loss_positions: int | None,
    epochs: int | None,
    language_unit: str,
) -> None:
    if not sources:
        raise ValueError("no sources: expected at least one")
    for source, examples in sources:
        if not len(examples):
            raise ValueError(f"source {source.name!r} has no examples")
    if batch_size < 1 or seq_len < 4:
        raise ValueError(
            f"batch_size is {batch_size} and seq_len {seq_len}, expected at least 1 and 4"
        )
    if loss_positions is not None and not 1 <= loss_positions <= seq_len:
        raise ValueError(
            f"loss_positions is {loss_positions}, expected 1 to seq_len ({seq_len}), or None to derive it"
        )
    check_language_unit(language_unit)
    if epochs is not None and len({source.weight for source, _ in sources}) > 1:
        weights = ", ".join(f"{source.name} {source.weight}" for source, _ in sources)
        raise ValueError(
            f"epochs is {epochs} and the weights differ ({weights}): every document cannot come equally often "
            "and by weight. Make the weights equal, or set epochs to None and count steps"
        )
