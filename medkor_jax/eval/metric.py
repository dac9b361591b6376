"""What a gate reads of an exam's answers, question by question.

    outcomes(report, "accuracy")        # bool [answers]: right or not
    outcomes(report, "probability")     # float [answers]: of the right option, among the options

Right answers are what an exam counts. The probability of the right option moves with every question, also where the
answer stays the same, so its mean tells more from the same questions (docs/GATES.md). Of reasoned exams there is also
how they are written. Nothing is decided here.
"""

from __future__ import annotations

import numpy as np

from medkor_jax.data.question import LETTERS
from medkor_jax.eval import stats
from medkor_jax.eval.report import Report

KNOWING = ("accuracy", "probability")  # metrics that guessing has a value of
WRITING = ("format", "one_letter", "form")  # of reasoned exams: the tags, one valid letter, both
METRICS = (*KNOWING, *WRITING)


def outcomes(report: Report, metric: str) -> np.ndarray:
    """Returns what the metric reads of each answer, in order: bool [answers], or float for "probability".

    Raises: ValueError if the answers do not hold it.
    """
    if said := metric_needs(metric, report.mode):
        raise ValueError(said)
    if metric == "probability":
        if any(a.probabilities is None for a in report.answers):
            raise ValueError(
                "metric 'probability' needs every option's probability, which these answers lack; evaluate again"
            )
        return np.array([a.probabilities[LETTERS.index(a.key)] for a in report.answers])
    read = {
        "accuracy": lambda a: a.correct,
        "format": lambda a: a.has_format,
        "one_letter": lambda a: a.predicted is not None,
        "form": lambda a: a.has_format and a.predicted is not None,
    }[metric]
    return np.array([bool(read(a)) for a in report.answers])


def metric_needs(metric: str, mode: str) -> str:
    """Returns the sentence on why an exam asked in `mode` has no such metric; "" if it has."""
    if metric in WRITING and mode != "reason":
        return f"metric {metric!r} is about reasoned answers and the exam is asked in {mode!r} mode; ask it in 'reason' mode"
    if metric == "probability" and mode in ("harness", "reason"):
        return (
            f"metric 'probability' needs the probability of every option, and {mode!r} mode has a text only; "
            "use metric 'accuracy', or ask the exam in 'letter', 'cloze' or 'cloze_norm' mode"
        )
    return ""


def is_at_chance(report: Report, metric: str) -> bool:
    """Returns whether the report cannot be told from guessing; never for how answers are written."""
    if metric == "accuracy":
        return report.is_at_chance
    if metric == "probability":
        guessed = np.array([1 / a.n_options for a in report.answers])
        return stats.bootstrap_mean(outcomes(report, metric) - guessed, report.confidence).low <= 0
    return False


def pairing(report: Report, reference: Report) -> list[int]:
    """Returns for each answer the place of the reference's answer to the same question, asked in the same way."""
    for name in ("mode", "style", "shots", "max_new_tokens", "max_thinking_tokens"):
        mine, theirs = getattr(report, name), getattr(reference, name)
        if mine != theirs:
            raise ValueError(
                f"the report has {name} {mine!r}, its reference {theirs!r}; evaluate both in the same way"
            )
    places = {a.id: i for i, a in enumerate(reference.answers)}
    strangers = sorted({a.id for a in report.answers} ^ places.keys())
    if strangers:
        raise ValueError(
            f"the reference answered other questions: {len(strangers)} ids are in only one of the two, first "
            f"{strangers[0]!r} ({len(report.answers)} here, {len(places)} there); "
            "evaluate the reference on the same file and limit"
        )
    for answer in report.answers:
        theirs = reference.answers[places[answer.id]].key
        if theirs != answer.key:
            raise ValueError(
                f"question {answer.id!r} has key {answer.key} here and {theirs} in the "
                "reference: the exam file changed; evaluate the reference again"
            )
    return [places[a.id] for a in report.answers]
