"""Work on data, shared out to processes of this machine, one for each CPU that this one may use.

    run_all("medkor_jax.data.converting:read_part", [{"start": 0, "stop": 1000}, ...])     # what it returned for each

A task and what comes of it are JSON; a process is a fresh interpreter that imports this package's data room and nothing else, so
it is started from whatever runs here (a notebook, threads, an accelerator held). With one CPU, or one task, all is done in
this process.
What it does not do: several hosts, order of work, or jobs that fail and are tried again.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

MAX_WORKERS = 16  # the disk is the limit from here on


class WorkerError(RuntimeError):
    """One of the processes failed; the message ends with what it said."""


def n_workers() -> int:
    """Returns how many processes work at once: $MEDKOR_WORKERS, else one for each CPU this process may use."""
    if own := os.environ.get("MEDKOR_WORKERS"):
        return max(1, int(own))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, MAX_WORKERS)


def run_all(job: str, tasks: Sequence[Any]) -> list[Any]:
    """Returns job(task) for each task, in their order. job: "module:function".

    Raises: WorkerError if a process dies or `job` raises in it; what `job` raises where no process was started.
    """
    count = min(n_workers(), len(tasks))
    if count < 2:
        return [_function(job)(task) for task in tasks]
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(tasks)):
        waiting.put(place)
    found: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []
    processes: list[subprocess.Popen] = []

    def serve() -> None:
        try:
            with (
                tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace") as said,
                _start(job, said) as process,
            ):
                processes.append(process)
                while not errors:
                    try:
                        place = waiting.get_nowait()
                    except queue.Empty:
                        break
                    found[place] = _ask(process, tasks[place], said)
                process.stdin.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C here: theirs is not to go on
        errors.append(KeyboardInterrupt())
        for process in processes:
            process.kill()
        raise
    if errors:
        raise errors[0]
    return found


def _start(job: str, said) -> subprocess.Popen:
    root = str(pathlib.Path(__file__).parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", f"from medkor_jax.data.workers import main; main({job!r})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        env=environment,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def _ask(process: subprocess.Popen, task: Any, said) -> Any:
    line = ""
    try:
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        pass  # it died: reported below
    if not line:
        code = process.wait()
        said.seek(0)
        tail = (said.read().strip().splitlines() or [""])[-1]
        killed = (
            " (killed; most likely out of memory: set MEDKOR_WORKERS to fewer)"
            if code == -9
            else ""
        )
        raise WorkerError(f"a process that reads data ended with {code}{killed}. {tail}")
    return json.loads(line)


def _function(job: str):
    module, _, name = job.partition(":")
    return getattr(importlib.import_module(module), name)


def main(job: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be read as an answer
    work = _function(job)
    for line in sys.stdin:
        answers.write(json.dumps(work(json.loads(line))) + "\n")
        answers.flush()
