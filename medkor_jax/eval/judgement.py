"""Whether a phase was good enough for the next one to start.

    judgement = judge(Gate(threshold=0.97, reading="non_inferior"), report, reference_report)
    print(judgement.words)

What is asked, and how it may be read: `eval.gate`. Several looks at the same questions, one gate: whoever trains a
remedy until the gate opens looks up to 1 + rounds times. The error that `confidence` allows is spent evenly over them
(`stats.confidence_of_look`).

A comparison in which a model does no better than guessing shows nothing, so it does not pass unless the
gate says `allow_chance`, and then the words say so. Verdict files are in `eval.verdict`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from medkor_jax.eval import stats
from medkor_jax.eval.gate import MIN_QUESTIONS, Condition, Gate
from medkor_jax.eval.metric import is_at_chance, outcomes, pairing
from medkor_jax.eval.report import Report

_ROUNDING = 1e-9  # 97 of 100 is 0.97, whatever the last bit says


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was measured of one model: reports by exam, losses in nats a token by held-out text."""

    reports: Mapping[str, Report]
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One condition judged; of a gate that asks for more, the first of `conditions` with the words of all."""

    passed: bool
    name: str
    metric: str
    reading: str
    score: float  # of the model alone: accuracy, mean probability, share, or nats a token
    reference: float | None  # the same of what it is compared with
    value: float  # what is compared: score, score - reference, or score - threshold x reference
    bound: (
        float  # what the interval's lower end must reach; for a loss, what the score may not exceed
    )
    interval: stats.Interval | None  # of `value`; None for a loss
    confidence: float  # of this interval, the looks taken into account
    looks: int
    n: int  # questions; 0 for a loss
    p_value: (
        float | None
    )  # exact McNemar, both models equally often right; None where nothing is counted in pairs
    at_chance: tuple[str, ...]  # which of "the model", "the reference" do no better than guessing
    words: str
    conditions: tuple[Judgement, ...] = ()

    def to_json(self) -> dict[str, Any]:
        stored = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("score", "value"):  # a loss may be NaN, which JSON has no word for
            stored[name] = stored[name] if math.isfinite(stored[name]) else None
        return stored | {
            "interval": None if self.interval is None else list(self.interval),
            "at_chance": list(self.at_chance),
            "conditions": [condition.to_json() for condition in self.conditions],
        }


def judge(
    gate: Gate | Condition,
    report: Report,
    reference: Report | None = None,
    *,
    looks: int = 0,
    confidence: float = 0.0,
) -> Judgement:
    """Returns whether `report` opens `gate` by its own exam, with the numbers and one plain sentence on why.

    looks: at these questions, all rounds and candidates together (default: those of the gate's rounds). confidence: of
    all looks together (default: the gate's; a condition has none of its own).

    Raises: ValueError if the reading needs a reference and there is none, if the reference answered other
    questions or was asked in another way, or if the reports do not hold what the metric reads.
    """
    if gate.reading != "absolute" and reference is None:
        raise ValueError(
            f"a gate read as {gate.reading!r} compares with a reference report, and none was given"
        )
    if not isinstance(gate, Condition):
        looks, confidence = looks or gate.looks, confidence or gate.confidence
    confidence = stats.confidence_of_look(confidence, looks)
    mine, theirs = outcomes(report, gate.metric), None
    if reference is not None:
        theirs = outcomes(reference, gate.metric)[pairing(report, reference)]
    if gate.reading == "absolute":
        found = _measure_alone(gate, mine, confidence)
    else:
        found = _measure_against(gate, mine, theirs, confidence)
    n = len(mine)
    reached = found.interval.low >= found.bound - _ROUNDING and n >= MIN_QUESTIONS
    at_chance = _who_is_at_chance(gate, report, reference)
    passed = reached and (not at_chance or gate.allow_chance)
    score, other = float(mine.mean()), None if theirs is None else float(theirs.mean())
    shown = "" if other is None else _shown(gate.metric, reference, other)
    said = found.words.format(own=_shown(gate.metric, report, score), other=shown)
    few = ""
    if n < MIN_QUESTIONS:
        few = f"; {n} questions are fewer than the {MIN_QUESTIONS} that can open a gate"
    spent = f" ({looks} looks, each at {confidence:.2%})" if looks > 1 else ""
    counts = _counts(mine, theirs)
    return Judgement(
        passed=passed,
        name=getattr(gate, "name", report.source),
        metric=gate.metric,
        reading=gate.reading,
        score=score,
        reference=other,
        value=found.value,
        bound=found.bound,
        interval=found.interval,
        confidence=confidence,
        looks=looks,
        n=n,
        p_value=None if counts is None else stats.mcnemar_exact(counts),
        at_chance=at_chance,
        words=f"The gate {'opens' if passed else 'stays closed'}: {said}{few}{spent}{_chance_words(gate, at_chance, reached)}.",
    )


def _who_is_at_chance(
    gate: Gate | Condition, report: Report, reference: Report | None
) -> tuple[str, ...]:
    """Returns "the model" and "the reference" as far as they are. An absolute gate does not lean on its reference, so
    only the model's own score counts there."""
    compared = {"the model": report}
    if reference is not None and gate.reading != "absolute":
        compared["the reference"] = reference
    return tuple(who for who, one in compared.items() if is_at_chance(one, gate.metric))


class _Measured(NamedTuple):
    """What the reading compares. words: a sentence with places for {own} and {other} score."""

    value: float
    bound: float
    interval: stats.Interval
    words: str


def _measure_alone(gate: Gate | Condition, mine: np.ndarray, confidence: float) -> _Measured:
    if mine.dtype == bool:
        interval = stats.exact_share(int(mine.sum()), len(mine), confidence)
    else:
        interval = stats.bootstrap_mean(mine, confidence)
    words = f"{{own}} {_percent(interval)}, whose lower end must reach the required {gate.threshold:.1%} (absolute)"
    return _Measured(float(mine.mean()), gate.threshold, interval, words)


def _measure_against(
    gate: Gate | Condition, mine: np.ndarray, theirs: np.ndarray, confidence: float
) -> _Measured:
    """mine, theirs: outcomes of the same questions, in the same order."""
    is_relative, counts = gate.reading == "relative", _counts(mine, theirs)
    kept = gate.threshold if is_relative else 1.0
    value, bound = (
        float(mine.mean()) - kept * float(theirs.mean()),
        0.0 if is_relative else -(1 - gate.threshold),
    )
    if counts is None:
        interval = stats.bootstrap_mean(mine - kept * theirs, confidence)
    else:
        interval = stats.paired_difference(counts, confidence, kept)
    points = f"{100 * value:+.1f} points [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    if is_relative:
        asked = f"{points} from {kept:.1%} of it, whose lower end must be at least 0 (relative)"
    else:
        asked = f"a difference of {points}, whose lower end must be at least {100 * bound:+.1f} (non-inferior)"
    return _Measured(value, bound, interval, f"{{own}} against the reference's {{other}}: {asked}")


def _counts(mine: np.ndarray, theirs: np.ndarray | None) -> stats.PairedCounts | None:
    """Returns how the two did in pairs; None where there is no other, or nothing is counted."""
    return None if theirs is None or mine.dtype != bool else stats.PairedCounts.of(mine, theirs)


def judge_all(
    gate: Gate, exam: str, found: Evidence, start: Evidence, reference: Evidence, *, looks: int = 0
) -> Judgement:
    """Returns the judgement of all that a gate asks: of the phase's own `exam` against `reference`, and of `requires`.

    Raises: ValueError as `judge`.
    """
    looks = looks or gate.looks
    judged = [
        judge(
            gate,
            found.reports[exam],
            reference.reports[exam] if gate.reading != "absolute" else None,
            looks=looks,
        )
    ]
    judged[0] = dataclasses.replace(judged[0], name=exam)
    for condition in gate.requires:
        other = start if condition.against == "start" else reference
        if condition.held_out:
            judged.append(
                _judge_loss(
                    condition,
                    found.losses[condition.held_out],
                    other.losses[condition.held_out],
                    looks,
                )
            )
        else:
            compared = other.reports[condition.exam] if condition.reading != "absolute" else None
            judged.append(
                judge(
                    condition,
                    found.reports[condition.exam],
                    compared,
                    looks=looks,
                    confidence=gate.confidence,
                )
            )
    if not gate.requires:
        return judged[0]
    closing = [judgement for judgement in judged if not judgement.passed]
    said = "; ".join(f"{j.name}: {_fragment(j)}" for j in closing or judged[:1])
    holding = ", ".join(j.name for j in judged if j.passed)
    if closing:
        words = f"The gate stays closed by {len(closing)} of {len(judged)} conditions: {said}."
        words += f" These hold: {holding}." if holding else ""
    else:
        words = f"The gate opens, all {len(judged)} conditions hold ({holding}): {said}."
    return dataclasses.replace(judged[0], passed=not closing, words=words, conditions=tuple(judged))


def _judge_loss(condition: Condition, loss: float, before: float, looks: int) -> Judgement:
    bound = before + condition.rise_nats
    passed = loss <= bound + _ROUNDING  # False for NaN
    than = "its start" if condition.against == "start" else "the reference"
    words = f"{loss:.3f} nats a token, where at most {bound:.3f} are allowed ({than}: {before:.3f}, and {condition.rise_nats:g})"
    return Judgement(
        passed=passed,
        name=condition.name,
        metric="loss",
        reading="not_above",
        score=loss,
        reference=before,
        value=loss,
        bound=bound,
        interval=None,
        confidence=1.0,
        looks=looks,
        n=0,
        p_value=None,
        at_chance=(),
        words=f"The gate {'opens' if passed else 'stays closed'}: {words}.",
    )


def _shown(metric: str, report: Report, score: float) -> str:
    right = f"{report.overall.accuracy:.1%} ({report.overall.correct} of {report.overall.n})"
    if metric == "accuracy":
        return right
    if metric == "probability":
        return f"{score:.1%} mean probability of the right option (accuracy {right})"
    return f"{score:.1%} {metric} ({report.overall.n} answers)"


def _percent(interval: stats.Interval) -> str:
    return f"[{interval.low:.1%}, {interval.high:.1%}]"


def _fragment(judgement: Judgement) -> str:
    return judgement.words.split(": ", 1)[1].removesuffix(".")


def _chance_words(gate: Gate | Condition, at_chance: tuple[str, ...], reached: bool) -> str:
    if not at_chance:
        return ""
    who = f"{' and '.join(at_chance)} {'is' if len(at_chance) == 1 else 'are'} at chance; passing says nothing"
    if not reached:
        return f"; besides, {who}"
    if gate.allow_chance:
        return f", allowed although {who}"
    return f"; the bound is reached, but {who} (allow_chance=True lets it count)"
