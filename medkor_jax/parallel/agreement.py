"""What all processes of a run must have alike: code, config, data, and one run directory.

    require_same("the config", digest)
    require_shared(run_dir)

Asked before anything long starts, and said with the name of the host that differs.
"""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any

from medkor_jax.parallel import hosts
from medkor_jax.parallel.cluster import ClusterError


def require_same(name: str, value: Any) -> None:
    """Raises: ClusterError, naming who differs, unless every process has the same `value` (JSON) for `name`."""
    values = hosts.collect(f"same {name}", value)
    if others := [i for i, other in enumerate(values) if other != values[0]]:
        mine, theirs = values[0], values[others[0]]
        if isinstance(mine, dict):
            differing = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
            mine, theirs = ({key: one.get(key) for key in differing} for one in (mine, theirs))
        raise ClusterError(
            f"{name} is not the same on all hosts: {_short(mine)} on process 0 ({hosts.name_of(0)}), {_short(theirs)} on process "
            f"{others[0]} ({hosts.name_of(others[0])}){f', and {len(others) - 1} more differ' if others[1:] else ''}. Give every host the same code, config and data"
        )


def require_shared(directory: pathlib.Path) -> None:
    """Raises: ClusterError, naming the hosts, unless all processes see and may write what process 0 writes to `directory`;
    OSError, on all, if it cannot write there.
    """
    if hosts.n_processes() == 1:
        return
    name = hosts.first("a shared directory", lambda: _leave_mark(directory))
    mark = directory / name
    trouble = hosts.collect("who sees it", _trouble_with(mark))
    if hosts.is_first():
        for path in directory.glob(f"{mark.name}*"):
            path.unlink(missing_ok=True)
    if found := [
        f"process {i} ({hosts.name_of(i)}): {words}" for i, words in enumerate(trouble) if words
    ]:
        raise ClusterError(
            f"every host must see the same run directory, and {directory.absolute()} is not shared ({'; '.join(found[:3])}). "
            "Put run_dir on a disk that all hosts mount (NFS, Filestore, Lustre, gcsfuse), at the same path"
        )


def _leave_mark(directory: pathlib.Path) -> str:
    """Returns the name of a file that holds its own name."""
    directory.mkdir(parents=True, exist_ok=True)
    mark = directory / f".hosts-{os.getpid()}-{time.time_ns()}"
    mark.write_text(mark.name, encoding="ascii")
    return mark.name


def _trouble_with(mark: pathlib.Path) -> str:
    if not hosts.is_seen(mark):
        return f"does not see what process 0 wrote within {hosts.SEEN_S:g} s"
    try:
        if mark.read_text(encoding="ascii") != mark.name:
            return "reads something else there"
        mark.with_name(f"{mark.name}.{hosts.process_id()}").write_text("", encoding="ascii")
    except OSError as error:
        return str(error)
    return ""


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
