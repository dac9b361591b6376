"""What follows a report's opening, as JSON types: scores, answers, examples, curves, costs, and how all of it was made.

    sections = make_sections(run, price=None)
    sections["exams"], sections["examples"], sections["lineage"]

Every number is read or counted from the run's files. Examples are bounded, and how many were left out is said.
"""

from __future__ import annotations

import collections
from typing import Any

from medkor_jax.data.question import LETTERS
from medkor_jax.eval.report import Report
from medkor_jax.report.english import gate_looks, over_the_run
from medkor_jax.report.files import PhaseFiles, RunFiles
from medkor_jax.report.moved import first_asked, reference_of
from medkor_jax.report.origins import lineage_of
from medkor_jax.run.summary import overall_of

MAX_EXAMPLES = 400  # a page stays quick
_TEXT = 600  # characters of a text that a model wrote


def make_sections(run: RunFiles, price: float | None = None) -> dict[str, Any]:
    """price: of an hour of the machine, in whatever money."""
    examples, left_out = _examples(run)
    return {
        "phases": [_phase(phase) for phase in run.phases],
        "planned": list(run.on_disk.planned),
        "curves": [curve for phase in run.phases for curve in _curves(phase)],
        "english": over_the_run(run),
        "gate_looks": gate_looks(run),
        "retention": [one for phase in run.phases for one in _retention(phase)],
        "rewards": [one for phase in run.phases for one in _rewards(phase)],
        "exams": _exams(run),
        "letters": _letters(run),
        "examples": examples,
        "examples_left_out": left_out,
        "final": [look for sat in run.final.values() for look in sat["looks"]],
        "costs": _costs(run, price),
        "lineage": lineage_of(run),
    }


def _phase(phase: PhaseFiles) -> dict[str, Any]:
    return {
        "name": phase.name,
        "title": phase.title,
        "state": phase.state,
        "said": phase.said,
        "rounds": phase.summary.get("rounds", 0),
        "looks": len(phase.verdict.get("looks", ())),
        "exams": {
            name: [_begun_with(phase, name), overall_of(exam)]
            for name, exam in phase.exams("after").items()
        },
        "losses": {
            name: [phase.losses("before").get(name), nats]
            for name, nats in phase.losses("after").items()
        },
        "translations": _translations(phase),
        "left_out": {stage.name: stage.left_out for stage in phase.stages if stage.left_out},
        "without": phase.without,
        "waived": ((phase.verdict.get("waiver") or {}).get("reason", "")),
    }


def _begun_with(phase: PhaseFiles, exam: str) -> dict[str, Any] | None:
    found = phase.exams("before").get(exam)
    return overall_of(found) if found else None


def _translations(phase: PhaseFiles) -> list[dict[str, Any]]:
    """Returns a row a direction and metric, with what it was before the phase."""
    rows = []
    before = phase.summary.get("before", {}).get("translations", {})
    for name, pairs in phase.summary.get("after", {}).get("translations", {}).items():
        was = {
            (one["direction"], one["metric"]): one["score"]
            for one in before.get(name, {}).get("scores", ())
        }
        rows += [
            {"name": name, "before": was.get((one["direction"], one["metric"])), **one}
            for one in pairs["scores"]
        ]
    return rows


def _curves(phase: PhaseFiles) -> list[dict[str, Any]]:
    """Returns the loss of each stage, and of its held-out text where it is measured."""
    found = []
    for stage in phase.stages:
        losses = [(row["step"], row["loss"]) for row in stage.rows if row.get("loss") is not None]
        held_out = [
            (row["step"], row["validation_nats"])
            for row in stage.rows
            if row.get("validation_nats") is not None
        ]
        if losses:
            found.append(
                {"phase": phase.name, "stage": stage.name, "loss": losses, "held_out": held_out}
            )
    return found


def _retention(phase: PhaseFiles) -> list[dict[str, Any]]:
    """Returns the divergence from the reference by layer, in nats, at each step that measured it."""
    found = []
    for stage in phase.stages:
        rows = [
            (row["step"], row["layer_kl_nats"]) for row in stage.rows if row.get("layer_kl_nats")
        ]
        if rows:
            found.append(
                {
                    "phase": phase.name,
                    "stage": stage.name,
                    "steps": [s for s, _ in rows],
                    "kl": [kl for _, kl in rows],
                }
            )
    return found


def _rewards(phase: PhaseFiles) -> list[dict[str, Any]]:
    """Returns what the rollouts of a stage earned, by part, and how many groups taught nothing."""
    found = []
    for stage in phase.stages:
        rows = [row for row in stage.rows if "rollout/reward" in row]
        if not rows:
            continue
        parts = sorted({name for row in rows for name in row if name.startswith("rollout/reward_")})
        shown = [
            "rollout/reward",
            *parts,
            "rollout/right",
            "rollout/in_format",
            "rollout/dead_groups",
        ]
        found.append(
            {
                "phase": phase.name,
                "stage": stage.name,
                "steps": [row["step"] for row in rows],
                "series": {
                    name.removeprefix("rollout/"): [row.get(name) for row in rows] for name in shown
                },
            }
        )
    return found


def _exams(run: RunFiles) -> list[dict[str, Any]]:
    """Returns a row an exam and group (all, each subject, each year) of the last phase, beside the first model asked."""
    if not run.chain:
        return []
    rows, last = [], run.chain[-1]
    for name, exam in last.exams("after").items():
        begin = first_asked(run, name)
        before = begin[0].exams(begin[1])[name]["scores"] if begin else []
        was = {(one["group"], one["exam"], one["year"]): one for one in before}
        for score in exam["scores"]:
            if score["group"] != "all" and score["n"] == overall_of(exam)["n"]:
                continue  # one subject, one year: the same once more
            key = (score["group"], score["exam"], score["year"])
            rows.append(
                {
                    "name": name,
                    "score": score,
                    "before": was.get(key),
                    "style": exam.get("style", ""),
                }
            )
    return rows


def _letters(run: RunFiles) -> list[dict[str, Any]]:
    """Returns how often each letter is answered and is right, and what could not be read, by exam."""
    found = []
    for name in run.chain[-1].exams("after") if run.chain else ():
        report = run.chain[-1].report("after", name)
        if report is None:
            continue
        n = max(a.n_options for a in report.answers)
        answered = collections.Counter(a.predicted for a in report.answers)
        right = collections.Counter(a.key for a in report.answers)
        found.append(
            {
                "exam": name,
                "n": len(report.answers),
                "letters": [(letter, answered[letter], right[letter]) for letter in LETTERS[:n]],
                "unread": answered[None],
                "alarms": list(report.alarming),
                "reasoning": report.reasoning.words if report.reasoning else "",
            }
        )
    return found


def _examples(run: RunFiles) -> tuple[list[dict[str, Any]], int]:
    """Returns what was asked and answered: first what changed since the reference, then the rest, MAX_EXAMPLES in all, and how
    many were left out."""
    found: list[dict[str, Any]] = []
    reference = reference_of(run)
    for name in run.chain[-1].exams("after") if run.chain else ():
        report = run.chain[-1].report("after", name)
        if report is None:
            continue
        begin = first_asked(run, name, reference) or first_asked(run, name)
        found += _of_exam(
            name,
            report,
            begin[0].report(begin[1], name) if begin else None,
            run.questions.get(name, {}),
        )
    found.sort(key=lambda one: one["kind"] not in ("gained", "lost"))
    return found[:MAX_EXAMPLES], max(0, len(found) - MAX_EXAMPLES)


def _of_exam(
    name: str, report: Report, before: Report | None, asked: dict[str, Any]
) -> list[dict[str, Any]]:
    was = {a.id: a for a in before.answers} if before else {}
    found = []
    for a in report.answers:
        earlier, question = was.get(a.id), asked.get(a.id, {})
        kind = "right" if a.correct else "wrong"
        if earlier is not None and earlier.correct != a.correct:
            kind = "gained" if a.correct else "lost"
        found.append(
            {
                "exam": name,
                "id": a.id,
                "kind": kind,
                "key": a.key,
                "said": a.predicted or "",
                "before": (earlier.predicted or "") if earlier else "",
                "question": question.get("question", ""),
                "options": list(question.get("options", ())),
                "text": a.text[:_TEXT],
            }
        )
    return found


def _costs(run: RunFiles, price: float | None) -> list[dict[str, Any]]:
    rows = []
    for phase, on_disk in zip(run.phases, run.on_disk.phases):
        trained = [row for stage in phase.stages for row in stage.rows if "tokens" in row]
        memory = [row["device_peak_bytes"] for row in trained if row.get("device_peak_bytes")]
        seconds = on_disk.seconds
        rows.append(
            {
                "phase": phase.name,
                "seconds": seconds,
                "steps": len(trained),
                "tokens": sum(row["tokens"] for row in trained),
                "bytes_on_disk": on_disk.n_bytes,
                "device_bytes": max(memory, default=None),
                "cost": None if price is None or seconds is None else price * seconds / 3600,
            }
        )
    return rows
