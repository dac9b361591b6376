"""`medkor runs`: what is in the runs directory, a line a run, newest last.

medkor runs                     # runs/
medkor runs /data/runs --json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

from medkor_jax.bar import in_words
from medkor_jax.commands.tables import in_bytes, table
from medkor_jax.run.on_disk import RunOnDisk, find_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "a directory of runs, or a run (default: runs)"
    parser.add_argument("directory", nargs="?", default="runs", help=words)
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    found = find_runs(arguments.directory)
    if arguments.json:
        print(json.dumps(list(map(to_json, found)), ensure_ascii=False))
        return
    if not found:
        print(f"no run in {arguments.directory}")
        return
    rows = [("run", "state", "phase", "last verdict", "age", "size"), *map(_row, found)]
    print(table(rows))


def to_json(one: RunOnDisk) -> dict:
    """Returns a run as JSON types."""
    return {
        "run": str(one.directory),
        "state": one.state,
        "planned": list(one.planned),
        "phases": [
            {
                "phase": phase.name,
                "state": phase.state,
                "said": phase.said,
                "seconds": phase.seconds,
                "bytes": phase.n_bytes,
            }
            for phase in one.phases
        ],
        "bytes": one.n_bytes,
        "written_last": one.touched,
    }


def _row(one: RunOnDisk) -> tuple[str, ...]:
    judged = [phase for phase in one.phases if phase.state != "under way"]
    last = f"{judged[-1].name} {judged[-1].state}" if judged else "none"
    age = in_words(max(0.0, time.time() - one.touched))
    return (
        one.directory.resolve().name,
        one.state,
        f"{one.phases[-1].name} ({len(one.phases)} of {len(one.planned) or '?'})"
        if one.phases
        else "-",
        last,
        age,
        in_bytes(one.n_bytes),
    )
