"""What was made once of data and is found again: directories in the cache, each named by all that it was made from.

    place = keep("rows", key_of(source, file_digest), lambda directory: convert(source, directory, read))

An entry is made beside its place and renamed, so it is there whole or not at all; it lists its files with size and SHA-256,
and one that does not hold to its list is made again. Processes that want the same entry wait for the one that makes it
(a file lock: also over a file system that several hosts share, where that has locks). A key holds the code of this package too
(`code_digest`), so what older code made is never taken for the present one's. Nothing is ever deleted but what is damaged: to
clean, delete the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from medkor_jax.data.contents import cache_directory, hash_file, sha256_of

LIST = "files.json"
CHECKED_BY_ROW = (
    ".texts"  # files of this suffix bear a checksum for each row: here only their size is looked at
)


class CacheError(OSError):
    """What has to be kept cannot be written."""


def keep(kind: str, key: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns the directory of an entry; make(directory) fills it where there is none, or a damaged one.

    Raises: CacheError, and whatever `make` raises, which leaves nothing behind.
    """
    place = cache_directory() / kind / key
    if is_whole(place):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_name(f"{key}.lock")) as is_alone:
            if is_whole(place):  # another process has made it meanwhile
                return place
            for left in (place, *place.parent.glob(f"{key}.*.part")) if is_alone else ():
                shutil.rmtree(left, ignore_errors=True)
            _make(place, make)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(
            str(cache_directory())
        ):
            raise  # a file that was to be read
        raise CacheError(
            f"cannot keep what was read in {place.parent}: {error}. It needs about as much room as the source; set MEDKOR_CACHE "
            "to a directory that has it"
        ) from error
    return place


def discard(place: pathlib.Path) -> None:
    """Takes an entry away that was found to be damaged, so that it is made again."""
    (place / LIST).unlink(missing_ok=True)


def is_whole(place: pathlib.Path) -> bool:
    """Whether the entry is there and its files are those that were written."""
    try:
        said = json.loads((place / LIST).read_text(encoding="ascii"))
        if said["checksum"] != _checksum(said["files"]):
            return False
        return all(_said_of(place / name) == tuple(was) for name, was in said["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def size_bytes(place: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in place.iterdir())


@functools.cache
def code_digest() -> str:
    """Returns the SHA-256 of the code that reads and compares: of every module beside this one."""
    files = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    return sha256_of(file.name.encode() + file.read_bytes() for file in files)


def key_of(*parts: Any) -> str:
    """Returns the name of an entry that is made from these parts, by this code."""
    return sha256_of([repr((code_digest(), *parts))])[:40]


def _make(place: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    beside = place.with_name(f"{place.name}.{uuid.uuid4().hex[:12]}.part")
    beside.mkdir()
    try:
        make(beside)
        files = {file.name: list(_said_of(file)) for file in sorted(beside.iterdir())}
        (beside / LIST).write_text(
            json.dumps({"files": files, "checksum": _checksum(files)}), encoding="ascii"
        )
        try:
            os.rename(beside, place)
        except OSError:
            if not is_whole(
                place
            ):  # where no lock could be had, another process may have been as quick
                shutil.rmtree(place, ignore_errors=True)
                os.rename(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _said_of(file: pathlib.Path) -> tuple[int, str]:
    return file.stat().st_size, "" if file.suffix == CHECKED_BY_ROW else hash_file(file)


def _checksum(files: dict[str, Any]) -> str:
    return sha256_of([json.dumps(files, sort_keys=True)])[:16]


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[bool]:
    """Holds the lock while the block runs; the system gives it back if this process dies. Yields whether there is one: some
    file systems have no locks, and there several processes may do the same work."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
