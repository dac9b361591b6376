"""Rows of data as they stand in a file or on the hub, and the words for what is wrong with them.

Everything above (exams, text, translation) turns one row, a plain dict, into one object or into a
reason why it cannot. This module reads the rows, numbers them and carries the reasons:

    source = Source("doctor-train", "exam", "exams/doctor/train.csv", licence="CC BY-NC 2.0")
    for number, row in read_rows(source):        # numbers start at 1; the header is not counted
        ...

Files are read by `files` and not through `datasets`, which gives up on a whole file at the first byte that
is not UTF-8 and reads the option "None" as missing; hub data sets, and directories laid out like one,
go through `datasets`. What one cell says: `cells`. What it does not do: judge what a row means.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from medkor_jax.data.cells import BadRowReason, composed_row
from medkor_jax.data.files import read_file
from medkor_jax.data.lines import Row, UnreadableFile
from medkor_jax.data.notes import Note, Tally
from medkor_jax.data.parts import of_part
from medkor_jax.data.source import (  # noqa: F401  (this module is where others take them from)
    EMBEDDED,
    Source,
    file_label,
    is_hub_id,
    part_name,
)
from medkor_jax.nearest import nearest

SHOWN_BAD_ROWS = 20

T = TypeVar("T", covariant=True)


@dataclasses.dataclass(frozen=True)
class Example:
    """One document before tokenisation.

    parts: (text, whether its tokens carry loss), in order; eos=True ends it, with loss if the last part has it.
    splittable: text may be cut at the end of a row and go on in the next; an exam question may not. A document whose first
    part carries no loss is a dialogue.
    """

    id: str
    parts: tuple[tuple[str, bool], ...]
    language: str
    splittable: bool
    eos: bool = True
    is_marked = False  # no field: what is stored of an example stays what it was

    @property
    def is_dialogue(self) -> bool:
        """Whether it begins with what the model is asked: such a document has the form in which the model is asked."""
        return not self.parts[0][1]


class MarkedExample(Example):
    """One whose answer was written by code around a rationale that holds no mark of a thought: the marks in what the model
    says are its control tokens. Made by `reasoning` alone; readers of data make none."""

    is_marked = True


@dataclasses.dataclass(frozen=True)
class BadRow:
    file: str
    row: int  # 1 is the first row of data; 0 means the file as a whole
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.file}, row {self.row}: {self.reason}"
            if self.row
            else f"{self.file}: {self.reason}"
        )


@dataclasses.dataclass(frozen=True)
class Loaded(Generic[T]):
    """notes: sentences on what was left out, guessed or read otherwise without being bad, to be shown."""

    rows: Sequence[T]
    bad: list[BadRow]
    notes: tuple[str, ...] = ()


class BadDataError(ValueError):
    """Rows that cannot be used. `bad` holds all of them, the message the first few."""

    def __init__(
        self,
        bad: Sequence[BadRow],
        advice: str = "correct them, or go on without them with --drop-bad",
    ):
        self.bad, self.advice = list(bad), advice
        lines = [f"  {b}" for b in self.bad[:SHOWN_BAD_ROWS]]
        if len(self.bad) > SHOWN_BAD_ROWS:
            lines.append(f"  ... and {len(self.bad) - SHOWN_BAD_ROWS} more")
        count = "1 bad row" if len(self.bad) == 1 else f"{len(self.bad)} bad rows"
        super().__init__("\n".join([f"{count}; {advice}:", *lines]))


def convert_rows(
    source: Source,
    convert: Callable[[int, Row], T],
    rows: Iterable[tuple[int, Row | str]] | None = None,
    *,
    tally: Tally | None = None,
    columns: Sequence[tuple[str, ...]] = (),
) -> Iterator[T | BadRow | Note]:
    """Yields convert(number, row) for every row of the source, or the BadRow that says why not; then what was noted.

    rows: those to convert; by default read_rows(source). tally: where `convert` notes. columns: see `files.read_file`.
    """
    tally = tally or Tally()
    for number, row in read_rows(source, tally, columns) if rows is None else rows:
        try:
            if isinstance(row, str):
                raise BadRowReason(row)
            yield convert(number, composed_row(row, tally))
        except BadRowReason as reason:
            yield BadRow(file_label(source), number, str(reason))
    yield from tally.notes()


def split_bad(items: Iterable[T | BadRow | Note]) -> tuple[list[T], list[BadRow], tuple[str, ...]]:
    """Returns the good rows, the bad ones, and the notes."""
    good: list[T] = []
    bad: list[BadRow] = []
    notes: list[str] = []
    for item in items:
        if isinstance(item, Note):
            notes.append(item.text)
        elif isinstance(item, BadRow):
            bad.append(item)
        else:
            good.append(item)
    return good, bad, tuple(notes)


def settle(
    source: Source,
    good: Sequence[T],
    bad: list[BadRow],
    notes: tuple[str, ...] = (),
    *,
    drop_bad: bool,
) -> Loaded[T]:
    """Returns both as Loaded, or raises BadDataError: for bad rows unless `drop_bad`, for an empty source always."""
    if bad and not drop_bad:
        raise BadDataError(bad)
    if not len(good):
        left_out = "".join(f"; {note}" for note in notes)
        whole = BadRow(file_label(source), 0, f"no usable row: 0 good, {len(bad)} bad{left_out}")
        raise BadDataError([whole, *bad], advice=f"source {source.name!r} gives nothing")
    return Loaded(good, bad, notes)


def read_rows(
    source: Source, tally: Tally | None = None, columns: Sequence[tuple[str, ...]] = ()
) -> Iterator[tuple[int, Row | str]]:
    """Yields (number, row) from 1; in place of a row that could not be read, the reason as a string.

    Raises: BadDataError if the file is not there or cannot be read at all.
    """
    path, tally = pathlib.Path(source.path), tally or Tally()
    if path.is_file():
        rows = _file_rows(path, source, tally, columns)
    elif path.is_dir() or is_hub_id(source.path):
        rows = load_hub(source)
    else:
        raise _unreadable(
            source,
            "no such file. Expected 'embedded', a file, a directory or a hub id (owner/name)",
        )
    yield from itertools.islice(of_part(source, numbered(rows, tally)), source.limit or None)


def numbered(rows: Iterable[Row | str | None], tally: Tally) -> Iterator[tuple[int, Row | str]]:
    """Yields the rows with their numbers, blank ones counted and passed over."""
    for number, row in enumerate(rows, start=1):
        if row is None:
            tally.count("blank lines passed over")
        else:
            yield number, row


def _file_rows(
    path: pathlib.Path, source: Source, tally: Tally, columns: Sequence[tuple[str, ...]]
) -> Iterator[Row | str | None]:
    try:
        if columns and source.fields:
            columns = (source.fields,)
        yield from read_file(path, tally, has_tabs=source.kind == "translation", columns=columns)
    except UnreadableFile as error:
        raise _unreadable(source, str(error)) from error


def load_hub(source: Source):
    """Returns the `datasets.Dataset` of a hub id, or of a directory laid out like one.

    Raises: BadDataError if there is none.
    """
    import datasets  # slow to import

    try:
        named = {"revision": source.revision} if source.revision else {}
        if pathlib.Path(source.path).is_dir():
            named = {}
        return datasets.load_dataset(
            source.path, source.subset or None, split=source.split, **named
        )
    except (
        Exception
    ) as error:  # its own errors are many; all of them mean the same to the person who runs this
        raise _unreadable(
            source, f"neither a file here nor a data set that could be loaded: {error}"
        ) from error


def columns_missing(source: Source, wanted: Sequence[str], found: Sequence[str]) -> BadDataError:
    """Returns the error for a file that lacks columns: what it has, and the nearest name to each wanted one."""
    near = []
    for name in wanted:
        folded = {column.casefold(): column for column in found}
        close = nearest(name.casefold(), folded, least=0.5)
        near.append(f"{name!r}" + (f" (nearest: {folded[close]!r})" if close else ""))
    reason = (
        f"no column {', '.join(near)}; the columns are {', '.join(map(repr, found))}. "
        f"Rename them, or name them in `fields` of source {source.name!r}"
    )
    return BadDataError([BadRow(file_label(source), 0, reason)], advice="wrong column names")


def _unreadable(source: Source, reason: str) -> BadDataError:
    return BadDataError(
        [BadRow(file_label(source), 0, reason)], advice=f"source {source.name!r} cannot be read"
    )
