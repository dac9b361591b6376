"""English over a run, twice: its exam's share of right answers at every measurement, and what the gates read of it.

    over_the_run(run)["points"]     # {"at": "phase3", "score": {"accuracy": 0.5, "low": ..., "high": ...}}
    gate_looks(run)["points"]       # {"at": "phase3", "score": 0.44, "low": 0.38, "high": 0.51, "line": 0.29, "passed": True}

A gate compares with its reference, question by question: its interval is of that comparison, put here on the score's own scale,
where it opens if the lower end is not below the line. Nothing is judged anew.
"""

from __future__ import annotations

from typing import Any

from medkor_jax.report.files import PhaseFiles, RunFiles
from medkor_jax.run.summary import overall_of


def over_the_run(run: RunFiles) -> dict[str, Any]:
    """Returns the score of every model that was asked the exam of the last gate, in order; {} if no phase has finished."""
    if not run.chain:
        return {}
    exam = run.chain[-1].verdict.get("judgement", {}).get("name", "")
    points, model = [], ""
    for phase in run.chain:
        for when, said in _moments(phase):
            asked, digest = phase.exams(when).get(exam), phase.summary[when]["digest"]
            if asked and digest != model:  # a phase starts from the model that the one before left
                points.append({"at": f"{phase.name}{said}", "score": overall_of(asked)})
                model = digest
    return {"exam": exam, "points": points}


def _moments(phase: PhaseFiles) -> list[tuple[str, str]]:
    """Returns when a phase was measured, and how that is called."""
    if not phase.summary.get("rounds"):
        return [("before", ", start"), ("after", "")]
    return [("before", ", start"), ("before_remedy", ", trained"), ("after", "")]


def gate_looks(run: RunFiles) -> dict[str, Any]:
    """Returns the looks of all gates that read the same of the same exam as the last one; {} if there are none."""
    judged = [phase for phase in run.chain if phase.verdict]
    if not judged:
        return {}
    last = judged[-1].verdict["judgement"]
    points, left_out = [], 0
    for phase in judged:
        looks = phase.verdict["looks"]
        for look in looks:
            if (look["name"], look["metric"]) != (last["name"], last["metric"]):
                left_out += 1
            elif look["interval"] is not None and look["score"] is not None:
                is_only = len(looks) == 1
                points.append(
                    {"at": phase.name if is_only else f"{phase.name}, {look['of']}"}
                    | _on_its_scale(look)
                )
    return {"exam": last["name"], "metric": last["metric"], "points": points, "left_out": left_out}


def _on_its_scale(look: dict[str, Any]) -> dict[str, Any]:
    compared_with = (
        look["score"] - look["value"]
    )  # nothing, the reference's score, or a share of it
    low, high = look["interval"]
    return {
        "score": look["score"],
        "low": low + compared_with,
        "high": high + compared_with,
        "line": look["bound"] + compared_with,
        "passed": look["passed"],
    }
