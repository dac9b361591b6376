"""`medkor compare`: runs side by side, with paired intervals: which is better, and can one tell.

    medkor compare runs/without-retention runs/with-retention
    medkor compare runs/a runs/b runs/c --phase phase3      # as they were after that phase
    medkor compare runs/a runs/b --json

The first run is what the others are compared with.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help="directories of runs, at least two")
    words = "compare the models after this phase (default: each run's last)"
    parser.add_argument("--phase", default="", help=words)
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from medkor_jax.report.comparing import compare
    from medkor_jax.report.comparison import as_table
    from medkor_jax.report.files import read_run

    found = compare([read_run(pathlib.Path(path)) for path in arguments.run], arguments.phase)
    print(json.dumps(found, ensure_ascii=False) if arguments.json else as_table(found))
