"""One run directory, one run: who has it, and why nobody else may.

    with held(run_dir):             # RunHeld if another medkor has it, NotWritable if nothing can be written there
        ...
    holder_of(run_dir)              # "process 4711 on tpu-vm-3 since 2026-11-27T21:40:12+0000 (medkor run ...)", "" if none

The lock is the system's own (flock) on RUN/.lock, which stays; it ends with its process, however that ends. Several processes of
one run are one holder: process 0 has it for all. Where a disk has no locks (some network disks), what the file says counts: a
process that is alive on this host, or any on another host, has the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

from medkor_jax.parallel import hosts
from medkor_jax.parallel.cluster import host_name

FILE = ".lock"
_UNKNOWN = "a process that has not said its name"
_TRIES = 5
_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)
_HAS_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class RunHeld(RuntimeError):
    """Another process has the run directory."""


class NotWritable(RuntimeError):
    """This user may write nothing into the run directory."""


@contextlib.contextmanager
def held(directory: str | os.PathLike) -> Iterator[None]:
    """Has the directory, which is made if need be, until the block ends.

    Raises: RunHeld, or NotWritable, on all processes of a run.
    """
    path = pathlib.Path(directory) / FILE
    taken: list[int] = []
    hosts.first(f"{path.name} taken", lambda: taken.append(_take(path)))
    try:
        yield
    finally:
        for file in taken:
            os.ftruncate(file, 0)  # a disk without locks reads what stands here
            os.close(file)


def holder_of(directory: str | os.PathLike) -> str:
    """Returns who has the directory, in words; "" if nobody has."""
    path = pathlib.Path(directory) / FILE
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return ""
    try:
        return _other(file, path)
    finally:
        os.close(file)


def _take(path: pathlib.Path) -> int:
    """Returns the open lock file, held and with our name in it."""
    file = _open(path)
    try:
        other = _other(file, path)
        for _ in range(_TRIES):
            if other != _UNKNOWN:
                break
            time.sleep(0.2)  # who only looks holds it for a moment
            other = _other(file, path)
        if other:
            raise RunHeld(
                f"{path.parent} is in use by {other}: wait for it or end it, or give this run another run_dir. "
                f"If that process is gone for sure, remove {path}"
            )
        who = {
            "pid": os.getpid(),
            "host": host_name(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": " ".join(["medkor", *sys.argv[1:]]),
        }
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(who).encode(), 0)
        return file
    except BaseException:
        os.close(file)
        raise


def _open(path: pathlib.Path) -> int:
    """Returns the lock file, opened to be written, in a directory where more can be made: a lock file alone may be writable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        if error.errno not in _MAY_NOT:
            raise
        raise NotWritable(
            f"the run directory {path.parent} cannot be written ({error.strerror}): let this user write there, or give the run "
            "another one, --config.run_dir=DIRECTORY. Nothing was begun"
        ) from error
    return file


def _other(file: int, path: pathlib.Path) -> str:
    """Takes the lock, and returns ""; or returns who has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return _words(_said(path)) or _UNKNOWN
    except OSError as error:
        if error.errno not in _HAS_NO_LOCKS:
            raise
    said = _said(path)
    is_gone = said.get("host") == host_name() and not _is_alive(said.get("pid"))
    return "" if is_gone else _words(said)


def _said(path: pathlib.Path) -> dict:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return said if isinstance(said, dict) else {}
    except (OSError, ValueError):
        return {}


def _words(said: dict) -> str:
    if not said:
        return ""
    return f"process {said.get('pid')} on {said.get('host')} since {said.get('since')} ({said.get('command')})"


def _is_alive(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
