"""`medkor show`: how far a run is, phase by phase, and how it was made.

medkor show runs/quickstart
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
from collections.abc import Sequence

from medkor_jax.bar import in_words
from medkor_jax.commands.runs import to_json
from medkor_jax.commands.tables import in_bytes, table
from medkor_jax.run.on_disk import PhaseOnDisk, RunOnDisk, look_at
from medkor_jax.run.provenance import read_provenance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's directory")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    one = look_at(pathlib.Path(arguments.run))
    if arguments.json:
        print(json.dumps(to_json(one), ensure_ascii=False))
        return
    print(f"{one.directory}: {one.state}, {in_bytes(one.n_bytes)}")
    begun = {phase.name for phase in one.phases}
    rows = [_row(phase) for phase in one.phases]
    rows += [(name, "not begun", "", "", "") for name in one.planned if name not in begun]
    print(table([("phase", "state", "time", "size", "what it said last"), *rows]))
    print("\n".join(_made_by(one)))


def _row(phase: PhaseOnDisk) -> tuple[str, ...]:
    seconds = "" if phase.seconds is None else in_words(phase.seconds)
    return (phase.name, phase.state, seconds, in_bytes(phase.n_bytes), phase.said)


def _made_by(one: RunOnDisk) -> list[str]:
    """Returns how the last phase was started; nothing where an older version did not keep it."""
    provenance = read_provenance(one.directory / one.phases[-1].name) if one.phases else {}
    if not provenance:
        return []
    start = provenance["starts"][-1]
    git = start["git"]
    at = ""
    if git:
        at = f", commit {git['commit'][:12]}{'' if git['is_clean'] else ' with changes that are not committed'}"
    n = len(provenance["starts"])
    times = f" (start {n} of {provenance['phase']})" if n > 1 else ""
    return [
        f"last started {start['time']}{times}: {shlex.join(start['command'])}",
        f"on {start['devices']}, seed {start['seed']}, medkor {start['packages'].get('medkor-jax', '?')}{at}, "
        f"jax {start['packages'].get('jax', '?')}, Python {start['python']}",
    ]
