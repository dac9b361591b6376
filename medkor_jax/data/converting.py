"""Reads a large source once and writes its documents as stored rows, several processes at work where its form allows.

    convert(source, directory, read)        # `stored.StoredExamples` opens the directory

A file of JSON Lines in UTF-8 is cut behind line ends into parts that are read side by side and put together in order: rows, their
numbers, what is bad and what is noted are those of one reader (a test holds it). Every other form is read by one process.
"""

from __future__ import annotations

import codecs
import dataclasses
import importlib
import io
import itertools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from medkor_jax.data import rows, workers
from medkor_jax.data.files import read_jsonl
from medkor_jax.data.lines import UnreadableFile, open_text
from medkor_jax.data.notes import Note, Tally
from medkor_jax.data.parts import of_part
from medkor_jax.data.rows import BadDataError, BadRow, Example, Source
from medkor_jax.data.source import KINDS
from medkor_jax.data.stored import RowsWriter, Segment, join_segments

PART_BYTES = 8 * 2**20
MAX_PARTS = 64  # files that are open at once


def convert(
    source: Source,
    directory: pathlib.Path,
    read: Callable[[Source], Iterable[Example | BadRow | Note]],
) -> None:
    """Writes the documents that `read` yields. Raises: BadDataError, as `read` does."""
    notes: list[str] = []
    if cuts := _cuts(source):
        tasks = [
            {
                "source": dataclasses.asdict(source),
                "directory": str(directory),
                "name": f"{at:04d}",
                "start": start,
                "stop": stop,
            }
            for at, (start, stop) in enumerate(itertools.pairwise(cuts))
        ]
        segments, tally = [], Tally()
        for done in workers.run_all("medkor_jax.data.converting:read_part", tasks):
            if error := done["error"]:
                raise BadDataError([BadRow(*bad) for bad in error["bad"]], advice=error["advice"])
            segments.append(Segment(done["name"], done["rows"], done["bad"]))
            tally.add(done["tally"])
        notes = [note.text for note in tally.notes()]
    else:
        segments = [_write(source, directory, "0000", read(source), notes)]
    join_segments(directory, segments, notes)


def reader_of(source: Source) -> Callable[..., Iterable[Example | BadRow | Note]]:
    """Returns load(source, numbered, tally) of the source's kind, which is one of documents. See `source.KINDS`."""
    return importlib.import_module(f"medkor_jax.data.{KINDS[source.kind]}").load


def read_part(task: dict[str, Any]) -> dict[str, Any]:
    """Writes one part of a file of JSON Lines; returns what `convert` puts together. Runs in a process of its own."""
    source = Source.from_json(task["source"])
    with open(source.path, "rb") as file:
        file.seek(task["start"])
        block = io.BytesIO(file.read(task["stop"] - task["start"]))
    encoding = "utf-8" if task["start"] else "utf-8-sig"
    lines = io.TextIOWrapper(block, encoding, errors="surrogateescape", newline="\n")
    tally, counted = Tally(), _Counted(read_jsonl(lines))
    load = reader_of(source)
    done: dict[str, Any] = {"name": task["name"], "error": None}
    try:
        items = load(source, of_part(source, rows.numbered(counted, tally)), tally)
        segment = _write(source, pathlib.Path(task["directory"]), task["name"], items, [])
    except BadDataError as error:
        return done | {
            "error": {
                "bad": [[bad.file, bad.row, bad.reason] for bad in error.bad],
                "advice": error.advice,
            }
        }
    return done | {"rows": counted.n, "bad": segment.bad, "tally": tally.to_json()}


class _Counted:
    """Rows, and how many of them there were."""

    def __init__(self, found: Iterable[Any]) -> None:
        self._found, self.n = found, 0

    def __iter__(self):
        for row in self._found:
            self.n += 1
            yield row


def _write(
    source: Source,
    directory: pathlib.Path,
    name: str,
    items: Iterable[Example | BadRow | Note],
    notes: list[str],
) -> Segment:
    """Returns the segment that was written; what was noted is added to `notes`."""
    writer, bad = RowsWriter(directory, name, source.name), []
    for item in items:
        if isinstance(item, Example):
            writer.add(item)
        elif isinstance(item, Note):
            notes.append(item.text)
        else:
            bad.append((item.row, item.reason))
    writer.close()
    return Segment(name, 0, bad)


def _cuts(source: Source) -> list[int]:
    """Returns the places in the file, first and last included, between which its parts lie; [] if it is read in one go."""
    path = pathlib.Path(source.path)
    if path.suffix.lower() != ".jsonl" or source.limit or not path.is_file():
        return []
    size = path.stat().st_size
    step = max(PART_BYTES, -(-size // MAX_PARTS))
    if size <= step or _is_refused_or_utf16(path):
        return []
    cuts = [0]
    with path.open("rb") as file:
        while cuts[-1] + step < size:
            file.seek(cuts[-1] + step - 1)
            file.readline()  # the rest of the line in which the part would end
            cuts.append(file.tell())
    return cuts if cuts[-1] == size else [*cuts, size]


def _is_refused_or_utf16(path: pathlib.Path) -> bool:
    """Whether a reader of the whole file has something to say of it first."""
    try:
        with open_text(path, Tally()) as file:
            return codecs.lookup(file.encoding).name.startswith("utf-16")
    except UnreadableFile:
        return True
