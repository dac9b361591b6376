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
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Generic, TypeVar

from medkor_jax.data.cells import BadRowReason, composed, composed_row
from medkor_jax.data.files import SUFFIXES, read_file
from medkor_jax.data.language import LANGUAGES
from medkor_jax.data.lines import Row, UnreadableFile
from medkor_jax.data.notes import Note, Tally
from medkor_jax.nearest import nearest

KINDS = dict(text="text", chat="text", exam="exams", reasoning="reasoning", translation="pairs")
"""What a source may be, and the module of this room whose `load` reads it."""
EMBEDDED = "embedded"  # the exam, texts and pairs that come with this package; the model of that name: `io.embedded_model`
SHOWN_BAD_ROWS = 20

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
T = TypeVar("T", covariant=True)


@dataclasses.dataclass(frozen=True)
class Source:
    """One named source of data, as configured."""

    name: str
    """The name that a config's mapping has for it; in records, leaks and tables."""
    kind: str
    """What a row is: "text", "chat", "exam", "reasoning" or "translation"."""
    path: str
    """"embedded", a file (CSV, TSV, JSON, JSON Lines, Parquet), a directory laid out like a hub
    data set, or a hub id."""
    split: str = "train"
    """Split of a hub data set, or of the embedded exam."""
    subset: str = ""
    """Subset (configuration) of a hub data set, such as "doctor"; of embedded texts and pairs,
    whose facts they state."""
    language: str = ""
    """"ko", "en", or "" to take it from each row."""
    weight: Annotated[float, "> 0"] = 1.0
    """Share of the documents (not of the tokens) drawn from this source, relative to the others."""
    licence: str = ""
    """Its licence, as `data check` shows it; decides nothing."""
    fields: tuple[str, ...] = ()
    """Column names, in the order that the kind expects them. (): the usual ones."""
    limit: Annotated[int, ">= 0"] = 0
    """Rows kept, from the first. 0: all."""
    skip: Annotated[int, ">= 0"] = 0
    """Questions passed over before that, so that two exams of one file share none."""
    answers_from: int | None = None
    """What the numbers of an exam's keys count from, 0 or 1. None: the file tells."""

    def __post_init__(self):
        if self.skip < 0 or (self.skip and self.kind not in ("exam", "reasoning")):
            raise ValueError(
                f"source {self.name!r}: skip is {self.skip} of kind {self.kind!r}, expected 0, or more for questions"
            )
        if self.answers_from not in (None, 0, 1):
            raise ValueError(
                f"source {self.name!r}: answers_from is {self.answers_from!r}, expected 0 or 1"
            )
        if self.kind not in KINDS:
            raise ValueError(
                f"source {self.name!r}: kind is {self.kind!r}, expected one of {', '.join(KINDS)}"
            )
        if self.language not in ("", *LANGUAGES):
            raise ValueError(
                f"source {self.name!r}: language is {self.language!r}, expected 'ko', 'en' or ''"
            )
        if not self.weight > 0:
            raise ValueError(
                f"source {self.name!r}: weight is {self.weight}, expected more than 0; "
                "leave the source out of the list to switch it off"
            )
        object.__setattr__(self, "fields", tuple(map(composed, self.fields)))


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

    @property
    def is_dialogue(self) -> bool:
        """Whether it begins with what the model is asked: such a document has the form in which the model is asked."""
        return not self.parts[0][1]


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
    yield from itertools.islice(numbered(rows, tally), source.limit or None)


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
        return datasets.load_dataset(source.path, source.subset or None, split=source.split)
    except (
        Exception
    ) as error:  # its own errors are many; all of them mean the same to the person who runs this
        raise _unreadable(
            source, f"neither a file here nor a data set that could be loaded: {error}"
        ) from error


def is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not path.removesuffix(".gz").endswith(SUFFIXES)


def file_label(source: Source) -> str:
    """Returns the name that a person finds the file by: its path, or the hub id with subset and split."""
    if pathlib.Path(source.path).is_dir() or (
        is_hub_id(source.path) and not pathlib.Path(source.path).is_file()
    ):
        return " ".join(part for part in (source.path, source.subset, source.split) if part)
    return source.path


def part_name(source: Source) -> str:
    """Returns the name of the split for ids: the file's stem, or the configured split."""
    path = pathlib.Path(source.path)
    return path.name.split(".")[0] if path.is_file() else source.split


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
