"""What one process takes: seconds, CPU seconds, memory, and how many CPUs it may use.

    with Stopwatch() as watch:
        sum(range(10**8))
    watch.to_json()               # {"seconds": 2.9, "cpu_seconds": 2.9}

Of this process alone; what a GPU holds is asked of the library that runs it.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import time


def n_cpus() -> int:
    """Returns the CPUs this process may use: what either side gets as threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Returns the largest resident size this process has had.

    From VmHWM where there is one: ru_maxrss of a fresh process can carry its parent's peak over.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Stopwatch:
    """Times a with-block: `seconds` of the clock, `cpu_seconds` of all threads of this process."""

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu_seconds = (
            time.perf_counter() - self._start[0],
            time.process_time() - self._start[1],
        )

    def to_json(self) -> dict[str, float]:
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
