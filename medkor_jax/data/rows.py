"""Rows of data as they stand in a file or on the hub, and the words for what is wrong with them.

Everything above (exams, text, translation) turns one row, a plain dict, into one object or into a
reason why it cannot. This module reads the rows, numbers them and carries the reasons:

    source = Source("doctor-train", "exam", "exams/doctor/train.csv", licence="CC BY-NC 2.0")
    for number, row in read_rows(source):        # numbers start at 1; the header is not counted
        ...

Files are read here and not through `datasets`, which gives up on a whole file at the first byte that
is not UTF-8 and reads the option "None" as missing; hub data sets, and directories laid out like one,
go through `datasets`. A row keeps undecodable bytes as lone surrogates, so the row that holds them can
be named. What it does not do: judge what a row means.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import gzip
import io
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Generic, TypeVar

from medkor_jax.data.language import HANGUL_RANGES

KINDS = ("text", "chat", "exam", "reasoning", "translation")
EMBEDDED = "embedded"
TEXT = "text"  # the only column of a file of lines
SHOWN_BAD_ROWS = 20

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_READ_SUFFIXES = (".csv", ".jsonl", ".json", ".txt", ".tsv", ".parquet")
_HANGUL = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in HANGUL_RANGES) + "]")

T = TypeVar("T", covariant=True)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """One named source of data, as configured.

    path: "embedded", a file, a directory laid out like a hub data set, or a hub id.
    language: "ko", "en", or "" to take it from each row.
    weight: share of the documents (not of the tokens) drawn from this source, relative to the others.
    fields: column names, in the order the kind expects them, when they are not the usual ones.
    limit: keep the first `limit` rows; 0 keeps all. skip: questions passed over before that, so that two exams of one
    file share none.
    """

    name: str
    kind: str
    path: str
    split: str = "train"
    subset: str = ""
    language: str = ""
    weight: Annotated[float, "> 0"] = 1.0
    licence: str = ""
    fields: tuple[str, ...] = ()
    limit: Annotated[int, ">= 0"] = 0
    skip: Annotated[int, ">= 0"] = 0

    def __post_init__(self):
        if self.skip < 0 or (self.skip and self.kind not in ("exam", "reasoning")):
            raise ValueError(f"source {self.name!r}: skip is {self.skip} of kind {self.kind!r}, expected 0, or more for questions")
        if self.kind not in KINDS:
            raise ValueError(f"source {self.name!r}: kind is {self.kind!r}, expected one of {', '.join(KINDS)}")
        if self.language not in ("", "ko", "en"):
            raise ValueError(f"source {self.name!r}: language is {self.language!r}, expected 'ko', 'en' or ''")
        if not self.weight > 0:
            raise ValueError(f"source {self.name!r}: weight is {self.weight}, expected more than 0; "
                             "leave the source out of the list to switch it off")
        object.__setattr__(self, "fields", tuple(self.fields))


@dataclasses.dataclass(frozen=True)
class Example:
    """One document before tokenisation.

    parts: (text, whether its tokens carry loss), in order; eos=True ends it, with loss if the last part has it.
    splittable: text may be cut at the end of a row and go on in the next; an exam question may not.
    """

    id: str
    parts: tuple[tuple[str, bool], ...]
    language: str
    splittable: bool
    eos: bool = True


@dataclasses.dataclass(frozen=True)
class BadRow:
    file: str
    row: int  # 1 is the first row of data; 0 means the file as a whole
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}" if self.row else f"{self.file}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Loaded(Generic[T]):
    """notes: sentences on what was left out without being bad, to be shown."""

    rows: Sequence[T]
    bad: list[BadRow]
    notes: tuple[str, ...] = ()


class BadDataError(ValueError):
    """Rows that cannot be used. `bad` holds all of them, the message the first few."""

    def __init__(self, bad: Sequence[BadRow], advice: str = "correct them, or go on without them with --drop-bad"):
        self.bad = list(bad)
        lines = [f"  {b}" for b in self.bad[:SHOWN_BAD_ROWS]]
        if len(self.bad) > SHOWN_BAD_ROWS:
            lines.append(f"  ... and {len(self.bad) - SHOWN_BAD_ROWS} more")
        count = "1 bad row" if len(self.bad) == 1 else f"{len(self.bad)} bad rows"
        super().__init__("\n".join([f"{count}; {advice}:", *lines]))


class BadRowReason(ValueError):
    """Why one row cannot be used. Raised by the converters, turned into a BadRow by `convert_rows`."""


def convert_rows(
    source: Source, convert: Callable[[int, Row], T], rows: Iterable[tuple[int, Row | str]] | None = None
) -> Iterator[T | BadRow]:
    """Yields convert(number, row) for every row of the source, or the BadRow that says why not.

    rows: those to convert; by default read_rows(source).
    """
    for number, row in read_rows(source) if rows is None else rows:
        try:
            if isinstance(row, str):
                raise BadRowReason(row)
            yield convert(number, row)
        except BadRowReason as reason:
            yield BadRow(file_label(source), number, str(reason))


def split_bad(items: Iterable[T | BadRow]) -> tuple[list[T], list[BadRow]]:
    good, bad = [], []
    for item in items:
        (bad if isinstance(item, BadRow) else good).append(item)
    return good, bad


def settle(
    source: Source, good: Sequence[T], bad: list[BadRow], *, drop_bad: bool, notes: tuple[str, ...] = ()
) -> Loaded[T]:
    """Returns both as Loaded, or raises BadDataError: for bad rows unless `drop_bad`, for an empty source always."""
    if bad and not drop_bad:
        raise BadDataError(bad)
    if not len(good):
        left_out = "".join(f"; {note}" for note in notes)
        whole = BadRow(file_label(source), 0, f"no usable row: 0 good, {len(bad)} bad{left_out}")
        raise BadDataError([whole, *bad], advice=f"source {source.name!r} gives nothing")
    return Loaded(good, bad, notes)


def read_rows(source: Source) -> Iterator[tuple[int, Row | str]]:
    """Yields (number, row) from 1; in place of a row that could not be read, the reason as a string.

    Raises: BadDataError if the file is not there or cannot be read at all.
    """
    path = pathlib.Path(source.path)
    if path.is_file():
        rows = _read_file(path, source)
    elif path.is_dir() or is_hub_id(source.path):
        rows = load_hub(source)
    else:
        raise _unreadable(source, "no such file. Expected 'embedded', a file, a directory or a hub id (owner/name)")
    numbered = ((number, row) for number, row in enumerate(rows, start=1) if row is not None)
    yield from itertools.islice(numbered, source.limit) if source.limit else numbered


def load_hub(source: Source):
    """Returns the `datasets.Dataset` of a hub id, or of a directory laid out like one.

    Raises: BadDataError if there is none.
    """
    import datasets  # slow to import

    try:
        return datasets.load_dataset(source.path, source.subset or None, split=source.split)
    except Exception as error:  # its own errors are many; all of them mean the same to the person who runs this
        raise _unreadable(source, f"neither a file here nor a data set that could be loaded: {error}") from error


def is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not path.removesuffix(".gz").endswith(_READ_SUFFIXES)


def file_label(source: Source) -> str:
    """Returns the name that a person finds the file by: its path, or the hub id with subset and split."""
    if pathlib.Path(source.path).is_dir() or is_hub_id(source.path) and not pathlib.Path(source.path).is_file():
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
        close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
        near.append(f"{name!r}" + (f" (nearest: {folded[close[0]]!r})" if close else ""))
    reason = (f"no column {', '.join(near)}; the columns are {', '.join(map(repr, found))}. "
              f"Rename them, or name them in `fields` of source {source.name!r}")
    return BadDataError([BadRow(file_label(source), 0, reason)], advice="wrong column names")


def text_of(value: Any, name: str) -> str:
    """Returns the value as text, untouched: a space at its end is part of the prompt that others measure with.

    Raises: BadRowReason if it is empty, not text or a number, or was not decoded properly.
    """
    if value is None or value != value:
        raise BadRowReason(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRowReason(f"{name} is {type(value).__name__}, expected text")
    text = str(value)
    if not text.strip():
        raise BadRowReason(f"{name} is empty")
    if "\ufffd" in text:
        raise BadRowReason(f"{name} holds U+FFFD (broken encoding): {_around(text, text.index(chr(0xFFFD)))}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRowReason(f"{name} holds bytes that are not UTF-8 at character {error.start}; "
                           "convert the file (Korean files are often CP949)") from None
    return text


def text_language(text: str) -> str:
    """Returns "ko" if at least a fifth of the letters are Hangul, else "en".

    A fifth and not one: English reasoning quotes Korean terms, and Korean exams quote English ones.
    """
    hangul = count_hangul(text)
    return "ko" if hangul and hangul * 5 >= sum(map(str.isalpha, text)) else "en"


def count_hangul(text: str) -> int:
    return len(_HANGUL.findall(text))


def _around(text: str, index: int) -> str:
    return repr(text[max(0, index - 12):index + 13])


def _unreadable(source: Source, reason: str) -> BadDataError:
    return BadDataError([BadRow(file_label(source), 0, reason)], advice=f"source {source.name!r} cannot be read")


def _read_file(path: pathlib.Path, source: Source) -> Iterator[Row | str | None]:
    suffix = pathlib.Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in _READ_SUFFIXES:
        raise _unreadable(source, f"{suffix or 'no suffix'!r}, expected one of {', '.join(_READ_SUFFIXES)} (text may be .gz)")
    try:
        if suffix == ".parquet":
            yield from _read_parquet(path)
            return
        binary = gzip.open(path) if path.name.endswith(".gz") else open(path, "rb")
        with binary, io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="") as file:
            if suffix == ".csv":
                yield from _read_csv(file, source)
            elif suffix == ".jsonl":
                yield from _read_jsonl(file)
            elif suffix == ".json":
                yield from _rows_of_json(json.load(file))
            else:
                yield from ({TEXT: line} if line.strip() else None for line in file)
    except (OSError, EOFError, csv.Error, json.JSONDecodeError) as error:
        raise _unreadable(source, f"cannot be read: {error}") from error


def _read_csv(file: io.TextIOBase, source: Source) -> Iterator[Row | str]:
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the default 128 KiB
    reader = csv.reader(file)
    header = next(reader, None)
    if not header:
        raise _unreadable(source, "is empty: not even a header line")
    for cells in reader:
        if not cells:
            continue  # csv gives [] for a blank line
        if len(cells) != len(header):
            yield f"{len(cells)} cells, expected {len(header)} as in the header"
        else:
            yield dict(zip(header, cells))


def _read_jsonl(file: io.TextIOBase) -> Iterator[Row | str | None]:
    for line in file:
        if not line.strip():
            yield None  # counted, so that numbers stay line numbers
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield f"not JSON: {error.msg} at character {error.pos}"
            continue
        yield row if isinstance(row, dict) else f"a JSON {type(row).__name__}, expected an object with named fields"


def _rows_of_json(value: Any) -> list[Row | str]:
    """Returns the rows of a whole JSON document: the list that it is, or the only list of objects it holds."""
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        value = lists[0] if len(lists) == 1 else [value]
    value = value if isinstance(value, list) else [value]
    return [row if isinstance(row, dict) else f"a JSON {type(row).__name__}, expected an object" for row in value]


def _read_parquet(path: pathlib.Path) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
