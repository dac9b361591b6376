"""What follows a report's opening, as JSON types: scores, answers, examples, curves, costs, and how all of it was made.

    sections = make_sections(run, price=None)
    sections["exams"], sections["examples"], sections["lineage"]

Every number is read or counted from the run's files. Examples are bounded, and how many were left out is said.
"""

from __future__ import annotations

import collections
from typing import Any

from medkor_jax.data.licences import TRAINED_ON, licence_notes
from medkor_jax.data.question import LETTERS
from medkor_jax.eval.report import Report
from medkor_jax.report.files import PhaseFiles, RunFiles
from medkor_jax.report.opening import first_asked, reference_of

MAX_EXAMPLES = 400  # a page stays quick
_TEXT = 600  # characters of a text that a model wrote


def make_sections(run: RunFiles, price: float | None = None) -> dict[str, Any]:
    """price: of an hour of the machine, in whatever money."""
    examples, left_out = _examples(run)
    return {
        "phases": [_phase(phase) for phase in run.phases],
        "planned": list(run.on_disk.planned),
        "curves": [curve for phase in run.phases for curve in _curves(phase)],
        "english": _english_over_the_run(run),
        "retention": [one for phase in run.phases for one in _retention(phase)],
        "rewards": [one for phase in run.phases for one in _rewards(phase)],
        "exams": _exams(run),
        "letters": _letters(run),
        "examples": examples,
        "examples_left_out": left_out,
        "final": [look for sat in run.final.values() for look in sat["looks"]],
        "costs": _costs(run, price),
        "lineage": _lineage(run),
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
            name: [_score(phase.exams("before").get(name)), _score(exam)]
            for name, exam in phase.exams("after").items()
        },
        "losses": {
            name: [phase.losses("before").get(name), nats]
            for name, nats in phase.losses("after").items()
        },
    }


def _score(exam: dict[str, Any] | None) -> dict[str, Any] | None:
    if exam is None:
        return None
    return next(score for score in exam["scores"] if score["group"] == "all")


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


def _english_over_the_run(run: RunFiles) -> dict[str, Any]:
    """Returns every measurement of the exam that the last gate asks, in order, and the least that the gate asks for where that is
    a share of right answers."""
    if not run.chain:
        return {}
    exam = run.chain[-1].verdict.get("judgement", {}).get("name", "")
    points: list[dict[str, Any]] = []
    for phase in run.chain:
        for when in ("before", "before_remedy", "after"):
            found = _score(phase.exams(when).get(exam))
            if found and (not points or found != points[-1]["score"]):
                points.append({"at": f"{phase.name}, {when.replace('_', ' ')}", "score": found})
    judged = run.chain[-1].verdict.get("judgement") or {}
    line = None
    if judged.get("metric") == "accuracy":
        line = (
            judged["bound"]
            if judged["reading"] == "absolute"
            else (judged["reference"] or 0) + judged["bound"]
        )
    return {"exam": exam, "points": points, "line": line}


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


def _lineage(run: RunFiles) -> dict[str, Any]:
    """Returns digests, starts and licences: what would have to be the same for the same run again."""
    trained_on = [
        source
        for phase in run.phases
        for source in phase.summary.get("sources", ())
        if source["use"] == TRAINED_ON
    ]
    return {
        "phases": [
            {
                "phase": phase.name,
                "digests": phase.verdict.get("digests", {}),
                "starts": phase.provenance.get("starts", []),
                "config": phase.provenance.get("config", ""),
            }
            for phase in run.phases
        ],
        "sources": _distinct(
            [source for phase in run.phases for source in phase.summary.get("sources", ())]
        ),
        "licences": licence_notes(trained_on),
        "translated": run.translated,
    }


def _distinct(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(
        {tuple(sorted((k, str(v)) for k, v in one.items())): one for one in sources}.values()
    )
