"""What a file, a list of rows or a value holds: as a digest that changes with any of it and with nothing else.

    file_digest(path)           # SHA-256 in hex; hashed once, remembered by size and times
    fresh_digest(path)          # the same, hashed by this process itself
    content_digest(examples)    # every row counts, whatever file they came from
    checksum({"format": 2})     # of a value as JSON
    sha256_of(["one", b"two"])  # what all of them are made with

A digest of a file is remembered under `cache_directory()`, one small file each, so that several processes may ask at
once. A file written within the last seconds is hashed again: two versions can bear one time stamp. What is trained on is
hashed by every process that starts (2 GB take one to six seconds): a file system may keep times coarsely or set them back.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_BLOCK_BYTES = 8 * 2**20
_TOO_YOUNG_SECONDS = 2.0
_fresh: dict[tuple, str] = {}  # by path, size, times and inode: what this process has hashed itself
_known: dict[pathlib.Path, str] = {}  # what `remembered` gave; also where no cache can be written


def sha256_of(parts: Iterable[str | bytes | memoryview]) -> str:
    """Returns the SHA-256, in hex, of the parts one after another; text counts as its UTF-8."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return sha.hexdigest()


def checksum(value: Any) -> str:
    """Returns the SHA-256, in hex, of `value` as canonical JSON."""
    return sha256_of([json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))])


def cache_directory() -> pathlib.Path:
    """Returns $MEDKOR_CACHE, else medkor_jax under $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("MEDKOR_CACHE"):
        return pathlib.Path(own)
    return (
        pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        / "medkor_jax"
    )


def file_digest(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of the file's bytes, in hex."""
    return remembered([path], "bytes", lambda: hash_file(path))


def fresh_digest(path: str | os.PathLike) -> str:
    """Returns what `file_digest` does, without trusting what another process said of the file."""
    s = os.stat(path)
    if time.time() - max(s.st_mtime, s.st_ctime) < _TOO_YOUNG_SECONDS:
        return hash_file(path)
    stamp = (str(pathlib.Path(path).resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
    if stamp not in _fresh:
        _fresh[stamp] = hash_file(path)
    return _fresh[stamp]


def files_digest(paths: Iterable[pathlib.Path], root: pathlib.Path) -> str:
    """Returns the SHA-256 over names (below `root`) and bytes of the files, in hex."""
    said = [f"{path.relative_to(root).as_posix()} {file_digest(path)}" for path in sorted(paths)]
    return sha256_of(["\n".join(said)])


def remembered(paths: Iterable[str | os.PathLike], what: str, compute: Callable[[], str]) -> str:
    """Returns compute(), or what it gave when it was last asked for `what` of these very files."""
    stamps = [(str(pathlib.Path(path).resolve()), os.stat(path)) for path in paths]
    said = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stamps]
    if any(time.time() - max(s.st_mtime, s.st_ctime) < _TOO_YOUNG_SECONDS for _, s in stamps):
        return compute()
    place = cache_directory() / "digests" / sha256_of([repr((what, said))])
    if place in _known:
        return _known[place]
    try:
        found, _, seal = place.read_text(encoding="ascii").partition(" ")
        if seal == _seal(found):
            _known[place] = found
            return found
    except (OSError, ValueError):
        pass
    found = _known[place] = compute()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f"{place.name}.{os.getpid()}")
        beside.write_text(f"{found} {_seal(found)}", encoding="ascii")
        os.replace(beside, place)
    except OSError:  # a cache that cannot be written only costs time
        pass
    return found


def content_digest(rows: Sequence[Any]) -> str:
    """Returns the SHA-256 over all rows in order, in hex. Rows that lie on disk bring their own (`digest`)."""
    if own := getattr(rows, "digest", ""):
        return own
    return sha256_of(f"{row!r}\n" for row in rows)


def hash_file(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of the file's bytes as they are now, in hex."""
    with open(path, "rb") as file:
        return sha256_of(iter(lambda: file.read(_BLOCK_BYTES), b""))


def _seal(text: str) -> str:
    return sha256_of([text])[:8]
