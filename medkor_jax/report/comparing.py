"""Runs side by side: which is better on the same questions and texts, and whether one can tell.

    compared = compare([read_run(one) for one in directories])
    compared["exams"][0]["runs"][1]["beside"]["verdict"]        # "better", "worse" or "cannot be told apart"

The first run is what the others are compared with. Exams: shares of right answers by McNemar's exact test and the paired
interval, which both have to tell them apart; the probability of the right option by bootstrap over questions. Held-out losses: by
bootstrap over documents. All comparisons of a kind (shares, probabilities, losses) share 95 %: each of n has an interval of
1 - 5 % / n. Where the questions or the text differ, or how they were asked, that is said instead.

What it does not do: say whether a recipe is better. That needs several runs of each, with other seeds; these are two models.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from medkor_jax.eval import stats
from medkor_jax.eval.report import Report
from medkor_jax.report.files import PhaseFiles, RunFiles
from medkor_jax.run.changes import change_between, likelier_between
from medkor_jax.run.facts import differing

FORMAT = 1
CONFIDENCE = 0.95  # of all comparisons of a kind together
MIN_PIECES = 8  # of a text: fewer tell nothing of how much such texts differ
UNTOLD = "cannot be told apart"


@dataclasses.dataclass(frozen=True)
class End:
    """A run, and the phase whose model is compared."""

    run: RunFiles
    phase: PhaseFiles

    @property
    def begun(self) -> list[tuple[PhaseFiles, float | None]]:
        """Returns the phases until this one with their seconds; those of candidates that were not taken cost as well."""
        n = self.run.phases.index(self.phase) + 1
        seconds = (phase.seconds for phase in self.run.on_disk.phases)
        return list(zip(self.run.phases[:n], seconds))

    def asked(self, kind: str, name: str) -> str:
        """Returns the digest of all that was asked, and how; "" where that was not kept."""
        return self.phase.record.get("judged", {}).get(f"{kind}.{name}") or ""


def compare(runs: Sequence[RunFiles], phase: str = "") -> dict[str, Any]:
    """Returns {"runs", "exams", "losses", "costs", ...}, as JSON types. phase: after which they are compared; "": each one's last.

    Raises: ValueError if there are fewer than two runs, or one has not finished the phase.
    """
    if len(runs) < 2:
        raise ValueError("one run is given; at least two can be compared")
    ends = [_end(run, phase) for run in runs]
    asked = [(name, *_answers(name, ends)) for name in _names(ends, PhaseFiles.exams)]
    asked += _finals(ends)
    texts = _names(ends, PhaseFiles.losses)
    of_exams, of_losses = (
        stats.confidence_of_look(CONFIDENCE, max(1, n * (len(runs) - 1)))
        for n in (len(asked), len(texts))
    )
    return {
        "format": FORMAT,
        "runs": [_run(end, ends[0]) for end in ends],
        "confidence": {"together": CONFIDENCE, "exam": of_exams, "loss": of_losses},
        "exams": [_exam(*one, of_exams) for one in asked],
        "losses": [_loss(name, ends, of_losses) for name in texts],
        "costs": [_cost(end) for end in ends],
    }


def _end(run: RunFiles, phase: str) -> End:
    if not run.chain:
        raise ValueError(f"{run.on_disk.directory} has no finished phase to compare")
    found = [one for one in run.chain if phase in ("", one.name)]
    if not found:
        names = ", ".join(one.name for one in run.chain)
        raise ValueError(
            f"{run.on_disk.directory} has not finished a phase {phase!r}; it has {names}"
        )
    return End(run, found[-1])


def _names(ends: Sequence[End], of: Any) -> list[str]:
    return list(dict.fromkeys(name for end in ends for name in of(end.phase, "after")))


def _run(end: End, first: End) -> dict[str, Any]:
    starts = end.phase.provenance.get("starts", ())
    return {
        "run": str(end.run.on_disk.directory),
        "phase": end.phase.name,
        "state": end.run.on_disk.state,
        "model": end.phase.summary["model"],
        "seed": starts[-1]["seed"] if starts else None,
        "devices": starts[-1]["devices"] if starts else "",
        "trained_otherwise": _trained_otherwise(first, end),
    }


def _trained_otherwise(first: End, other: End) -> list[dict[str, Any]]:
    """Returns what decided how the phases that both have were trained, where it is not the same."""
    theirs = {phase.name: phase.record.get("trained", {}) for phase, _ in other.begun}
    return [
        {"phase": phase.name, "what": change.name, "first": change.was, "here": change.now}
        for phase, _ in first.begun
        if phase.name in theirs
        for change in differing(phase.record.get("trained", {}), theirs[phase.name])
    ]


def _answers(name: str, ends: Sequence[End]) -> tuple[list[Report | None], list[str]]:
    """Returns what each run answered, and why the texts of its questions are not the first's: "" where nothing says so."""
    reports = [
        end.phase.report("after", name) if name in end.phase.exams("after") else None
        for end in ends
    ]
    return reports, [_other_texts(name, ends[0], end) for end in ends]


def _other_texts(name: str, first: End, other: End) -> str:
    """Answers name their questions by id; what the ids stood for is in a digest, and in a file beside the run."""
    if first.asked("exams", name) and first.asked("exams", name) == other.asked("exams", name):
        return ""
    texts, theirs = (end.run.questions.get(name, {}) for end in (first, other))
    changed = sorted(
        key
        for key in texts.keys() & theirs.keys()
        if any(texts[key].get(part) != theirs[key].get(part) for part in ("question", "options"))
    )
    if not changed:
        return ""
    return f"other questions than the first run's: {len(changed)} have another text, first {changed[0]!r}"


def _finals(ends: Sequence[End]) -> list[tuple[str, list[Report | None], list[str]]]:
    """Returns what each run's model answered to the final exams that all runs sat: these are kept by the digest of their questions."""
    found = []
    for digest, sat in ends[0].run.final.items():
        if all(digest in end.run.final for end in ends):
            reports = [_last_look(end, end.run.final[digest]["looks"]) for end in ends]
            if any(reports):
                name = f"{sat['looks'][-1]['exam']} (final)"
                found.append((name, reports, [""] * len(ends)))
    return found


def _last_look(end: End, looks: Sequence[dict[str, Any]]) -> Report | None:
    mine = [look for look in looks if look["model"] == end.phase.summary["model"]]
    return _read(end.run.on_disk.directory / mine[-1]["answers"]) if mine else None


def _read(path: pathlib.Path) -> Report | None:
    try:
        return Report.read(path)
    except (OSError, ValueError):
        return None


def _exam(
    name: str, reports: Sequence[Report | None], other_texts: Sequence[str], confidence: float
) -> dict[str, Any]:
    """Returns the score of each run, and what of it can be told beside the first's."""
    first = reports[0]
    found: list[dict[str, Any]] = []
    for i, (report, why_not) in enumerate(zip(reports, other_texts)):
        if report is None:
            why_not = "not asked, or its answers are not there"
            found.append({"score": None, "beside": None, "why_not": why_not})
            continue
        score = report.overall
        beside: dict[str, Any] | None = None
        said: dict[str, Any] = {
            "accuracy": score.accuracy,
            "low": score.low,
            "high": score.high,
            "n": score.n,
        }
        said |= {"mode": report.mode, "alarms": list(report.alarming)}
        if i and not why_not:
            beside, why_not = _beside(first, report, confidence)
        found.append({"score": said, "beside": beside, "why_not": why_not})
    return {"exam": name, "runs": found}


def _beside(
    first: Report | None, other: Report, confidence: float
) -> tuple[dict[str, Any] | None, str]:
    """Returns what can be told of `other` beside `first`, or why they cannot be compared."""
    if first is None:
        return None, "the first run was not asked this, or its answers are not there"
    try:
        change = change_between(first, other, confidence=confidence)
    except ValueError as error:
        return None, str(error)
    told = change.p_value < 1 - confidence
    found = _points(change.difference, change.interval) | {"p_value": change.p_value}
    if not told:
        found["verdict"] = UNTOLD
    return found | {"probability": _of_probabilities(first, other, confidence)}, ""


def _of_probabilities(first: Report, other: Report, confidence: float) -> dict[str, Any] | None:
    """Returns how the mean probability of the right option differs; None where a mode has none, or the answers do not hold it."""
    moved = likelier_between(first, other, confidence=confidence)
    return None if moved is None else _points(moved.difference, moved.interval)


def _points(difference: float, interval: stats.Interval) -> dict[str, Any]:
    low, high = interval
    verdict = "better" if low > 0 else "worse" if high < 0 else UNTOLD
    return {"points": 100 * difference, "low": 100 * low, "high": 100 * high, "verdict": verdict}


def _loss(name: str, ends: Sequence[End], confidence: float) -> dict[str, Any]:
    """Returns the loss of each run on a held-out text, nats a token, and what of it can be told beside the first's."""
    losses = [end.phase.summary["after"]["watch"].get(name) for end in ends]
    first = losses[0]
    found: list[dict[str, Any]] = []
    for i, (loss, end) in enumerate(zip(losses, ends)):
        beside, why_not = None, "" if loss else "not measured"
        if i and loss and first is None:
            why_not = "the first run did not measure this"
        elif i and loss:
            asked = [one.asked("watch", name) for one in (ends[0], end)]
            is_same = asked[0] and asked[0] == asked[1]
            why_not = "" if is_same else "another text than the first run's, or read in another way"
            if is_same:
                beside, why_not = _beside_in_nats(first, loss, confidence)
        nats = loss["nats"] if loss else None
        found.append({"nats": nats, "beside": beside, "why_not": why_not})
    return {"text": name, "runs": found}


def moved_in_nats(first: dict[str, Any], other: dict[str, Any]) -> np.ndarray:
    """Returns by how much each document's nats differ, over the mean tokens of one: their mean is the difference in nats a token.

    first, other: a held-out loss as a phase's summary has it. Raises: ValueError if its documents were cut in another way.
    """
    theirs, mine = (np.array(one["pieces"], float) for one in (first, other))
    if theirs.shape != mine.shape or (theirs[:, 1] != mine[:, 1]).any():
        raise ValueError("the documents were cut in another way")
    return nats_by_document(other) - nats_by_document(first)


def nats_by_document(loss: dict[str, Any]) -> np.ndarray:
    """Returns each document's nats over the mean tokens of one: their mean is the nats a token."""
    nats, tokens = np.array(loss["pieces"], float).T
    return nats / tokens.mean()


def _beside_in_nats(
    first: dict[str, Any], other: dict[str, Any], confidence: float
) -> tuple[dict[str, Any] | None, str]:
    """Both read the same documents in the same shape: a document is a pair of sums."""
    difference = {"nats": other["nats"] - first["nats"], "low": None, "high": None}
    if not all(loss.get("pieces") for loss in (first, other)):
        why = "no interval: one of them kept only its mean, as runs of before did"
        return difference | {"verdict": UNTOLD, "n": 0}, why
    try:
        moved = moved_in_nats(first, other)
    except ValueError as error:
        return None, str(error)
    n = len(moved)
    if n < MIN_PIECES:
        return difference | {"verdict": UNTOLD, "n": n}, f"no interval: only {n} documents"
    low, high = stats.bootstrap_mean(moved, confidence)
    verdict = "better" if high < 0 else "worse" if low > 0 else UNTOLD
    return difference | {"low": low, "high": high, "verdict": verdict, "n": n}, ""


def _cost(end: End) -> dict[str, Any]:
    """Returns what was spent until the phase that is compared, in all and by phase."""
    phases = [
        {
            "phase": phase.name,
            "seconds": seconds,
            "tokens": sum(row.get("tokens", 0) for stage in phase.stages for row in stage.rows),
        }
        for phase, seconds in end.begun
    ]
    return {
        "seconds": sum(one["seconds"] or 0 for one in phases),
        "tokens": sum(one["tokens"] for one in phases),
        "phases": phases,
    }
