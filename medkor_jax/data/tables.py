"""Rows of a table of lines: cells between commas, tabs or other separators, quoted or not.

    for row in read_csv(open_text(path, tally), tally):
        ...                         # a dict; a reason where a row stood that cannot be read; None for a blank line

A quote that opens a cell closes it. What is taken from the file itself (the separator of a .csv, a header or quotes in
a .tsv) is said in the Tally. What it does not do: know columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence

from medkor_jax.data.lines import Row, UnreadableFile, lines_of
from medkor_jax.data.notes import Tally

TEXT = "text"  # the only column of a file of lines
CELLS = "cells"  # beside TEXT: the cells of a line of tabs

_SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}  # of a .csv, the likeliest first
# A carriage return inside a line, while `csv` (which would end the row there) reads it: no text holds this character.
_CARRIAGE_RETURN = "\ufdd0"
_QUOTED_CELL = r'"(?:[^"]|"")*"'
_DOUBLED = re.compile(r'(?:^|\t)"(?:[^"\t]|"")*""(?:[^"\t]|"")*"(?=\t|$)')
_ALL_QUOTED = re.compile(rf"{_QUOTED_CELL}(?:\t{_QUOTED_CELL})+")


def read_csv(file: io.TextIOBase, tally: Tally) -> Iterator[Row | str | None]:
    lines = iter(file)
    first = next(lines, "")
    if not first.strip():
        raise UnreadableFile("is empty: not even a header line")
    widths = {separator: len(next(csv.reader([first], delimiter=separator))) for separator in _SEPARATORS}
    separator = max(widths, key=widths.__getitem__)  # the first of those that are as wide
    if separator != ",":
        tally.say(f"cells are separated by {_SEPARATORS[separator]}")
    yield from _named(_cells(itertools.chain([first], lines), separator))


def _named(cells: Iterator[list[str] | str]) -> Iterator[Row | str | None]:
    """Yields rows under the names that the first cells are. Raises: UnreadableFile if they name nothing, or one twice."""
    header = next(cells, None)
    if not header or isinstance(header, str):
        raise UnreadableFile(f"has no header line{f': {header}' if header else ''}")
    if any(map(_is_not_utf8, header)):
        raise UnreadableFile("has a header line that is not UTF-8; convert the file (Korean files are often CP949)")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise UnreadableFile(f"has more than one column {', '.join(map(repr, twice))}; rename or delete all but one")
    for row in cells:
        if isinstance(row, list) and row and len(row) != len(header):
            yield f"{len(row)} cells, expected {len(header)} as in the header"
        else:
            yield row if isinstance(row, str) else dict(zip(header, row)) or None


def _cells(lines: Iterator[str], separator: str) -> Iterator[list[str] | str]:
    """Yields the cells of each row by the rules of CSV, [] for a blank line, or what is wrong with the row."""
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the default 128 KiB
    reader = csv.reader(map(_hide_carriage_returns, lines), delimiter=separator, strict=True)
    width, ended = 0, False
    while not ended:
        before = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            ended = "unexpected end of data" in str(error)
            inside = reader.line_num - before - 1
            swallowed = f"; {inside} more lines lie inside it" if inside else ""
            if ended:
                yield f"a quote is opened in line {before + 1} of the file and never closed{swallowed}"
            else:
                yield (f"a quote inside a cell is not doubled, or one is left open, in the row from line {before + 1} of the "
                       f"file{swallowed} ({error})")  # fmt: skip
            continue
        width = width or len(cells)
        if any("\n" in cell for cell in cells) and (n := _swallowed(cells, width, separator)):
            yield (f"the quote opened in line {before + 1} of the file runs on to line {reader.line_num}, over {n} lines that "
                   "look like rows: close it where its cell ends")  # fmt: skip
            continue
        yield [cell.replace(_CARRIAGE_RETURN, "\r") for cell in cells]


def _hide_carriage_returns(line: str) -> str:
    if "\r" not in line:
        return line
    body = line.removesuffix("\n").removesuffix("\r")
    return body.replace("\r", _CARRIAGE_RETURN) + line[len(body):]


def _swallowed(cells: list[str], width: int, separator: str) -> int:
    """Returns how many lines inside the cells look like rows of their own, or like the parts of rows that a quote cut.

    A quote left open in column c of w columns, and closed in that column of a later row, has w - c cells in its first line,
    c + 1 in its last and w in those between. Prose has a space behind its commas. Of four columns or more, one line of w
    cells is enough; of fewer, where prose may look so, all must fit, and those between must be there.
    """
    found = 0
    for column, cell in enumerate(cells):
        lines = [line.removesuffix("\r") for line in cell.split("\n")]
        if len(lines) == 1 or width == 1:
            continue
        counts = [_looks_like(line, separator) for line in lines]
        is_cut = counts[0] == width - column and counts[-1] == column + 1 and set(counts[1:-1]) <= {width}
        if is_cut and (width > 3 or len(lines) > 2):
            found += len(lines) - 1
        elif width > 3:
            found += counts[1:].count(width)
    return found


def _looks_like(line: str, separator: str) -> int:
    """Returns how many cells the line is, 0 for prose."""
    line = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", line)  # 1,000
    parts = next(csv.reader([line], delimiter=separator), []) if '"' in line else line.split(separator)
    return 0 if any(part[:1].isspace() for part in parts[1:]) else len(parts)


def read_tabs(file: io.TextIOBase, tally: Tally, columns: Sequence[tuple[str, ...]]) -> Iterator[Row | str | None]:
    """Yields rows of cells between tabs: named if the first line is a header, otherwise {TEXT: line, CELLS: cells}.

    Quotes are those of CSV only where the file shows it: a cell in quotes that doubles one, or all cells of its first
    line in quotes. Otherwise they belong to the text.
    """
    first = ""
    is_quoted = False
    for line in lines_of(file):
        first = first or line
        if is_quoted := bool(_DOUBLED.search(line)) or line is first and bool(_ALL_QUOTED.fullmatch(line)):
            break
    file.seek(0)
    if is_quoted:
        tally.say("cells in quotes are read as CSV has them: without the quotes around them, doubled ones single")
        cells = _cells(iter(file), "\t")
    else:
        cells = (line.split("\t") if line.strip() else [] for line in lines_of(file))
    head = next(cells, None)
    named = {name.strip().casefold() for name in head} if isinstance(head, list) else set()
    cells = itertools.chain([] if head is None else [head], cells)
    if not columns or any(named.issuperset(map(str.casefold, names)) for names in columns):
        tally.say("the first line is read as the names of the columns")
        yield from _named(cells)
        return
    for row in cells:
        if isinstance(row, str):
            yield row
        else:
            yield {TEXT: "\t".join(row), CELLS: row} if any(map(str.strip, row)) else None


def _is_not_utf8(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)
