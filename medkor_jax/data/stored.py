"""Documents that lie on disk in a form of their own, and are built when they are asked for.

    writer = RowsWriter(directory, "0000", "medquad"); writer.add(example); writer.close()
    join_segments(directory, [Segment("0000", rows=1)], notes=())
    StoredExamples(directory, "medquad")[0]             # an Example

Texts lie end to end in UTF-8 (`NNNN.texts`), all else in arrays: where each part ends, which carry loss, the number of the row,
and a digest of each row, which is compared whenever the row is read. Memory holds none of it: texts are read from the file
as they are wanted, arrays are mapped. Ids are the source's name, the number of the row and a tail, so that the same rows serve
under another name. What it does not do: decide what is stored (`sources`), or where (`kept`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medkor_jax.data.contents import sha256_of
from medkor_jax.data.language import LANGUAGES
from medkor_jax.data.rows import BadRow, Example

_TAILS = ("", "/en-ko", "/ko-en")  # of ids, behind the number of the row
_SPLITTABLE, _EOS = 1, 2
_FLUSH_BYTES = 4 * 2**20
_MAPPED_BYTES = 2**20  # smaller arrays are read
_COLUMNS = {
    "ends": np.int64,
    "loss": np.bool_,
    "parts": np.int64,
    "number": np.int64,
    "tail": np.uint8,
    "language": np.uint8,
    "flags": np.uint8,
    "digest": np.uint64,
}


class DamagedError(RuntimeError):
    """A row on disk is not the one that was written."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """What one writer left. rows: how many rows its stretch of the source has, bad and blank ones too; bad: (row, why)."""

    name: str
    rows: int
    bad: Sequence[tuple[int, str]] = ()


class RowsWriter:
    """Writes one segment. source: the name that the ids begin with."""

    def __init__(self, directory: pathlib.Path, name: str, source: str) -> None:
        self._place, self._prefix = directory / name, f"{source}/"
        self._file = self._place.with_suffix(".texts").open("wb")
        self._waiting = bytearray()
        self._written = 0
        self._columns: dict[str, list] = {name: [] for name in _COLUMNS}

    def add(self, example: Example) -> None:
        number, slash, tail = example.id.removeprefix(self._prefix).partition("/")
        texts = [text.encode() for text, _ in example.parts]
        losses = [loss for _, loss in example.parts]
        columns, end = self._columns, self._written
        for text in texts:
            end += len(text)
            columns["ends"].append(end)
        self._waiting += b"".join(texts)
        self._written = end
        flags = _SPLITTABLE * example.splittable + _EOS * example.eos
        columns["loss"] += losses
        columns["parts"].append(len(texts))
        columns["number"].append(int(number) + 1)
        columns["tail"].append(_TAILS.index(slash + tail))
        columns["language"].append(LANGUAGES.index(example.language))
        columns["flags"].append(flags)
        columns["digest"].append(
            _row_digest(b"".join(texts), list(map(len, texts)), losses, example.language, flags)
        )
        if len(self._waiting) >= _FLUSH_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()
        arrays: dict[str, Any] = {
            name: np.array(self._columns[name], kind) for name, kind in _COLUMNS.items()
        }
        np.savez(self._place.with_suffix(".npz"), **arrays)

    def _flush(self) -> None:
        self._file.write(self._waiting)
        self._waiting.clear()


def join_segments(
    directory: pathlib.Path, segments: Sequence[Segment], notes: Sequence[str]
) -> None:
    """Makes one set of arrays of those of the segments, in their order; numbers of rows count over all of them."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
    before = {"ends": 0, "number": 0}  # bytes and rows of the segments before
    sizes, bad = [], []
    for segment in segments:
        place = directory / segment.name
        with np.load(place.with_suffix(".npz")) as arrays:
            for name in _COLUMNS:
                found[name].append(arrays[name] + before[name] if name in before else arrays[name])
        place.with_suffix(".npz").unlink()
        bad += [(before["number"] + row, why) for row, why in segment.bad]
        sizes.append(place.with_suffix(".texts").stat().st_size)
        before = {"ends": before["ends"] + sizes[-1], "number": before["number"] + segment.rows}
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    arrays["first"] = np.concatenate([[0], np.cumsum(arrays.pop("parts"))])
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array)
    content = sha256_of(arrays[name].tobytes() for name in ("digest", "number", "tail"))
    files = [[segment.name, size] for segment, size in zip(segments, sizes)]
    about = {"segments": files, "bad": bad, "notes": list(notes), "content": content}
    (directory / "about.json").write_text(json.dumps(about), encoding="utf-8")


class StoredExamples(Sequence):
    """The documents of a directory that `join_segments` has finished.

    name: of their source. digest: of all they say. remake: returns the directory made again, for one that is found to be damaged.
    """

    def __init__(
        self, directory: pathlib.Path, name: str, remake: Callable[[], pathlib.Path] | None = None
    ) -> None:
        self.name, self._remake = name, remake
        self._open(directory)

    def _open(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._about = json.loads((directory / "about.json").read_text(encoding="utf-8"))
        self.digest = self._about["content"]
        array = functools.partial(_array, directory)
        self._first, self._ends, self._loss, self._digests = (
            array("first"),
            array("ends"),
            array("loss"),
            array("digest"),
        )
        self._number, self._tail, self._language, self._flags = (
            array("number"),
            array("tail"),
            array("language"),
            array("flags"),
        )
        self._files = [
            (directory / f"{name}.texts").open("rb", buffering=0)
            for name, _ in self._about["segments"]
        ]
        self._bases = np.cumsum([0, *(size for _, size in self._about["segments"])])

    def bad(self, file: str) -> list[BadRow]:
        return [BadRow(file, row, why) for row, why in self._about["bad"]]

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._about["notes"])

    @property
    def languages(self) -> np.ndarray:
        """[n], places in LANGUAGES."""
        return self._language

    @functools.cached_property
    def row_ends(self) -> np.ndarray:
        """[n + 1] int64: where the bytes of each document begin, and the last one's end."""
        return np.concatenate([[0], self._ends])[self._first]

    @property
    def is_splittable(self) -> np.ndarray:
        """[n] bool."""
        return (self._flags & _SPLITTABLE) > 0

    @property
    def is_dialogue(self) -> np.ndarray:
        """[n] bool, see `Example.is_dialogue`."""
        return ~self._loss[self._first[:-1]]

    @property
    def n_parts(self) -> np.ndarray:
        """[n] int64."""
        return np.diff(self._first)

    @functools.cached_property
    def loss_bytes(self) -> np.ndarray:
        """[n] int64: bytes of the parts that carry loss."""
        sizes = np.diff(np.concatenate([[0], self._ends])) * self._loss
        return np.add.reduceat(sizes, self._first[:-1])

    def __len__(self) -> int:
        return len(self._number)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        try:
            return self._read(index)
        except DamagedError:
            self.repair()
            return self._read(index)

    def repair(self) -> None:
        """Makes the directory again. Raises: DamagedError if that gives other documents, or cannot be."""
        if self._remake is None:
            raise DamagedError(f"{self.directory} is damaged; delete it, and it is made again")
        content = self.digest
        self._open(self._remake())
        if self.digest != content:
            raise DamagedError(
                f"what was kept of {self.name!r} was damaged, and its source is not what it was; start again"
            )

    def texts(self, start: int, stop: int) -> bytes:
        """Returns the bytes of the documents start, start + 1, ..., end to end (`row_ends`). Raises: DamagedError."""
        begin, end = int(self.row_ends[start]), int(self.row_ends[stop])
        found = []
        while begin < end:
            segment = int(np.searchsorted(self._bases, begin, side="right")) - 1
            count = min(end, int(self._bases[segment + 1])) - begin
            block = os.pread(
                self._files[segment].fileno(), count, begin - int(self._bases[segment])
            )
            if len(block) != count:
                raise DamagedError(f"{self._files[segment].name} ends too early")
            found.append(block)
            begin += count
        return b"".join(found)

    def check(self, start: int, stop: int, block: bytes) -> None:
        """Raises: DamagedError unless `block` is what was written as documents start, start + 1, ... ."""
        for i in range(start, stop):
            at = int(self.row_ends[i]) - int(self.row_ends[start])
            self._check(i, block[at : at + int(self.row_ends[i + 1] - self.row_ends[i])])

    def _check(self, index: int, raw: bytes) -> tuple[list[int], list[bool]]:
        parts = slice(int(self._first[index]), int(self._first[index + 1]))
        ends = [int(self.row_ends[index]), *self._ends[parts].tolist()]
        sizes, losses = [b - a for a, b in itertools.pairwise(ends)], self._loss[parts].tolist()
        said = _row_digest(
            raw, sizes, losses, LANGUAGES[self._language[index]], int(self._flags[index])
        )
        if said != int(self._digests[index]):
            raise DamagedError(f"row {index} in {self.directory} is not what was written")
        return sizes, losses

    def _read(self, index: int) -> Example:
        raw = self.texts(index, index + 1)
        sizes, losses = self._check(index, raw)
        parts, at = [], 0
        for size, loss in zip(sizes, losses):
            parts.append((raw[at : at + size].decode(), loss))
            at += size
        flags = int(self._flags[index])
        id = f"{self.name}/{self._number[index] - 1}{_TAILS[self._tail[index]]}"
        return Example(
            id,
            tuple(parts),
            LANGUAGES[self._language[index]],
            bool(flags & _SPLITTABLE),
            bool(flags & _EOS),
        )


def _array(directory: pathlib.Path, name: str) -> np.ndarray:
    path = directory / f"{name}.npy"
    return np.load(path, mmap_mode="r" if path.stat().st_size > _MAPPED_BYTES else None)


def _row_digest(
    raw: bytes, sizes: Sequence[int], losses: Sequence[bool], language: str, flags: int
) -> int:
    """Returns 64 bits that change with anything the document says."""
    said = hashlib.blake2b(f"{sizes} {losses} {language} {flags}".encode(), digest_size=8)
    said.update(raw)
    return int.from_bytes(said.digest(), "little")
