"""Rows of one file, whatever its format and encoding, or why it cannot be read.

    for row in read_file(pathlib.Path("train.csv"), Tally()):
        ...                         # a dict; a reason where a row stood that cannot be read; None for a blank line

Read by the rule and not by guess: how a file is text in `lines`, how a table is cells in `tables`. What is taken from the
file itself is said in the Tally. A file that would be read as something else than it is, is refused by name. What it
does not do: know columns.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from medkor_jax.data.lines import Row, UnreadableFile, lines_of, open_text
from medkor_jax.data.notes import Tally
from medkor_jax.data.tables import TEXT, read_csv, read_tabs

SUFFIXES = (".csv", ".jsonl", ".json", ".txt", ".tsv", ".parquet")


def read_file(
    path: pathlib.Path,
    tally: Tally,
    *,
    has_tabs: bool = False,
    columns: Sequence[tuple[str, ...]] = (),
) -> Iterator[Row | str | None]:
    """Yields the rows of a file.

    has_tabs: a .txt holds cells between tabs, as a .tsv does. columns: where a file of tabs need not have a header, the
    names of which all of one tuple make its first line one.

    Raises: UnreadableFile.
    """
    suffix = pathlib.Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in SUFFIXES:
        raise UnreadableFile(
            f"{suffix or 'no suffix'!r}, expected one of {', '.join(SUFFIXES)} (text may be .gz)"
        )
    try:
        if suffix == ".parquet":
            yield from _read_parquet(path)
            return
        with open_text(path, tally) as file:
            if suffix == ".csv":
                yield from read_csv(file, tally)
            elif suffix == ".jsonl":
                yield from read_jsonl(file)
            elif suffix == ".json":
                yield from _read_json(file, tally)
            elif suffix == ".tsv" or has_tabs:
                yield from read_tabs(file, tally, columns)
            else:
                yield from ({TEXT: line} if line.strip() else None for line in lines_of(file))
    except (OSError, EOFError, zlib.error, csv.Error, json.JSONDecodeError) as error:
        raise UnreadableFile(f"cannot be read: {error}") from error


def read_jsonl(file: io.TextIOBase) -> Iterator[Row | str | None]:
    """Yields the rows of JSON Lines, as `read_file` does."""
    for line in lines_of(file):
        if not line.strip():
            yield None  # counted, so that numbers stay line numbers
            continue
        try:
            # json.loads would build a decoder for each line; of a line that begins with a mark it has something to say.
            row = _DECODER.decode(line) if line[0] != "\ufeff" else json.loads(line)
        except json.JSONDecodeError as error:
            yield f"not JSON: {error.msg} at character {error.pos}"
        except _TwiceError as error:
            yield str(error)
        else:
            yield (
                row
                if isinstance(row, dict)
                else f"a JSON {type(row).__name__}, expected an object with named fields"
            )


class _TwiceError(ValueError):
    pass


def _fields(pairs: list[tuple[str, Any]]) -> Row:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise _TwiceError(f"field {', '.join(map(repr, twice))} is there more than once")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_fields)


def _read_json(file: io.TextIOBase, tally: Tally) -> Iterator[Row | str | None]:
    text = file.read()
    try:
        value = json.loads(text, object_pairs_hook=_fields)
    except _TwiceError as error:
        raise UnreadableFile(f"cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        first = next((line for line in text.split("\n") if line.strip()), "")
        try:
            is_lines = isinstance(json.loads(first), dict)
        except json.JSONDecodeError:
            is_lines = False
        if not is_lines:
            raise UnreadableFile(f"cannot be read: {error}") from error
        tally.say("the file is JSON Lines by what it holds, an object a line, and is read so")
        yield from read_jsonl(io.StringIO(text, newline="\n"))
        return
    yield from _rows_of_json(value, tally)


def _rows_of_json(value: Any, tally: Tally) -> list[Row | str]:
    """Returns the rows of a whole JSON document: the list that it is, or the only list of objects it holds."""
    if isinstance(value, dict):
        lists = [
            name
            for name, v in value.items()
            if isinstance(v, list) and v and isinstance(v[0], dict)
        ]
        if len(lists) == 1:
            if beside := [name for name in value if name != lists[0]]:
                tally.say(
                    f"the rows are the list {lists[0]!r}; beside it and left out: {', '.join(map(repr, beside))}"
                )
            value = value[lists[0]]
    value = value if isinstance(value, list) else [value]
    return [
        row if isinstance(row, dict) else f"a JSON {type(row).__name__}, expected an object"
        for row in value
    ]


def _read_parquet(path: pathlib.Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UnreadableFile(f"cannot be read as Parquet: {error}") from error
