"""A run's files as the report reads them: phases in the order they ran, with all that each left.

    run = read_run(pathlib.Path("runs/quickstart"))
    run.phases[-1].verdict, run.phases[-1].stages[0].rows

What is missing (a phase under way, an older version) is empty here; what is damaged is in `faults`, and the rest is read.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from medkor_jax.eval.report import Report
from medkor_jax.io.files import read_json_file
from medkor_jax.run.data_lock import Lock, read_lock
from medkor_jax.run.left_out import left_out_words
from medkor_jax.run.on_disk import RunOnDisk, look_at
from medkor_jax.run.provenance import read_provenance
from medkor_jax.run.summary import chain_of, read_final, read_summaries
from medkor_jax.run.translation_files import reports_of
from medkor_jax.train.metrics import read_metrics
from medkor_jax.train.spikes import left_out


@dataclasses.dataclass(frozen=True)
class StageFiles:
    """rows: a dict a step, as metrics.jsonl has them. left_out: how many batches it went on without, by step."""

    name: str
    rows: list[dict[str, Any]]
    left_out: dict[int, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PhaseFiles:
    """summary, verdict, record, provenance: as on disk; {} where they are not there."""

    name: str
    directory: pathlib.Path
    state: str
    said: str
    summary: dict[str, Any]
    verdict: dict[str, Any]
    record: dict[str, Any]
    provenance: dict[str, Any]
    stages: list[StageFiles]
    _reports: dict[str, Report | None] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        return self.summary.get("title", "")

    @property
    def without(self) -> str:
        """A sentence about the batches that were left out, "" if none was."""
        return left_out_words(self.name, {one.name: one.left_out for one in self.stages})

    def exams(self, when: str) -> dict[str, Any]:
        """Returns the summaries of exams "before", "before_remedy" or "after"."""
        return self.summary.get(when, {}).get("exams", {})

    def losses(self, when: str) -> dict[str, float]:
        """Returns held-out nats a token, by text."""
        watched = self.summary.get(when, {}).get("watch", {})
        return {name: one["nats"] for name, one in watched.items()}

    def report(self, when: str, exam: str) -> Report | None:
        """Returns the answers; None where they are not there any more, or damaged."""
        file = self.summary[when]["answers"].get(exam, "")
        if file not in self._reports:
            self._reports[file] = _read_report(self.directory / file)
        return self._reports[file]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """chain: the phases that led to the last one's model. faults: sentences on what could not be read."""

    on_disk: RunOnDisk
    phases: list[PhaseFiles]
    chain: list[PhaseFiles]
    final: dict[str, Any]
    translated: list[dict[str, Any]]
    questions: dict[str, dict[str, Any]]
    pinned: Lock
    faults: list[str]

    @property
    def name(self) -> str:
        return self.on_disk.directory.resolve().name


def read_run(directory: pathlib.Path) -> RunFiles:
    """Raises: ValueError if the directory is no run."""
    found, faults = look_at(directory), []
    names = [phase.name for phase in found.phases]
    try:
        summaries = {one["phase"]: one for one in read_summaries(directory, names)}
    except (ValueError, KeyError, TypeError) as error:
        summaries = {}
        faults.append(f"a summary.json is damaged ({error})")
    phases = []
    for phase in found.phases:
        place, summary = directory / phase.name, summaries.get(phase.name, {})
        stages = []
        for path in sorted(place.glob("*/metrics.jsonl"), key=_when):
            try:
                rows = read_metrics(path.parent)
            except ValueError as error:
                faults.append(f"{path} cannot be read ({error})")
                continue
            stages.append(StageFiles(path.parent.name, rows, _left_out(path.parent, faults)))
        phases.append(
            PhaseFiles(
                phase.name,
                place,
                phase.state,
                phase.said,
                summary,
                summary.get("verdict") or {},
                _json(place / "record.json", faults),
                read_provenance(place),
                stages,
            )
        )
        if phase.state == "damaged":
            faults.append(phase.said)
    by_name = {phase.name: phase for phase in phases}
    chain = [by_name[one["phase"]] for one in chain_of(list(summaries.values()))]
    try:
        final = read_final(directory)
    except ValueError as error:
        final = {}
        faults.append(f"final.json is damaged ({error})")
    try:
        pinned = read_lock(directory)
    except ValueError as error:
        pinned = Lock()
        faults.append(str(error))
    questions = {
        path.stem: _questions(path, faults)
        for path in sorted((directory / "questions").glob("*.jsonl"))
    }
    return RunFiles(found, phases, chain, final, reports_of(directory), questions, pinned, faults)


def _when(path: pathlib.Path) -> float:
    return path.stat().st_mtime


def _read_report(path: pathlib.Path) -> Report | None:
    try:
        return Report.read(path)
    except (OSError, ValueError):
        return None


def _json(path: pathlib.Path, faults: list[str]) -> dict[str, Any]:
    try:
        return read_json_file(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        faults.append(str(error))
        return {}


def _left_out(directory: pathlib.Path, faults: list[str]) -> dict[int, int]:
    try:
        return left_out(directory)
    except ValueError as error:
        faults.append(str(error))
        return {}


def _questions(path: pathlib.Path, faults: list[str]) -> dict[str, Any]:
    """Returns the questions of an exam, by id."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return {row["id"]: row for row in map(json.loads, filter(None, lines))}
    except (ValueError, KeyError, TypeError) as error:
        faults.append(f"{path} is damaged ({error}); put it back, or the report does without")
        return {}
