"""A phase under way: what it started from, what stands now, and every look its gate took; and how it ends on disk.

    course.judge("after training").passed
    conclude(course, recipe, lineage, run_dir, seconds=840.0)       # summary.json, record.json, verdict.json, ledger.json

What it does not do: load, train or measure (`pipeline`).
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

from medkor_jax.data.licences import TRAINED_ON, licence_of
from medkor_jax.data.rows import Source
from medkor_jax.eval.gate import said_of
from medkor_jax.eval.judgement import Evidence, Judgement, judge_all
from medkor_jax.eval.verdict import GateClosed, read_verdict, waive, write_verdict
from medkor_jax.io.files import write_json, write_sealed
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.models import Model, read_ledger, save_model
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.run.board import write_board
from medkor_jax.run.gate_outlook import reference_account
from medkor_jax.run.left_out import left_out_of
from medkor_jax.run.lineage import Finished, Lineage
from medkor_jax.run.measurement import Measured
from medkor_jax.run.phases import Phase, Recipe

Look = tuple[str, Judgement]


@dataclasses.dataclass
class Course:
    """finished: what the phase left before, where it is only judged again. start: the model it began from; loaded: as it is
    now. before, judged_first, after: what was measured at the start, before any remedy, and last. reference: what the gate
    compares with. looks: (what was judged, how), candidates included. rounds: of the remedy."""

    phase: Phase
    upstream: list[Model]
    finished: Finished | None
    start: LoadedModel
    loaded: LoadedModel
    before: Measured
    judged_first: Measured
    after: Measured
    reference: Evidence
    looks: list[Look]
    rounds: int = 0

    def judge(self, what: str) -> Judgement:
        """Returns the gate's judgement of what was measured last, says it, and adds it to the looks."""
        phase, found, start = self.phase, self.after.evidence, self.before.evidence
        judgement = judge_all(
            phase.gate, phase.exam, found, start, self.reference, looks=phase.looks
        )
        self.looks.append((what, judgement))
        say(f"{phase.name}, {what}: {said_of(judgement.words, phase.gate.on_failure)}")
        return judgement


def conclude(
    course: Course, recipe: Recipe, lineage: Lineage, run_dir: pathlib.Path, *, seconds: float
) -> None:
    """Writes the model, what was found of it, what made it, and last the verdict.

    Raises: GateClosed if the gate stays closed and the config does not go on.
    """
    phase, judgement = course.phase, course.looks[-1][1]
    hosts.at(f"{phase.name}, concluding")
    directory, loaded = run_dir / phase.name, course.loaded
    model = save_model(
        directory,
        loaded.params,
        loaded.base,
        loaded.language_unit,
        loaded.read,
        loaded.style.name,
        loaded.new_tokens,
    )
    write_sealed(directory / "summary.json", _summary(course, recipe, model, directory, seconds))
    _write_verdict(course, recipe, lineage, model, directory / "verdict.json")
    _note_end(run_dir, phase, judgement.passed, judgement.words, model.digest)
    write_board(run_dir, [one.name for one in recipe.all_phases])
    if not judgement.passed and phase.gate.on_failure != "continue":
        raise GateClosed(
            f"{phase.name}: {judgement.words} No later phase may start; train further, or waive "
            f"{directory}/verdict.json with a reason (medkor waive)"
        )


def _summary(
    course: Course, recipe: Recipe, model: Model, directory: pathlib.Path, seconds: float
) -> dict[str, Any]:
    phase = course.phase
    return {
        "phase": phase.name,
        "title": phase.title,
        "model": model.digest,
        "rounds": course.rounds,
        "left_out": left_out_of(directory),
        "seconds": round(seconds, 1),
        "upstream": [one.digest for one in course.upstream],
        "gate": dataclasses.asdict(phase.gate),
        "sources": _sources(recipe, phase, course.rounds),
        "before": course.before.summary(),
        "before_remedy": course.judged_first.summary(),
        "after": course.after.summary(),
    }


def _write_verdict(
    course: Course, recipe: Recipe, lineage: Lineage, model: Model, path: pathlib.Path
) -> None:
    phase, finished = course.phase, course.finished
    digests = lineage.write_record(
        phase,
        upstream=course.upstream,
        chosen=course.start.digest,
        model=model.digest,
        rounds=course.rounds,
        resumed=finished,
    )
    write_verdict(
        path,
        phase=phase.name,
        gate=phase.gate,
        looks=course.looks,
        report=course.after.reports[phase.exam],
        reference=course.reference.reports.get(phase.exam),
        reference_account=reference_account(recipe, phase),
        sources=_sources(recipe, phase, course.rounds),
        held_in={"dtype": recipe.dtype, "param_dtype": recipe.param_dtype},
        digests=digests,
        replaced=read_verdict(path) if finished else None,
    )
    if not course.looks[-1][1].passed and phase.gate.on_failure == "continue":
        waive(path, "the config says gate.on_failure='continue'")


def _sources(recipe: Recipe, phase: Phase, rounds: int) -> list[dict[str, str]]:
    """What the phase read, with its licence as configured: verdict, closing summary and model card have to say so."""
    trained = (*phase.train.data, *(phase.remedy.data if rounds else ()))
    judged = tuple(exam.source for exam in recipe.exams_of(phase))
    uses = {
        TRAINED_ON: trained if phase.train.steps or rounds else (),
        "judged by": judged,
        "measured on": (*recipe.held_out, *phase.translations),
    }
    said = ("name", "kind", "path", "subset", "split", "part", "revision", "language")
    return [
        {
            "use": use,
            **{name: getattr(source, name) for name in said},
            "licence": licence_of(source),
            **_translated(recipe, source),
        }
        for use, sources in uses.items()
        for source in sources
    ]


def _translated(recipe: Recipe, source: Source) -> dict[str, str]:
    """Returns into which language the source was put, and by which weights; {} if its rows are read as they are given."""
    if not source.translated_to:
        return {}
    return {
        "translated_to": source.translated_to,
        "translator": source.translator or recipe.weights,
    }


def note_missing_end(run_dir: pathlib.Path, phase: Phase, model_digest: str) -> None:
    """Adds the line of a phase that finished, where its process died between the verdict and that line."""

    def is_missing() -> bool:
        events = [one["event"] for one in read_ledger(run_dir) if one["phase"] == phase.name]
        return events[-1:] != ["finished"]

    if hosts.first(f"does the ledger lack the end of {phase.name}", is_missing):
        judged = read_verdict(run_dir / phase.name / "verdict.json")
        _note_end(run_dir, phase, judged["passed"], judged["judgement"]["words"], model_digest)


def _note_end(
    run_dir: pathlib.Path, phase: Phase, passed: bool, words: str, model_digest: str
) -> None:
    note(run_dir, phase, "finished", passed=passed, words=words, model=model_digest)


def note(run_dir: pathlib.Path, phase: Phase, event: str, **what: Any) -> None:
    """Adds a line to the run's ledger."""
    entry = {
        "phase": phase.name,
        "event": event,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **what,
    }
    write_json(run_dir / "ledger.json", [*read_ledger(run_dir), entry])
