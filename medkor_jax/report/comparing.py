"""Runs side by side: which is better on the same questions, and whether one can tell.

    compared = compare([read_run(one) for one in directories])
    print(as_table(compared))

The first run is what the others are compared with: shares of right answers by McNemar's exact test and the paired interval, the
probability of the right option by bootstrap over questions. Where the questions, or how they were asked, differ, that is said
instead. Held-out losses have no interval: a run keeps their mean, not each text's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medkor_jax.bar import in_words
from medkor_jax.data.contents import checksum
from medkor_jax.eval import stats
from medkor_jax.eval.metric import metric_needs, outcomes, pairing
from medkor_jax.eval.report import Report
from medkor_jax.report.files import RunFiles
from medkor_jax.run.changes import change_between


def compare(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Returns {"runs", "exams", "losses", "costs"}, as JSON types.

    Raises: ValueError if there are fewer than two runs, or one has no finished phase.
    """
    if len(runs) < 2:
        raise ValueError("one run is given; at least two can be compared")
    for run in runs:
        if not run.chain:
            raise ValueError(f"{run.on_disk.directory} has no finished phase to compare")
    last = [run.chain[-1] for run in runs]
    exams = dict.fromkeys(name for phase in last for name in phase.exams("after"))
    texts = dict.fromkeys(name for phase in last for name in phase.losses("after"))
    return {
        "runs": [
            {"run": str(run.on_disk.directory), "phase": phase.name, "state": run.on_disk.state}
            for run, phase in zip(runs, last)
        ],
        "exams": [_exam(name, runs) for name in exams],
        "losses": [
            {"text": name, "nats": [phase.losses("after").get(name) for phase in last]}
            for name in texts
        ],
        "costs": [
            {
                "seconds": sum(phase.seconds or 0 for phase in run.on_disk.phases),
                "tokens": sum(
                    row.get("tokens", 0)
                    for phase in run.phases
                    for stage in phase.stages
                    for row in stage.rows
                ),
            }
            for run in runs
        ],
    }


def _exam(name: str, runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Returns the score of each run, and what of it can be told beside the first's."""
    reports = [run.chain[-1].report("after", name) for run in runs]
    first, found = reports[0], []
    asked = [run.questions.get(name) for run in runs]
    for report, questions in zip(reports, asked):
        if report is None:
            found.append(
                {
                    "score": None,
                    "beside": None,
                    "why_not": "not asked, or its answers are not there",
                }
            )
            continue
        score = report.overall
        said: dict[str, Any] = {
            "accuracy": score.accuracy,
            "low": score.low,
            "high": score.high,
            "n": score.n,
        }
        beside, why_not = None, ""
        if report is not first:
            beside, why_not = _beside(first, report, asked[0], questions)
        found.append({"score": said, "beside": beside, "why_not": why_not})
    return {"exam": name, "runs": found}


def _beside(
    first: Report | None, other: Report, asked: Any, questions: Any
) -> tuple[dict[str, Any] | None, str]:
    """Returns what can be told of `other` beside `first`, or why they cannot be compared."""
    if first is None:
        return None, "the first run was not asked this, or its answers are not there"
    if asked and questions and checksum(asked) != checksum(questions):
        return None, "other questions than the first run's"
    try:
        change = change_between(first, other)
    except ValueError as error:
        return None, str(error)
    found = {
        "points": 100 * change.difference,
        "low": 100 * change.interval.low,
        "high": 100 * change.interval.high,
        "p_value": change.p_value,
        "verdict": {"rose": "better", "fell": "worse"}.get(change.verdict, "cannot be told apart"),
        "probability": None,
    }
    if not metric_needs("probability", other.mode):
        mine, theirs = outcomes(other, "probability"), outcomes(first, "probability")
        moved = mine - theirs[pairing(other, first)]
        low, high = stats.bootstrap_mean(moved)
        found["probability"] = {
            "points": 100 * float(moved.mean()),
            "low": 100 * low,
            "high": 100 * high,
        }
    return found, ""


def as_table(compared: dict[str, Any]) -> str:
    """Returns the comparison as lines for a terminal; the runs are numbered from 1."""
    lines = []
    for number, run in enumerate(compared["runs"], 1):
        said = "what the others are compared with" if number == 1 else "compared with 1"
        lines.append(f"{number}  {run['run']} ({run['phase']}, {run['state']}): {said}")
    for exam in compared["exams"]:
        lines += ["", f"exam {exam['exam']}"]
        lines += [f"  {number}  {_exam_words(one)}" for number, one in enumerate(exam["runs"], 1)]
    for text in compared["losses"]:
        shown = (
            f"{number}: {'-' if x is None else f'{x:.3f}'}"
            for number, x in enumerate(text["nats"], 1)
        )
        lines += [
            "",
            f"held-out loss, {text['text']}, nats a token: {', '.join(shown)} (no interval)",
        ]
    costs = (
        f"{number}: {in_words(cost['seconds'])}, {cost['tokens']:,.0f} tokens trained"
        for number, cost in enumerate(compared["costs"], 1)
    )
    return "\n".join([*lines, "", f"cost: {'; '.join(costs)}"])


def _exam_words(one: dict[str, Any]) -> str:
    if one["score"] is None:
        return one["why_not"]
    score, beside = one["score"], one["beside"]
    words = f"{score['accuracy']:.1%} of {score['n']} [{score['low']:.1%}, {score['high']:.1%}]"
    if one["why_not"]:
        return f"{words}; not compared: {one['why_not']}"
    if beside is None:
        return words
    words += f"; {_points(beside)}, McNemar p {beside['p_value']:.3f}: {beside['verdict']}"
    if sure := beside["probability"]:
        words += f"; probability of the right option {_points(sure)}"
    return words


def _points(found: dict[str, Any]) -> str:
    return f"{found['points']:+.1f} points [{found['low']:+.1f}, {found['high']:+.1f}]"
