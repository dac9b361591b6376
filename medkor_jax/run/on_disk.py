"""Runs as they lie on disk: how far each is, and what of it nobody needs any more.

    for run in find_runs("runs"):
        print(run.name, run.state, run.last)
    for one in disposable(directory):               # [Disposable(path, why, bytes)]
        one.delete()

Read from the files that phases leave; no weights are opened. What cannot be read is said as such, and never disposable.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

from medkor_jax.eval.gate import said_of
from medkor_jax.eval.verdict import GateClosed, read_verdict
from medkor_jax.io.files import read_json_file
from medkor_jax.io.models import is_run, read_ledger
from medkor_jax.run.holding import holder_of
from medkor_jax.run.provenance import read_provenance
from medkor_jax.run.summary import read_summary
from medkor_jax.train.metrics import read_metrics

_ASIDE = re.compile(r".+\.(before|damaged)-\d+(-\d+)?")
_YOUNG_SECONDS = 600  # what is written within these may still be written


@dataclasses.dataclass(frozen=True)
class PhaseOnDisk:
    """state: "passed", "recorded", "waived", "closed", "under way" or "damaged". said: the verdict, or where a stage stands.
    seconds: its wall time, None where it has not finished. n_bytes: of its directory."""

    name: str
    state: str
    said: str
    seconds: float | None
    n_bytes: int

    @property
    def is_done(self) -> bool:
        return self.state in ("passed", "recorded", "waived")


@dataclasses.dataclass(frozen=True)
class RunOnDisk:
    """phases: those begun, in the order they run. planned: the names of all that its config runs, () where that is not known.
    touched: when it wrote last, seconds since the epoch. holder: who has it now, "" if nobody has."""

    directory: pathlib.Path
    phases: tuple[PhaseOnDisk, ...]
    planned: tuple[str, ...]
    n_bytes: int
    touched: float
    holder: str

    @property
    def state(self) -> str:
        """Returns "finished", "closed", "damaged", "stopped", "running" or "empty"."""
        if self.holder:
            return "running"
        if not self.phases:
            return "empty"
        if any(phase.state == "damaged" for phase in self.phases):
            return "damaged"
        last = self.phases[-1]
        if last.state == "closed":
            return "closed"
        if last.is_done and last.name == (self.planned or (last.name,))[-1]:
            return "finished"
        return "stopped"


@dataclasses.dataclass(frozen=True)
class Disposable:
    """What can go, and why nobody needs it."""

    path: pathlib.Path
    why: str
    n_bytes: int

    def delete(self) -> None:
        shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()


def find_runs(directory: str | pathlib.Path) -> list[RunOnDisk]:
    """Returns the runs in a directory, or the one that it is, newest last. Raises: ValueError if it is no directory."""
    path = pathlib.Path(directory)
    if not path.is_dir():
        raise ValueError(f"{path} is no directory; runs are where a config's `run_dir` says")
    found = [path] if is_run(path) else [one for one in path.iterdir() if is_run(one)]
    return sorted(map(look_at, found), key=lambda run: run.touched)


def look_at(directory: pathlib.Path) -> RunOnDisk:
    """Returns one run. Raises: ValueError if the directory holds none."""
    if not is_run(directory):
        raise ValueError(f"{directory} is no run: it has no ledger.json")
    begun = _begun(directory)
    names = dict.fromkeys(one for one in begun if (directory / one).is_dir())
    planned = _planned(directory, list(names))
    phases = tuple(_phase(directory / name) for name in sorted(names, key=_place_in(planned)))
    files = [path for path in directory.rglob("*") if path.is_file()]
    touched = max((path.stat().st_mtime for path in files), default=0.0)
    return RunOnDisk(directory, phases, planned, _bytes(directory), touched, holder_of(directory))


def _begun(directory: pathlib.Path) -> list[str]:
    """Returns the phases that the ledger names; where it is damaged, those that left a directory."""
    try:
        return [entry["phase"] for entry in read_ledger(directory)]
    except ValueError:
        return sorted({path.parent.name for path in directory.glob("*/provenance.json")})


def _planned(directory: pathlib.Path, names: list[str]) -> tuple[str, ...]:
    """Returns what the latest start of any phase was to run."""
    found = [read_provenance(directory / name) for name in names]
    latest = max(
        (one for one in found if one), key=lambda one: one["starts"][-1]["time"], default={}
    )
    return tuple(latest.get("run", ()))


def _place_in(planned: tuple[str, ...]) -> Any:
    return lambda name: planned.index(name) if name in planned else -1


def _phase(directory: pathlib.Path) -> PhaseOnDisk:
    state, said = _verdict(directory)
    seconds = None
    if state not in ("under way", "damaged"):
        try:
            seconds = float(read_summary(directory)["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            state, said = "damaged", f"{directory / 'summary.json'} cannot be read"
    return PhaseOnDisk(directory.name, state, said, seconds, _bytes(directory))


def _verdict(directory: pathlib.Path) -> tuple[str, str]:
    if not (directory / "verdict.json").exists():
        return "under way", _stage_words(directory)
    try:
        verdict = read_verdict(directory / "verdict.json")
    except GateClosed as error:
        return "damaged", str(error)
    words = said_of(verdict["judgement"]["words"], verdict["gate"]["on_failure"])
    if verdict["passed"]:
        return "passed", words
    if not verdict["waiver"]:
        return "closed", words
    is_recorded = verdict["gate"]["on_failure"] == "continue"
    return ("recorded" if is_recorded else "waived"), words


def _stage_words(directory: pathlib.Path) -> str:
    """Returns "remedy1: step 12 of 40" of the stage that wrote last."""
    stages = sorted(directory.glob("*/stage.json"), key=lambda path: path.stat().st_mtime)
    if not stages:
        return "no stage has begun"
    stage = stages[-1].parent
    try:
        steps = read_json_file(stage / "stage.json", "steps")["steps"]
    except ValueError:
        return f"{stage.name}: its files cannot be read"
    rows = read_metrics(stage)
    return f"{stage.name}: step {rows[-1]['step'] if rows else 0} of {steps}"


def remove_unfinished(directory: pathlib.Path) -> int:
    """Removes what processes that died had begun to write in a run; returns how many such things there were.

    For who has the run (`holding`): nobody else writes there but `medkor report` and `medkor data fetch`, whose files are left alone.
    """
    found = [
        path
        for path in (*directory.rglob(".*.tmp"), *directory.rglob("*.orbax-checkpoint-tmp*"))
        if not {"report", ".data-lock.json"}
        & {*path.relative_to(directory).parts, path.name.rsplit(".", 2)[0]}
    ]
    for path in found:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return len(found)


def disposable(directory: pathlib.Path) -> list[Disposable]:
    """Returns what of a run can be deleted without changing what it is or how it goes on.

    A merged base is one only if every phase that was begun has ended, and nothing in this run or in those beside it stands on it.

    Raises: ValueError if the directory holds no run.
    """
    run = look_at(directory)
    found = list(_leftovers(directory))
    for phase in run.phases:
        if phase.is_done:
            why = f"{phase.name} has ended: only a stage that goes on needs its checkpoints"
            found += [
                (path, why) for path in sorted((directory / phase.name).glob("*/checkpoints"))
            ]
    if all(phase.is_done for phase in run.phases):
        found += _unused_bases(directory, {path for path, _ in found})
    return [Disposable(path, why, _bytes(path)) for path, why in found]


def _leftovers(directory: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory).parts
        if any(_ASIDE.fullmatch(part) for part in inside[:-1]):
            continue
        if _ASIDE.fullmatch(path.name) and path.is_dir():
            is_damaged = ".damaged-" in path.name
            yield path, "damaged" if is_damaged else "moved aside when its phase was run again"
        elif path.suffix == ".tmp" and time.time() - path.stat().st_mtime > _YOUNG_SECONDS:
            yield path, "left by a process that died while it wrote"


def _unused_bases(
    directory: pathlib.Path, going: set[pathlib.Path]
) -> list[tuple[pathlib.Path, str]]:
    own, going = directory.resolve(), {path.resolve() for path in going}
    models = {*own.glob("*/model.json"), *own.parent.glob("*/*/model.json")}
    used = {_base_of(path) for path in models if path.parent.resolve() not in going}
    if None in used:  # what cannot be read may stand on any
        return []
    bases = sorted(path.parent for path in (directory / "bases").glob("*/lineage.json"))
    why = "no phase of this run, or of a run beside it, stands on it"
    return [(base, why) for base in bases if base.resolve() not in used]


def _base_of(model: pathlib.Path) -> pathlib.Path | None:
    """Returns where the base lies that a phase stands on; None if its file cannot be read."""
    try:
        said = read_json_file(model, "base", "base_is_relative")
        place = pathlib.Path(said["base"])
        return (model.parent / place).resolve() if said["base_is_relative"] else place.resolve()
    except (OSError, ValueError, TypeError):
        return None


def _bytes(path: pathlib.Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())
