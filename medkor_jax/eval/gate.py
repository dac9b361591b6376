"""Whether a phase was good enough for the next one to start.

    gate = Gate(threshold=0.97, reading="non_inferior")
    judgement = judge(gate, report, reference_report)
    print(judgement.words)

"97 %" can be read three ways, and a gate says which it means:
    absolute       at least 97 % of the answers are right
    relative       at least 97 % of the reference's own score on the same questions
    non_inferior   the paired interval of (score - reference) lies wholly above -3 points, so that a lucky
                   draw of questions is not taken for a kept ability
`relative` compares two point estimates and `absolute` one with a number; neither asks how sure they are.

A comparison in which a model does no better than guessing shows nothing, so it does not pass unless the
gate says `allow_chance`, and then the words say so. What follows a closed gate (`on_failure`, `rounds`) is
carried here as configuration and acted on by the pipeline. Verdict files are in `eval.verdict`.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Any

from medkor_jax.eval import stats
from medkor_jax.eval.scores import Report

METRICS = ("accuracy",)
READINGS = ("absolute", "relative", "non_inferior")
ON_FAILURE = ("retain", "train", "stop", "continue")
_ROUNDING = 1e-9  # 97 of 100 is 0.97, whatever the last bit says


@dataclasses.dataclass(frozen=True)
class Gate:
    """What must hold before the next phase may start."""

    metric: str = "accuracy"
    threshold: Annotated[float, "> 0", "<= 1"] = 0.97
    reading: str = "non_inferior"
    confidence: Annotated[float, "> 0", "< 1"] = 0.95
    on_failure: str = "stop"
    rounds: Annotated[int, ">= 1"] = 1  # times the remedy may be trained while the gate stays closed
    allow_chance: bool = False

    def __post_init__(self) -> None:
        for name, valid in (("metric", METRICS), ("reading", READINGS), ("on_failure", ON_FAILURE)):
            value = getattr(self, name)
            if value not in valid:
                near = difflib.get_close_matches(str(value), valid, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"gate {name} is {value!r}, which is none of {', '.join(valid)}{hint}")
        for name in ("threshold", "confidence"):
            if not 0 < getattr(self, name) < 1 and not (name == "threshold" and self.threshold == 1):
                raise ValueError(f"gate {name} is {getattr(self, name)}; it is a share between 0 and 1 (0.97, not 97)")
        if self.rounds < 1:
            raise ValueError(f"gate rounds is {self.rounds}; a remedy is tried at least once (on_failure='stop' for none)")


@dataclasses.dataclass(frozen=True)
class Judgement:
    passed: bool
    reading: str
    value: float  # what is compared: accuracy, or (score - reference) for non_inferior
    bound: float  # what it is compared with; for non_inferior the bound of the interval's lower end
    interval: stats.Interval  # of `value`
    reference: float | None  # the reference's accuracy
    p_value: float | None  # exact McNemar, both models equally often right; None without a reference
    at_chance: tuple[str, ...]  # which of "the model", "the reference" do no better than guessing
    words: str

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "interval": list(self.interval), "at_chance": list(self.at_chance)}


def judge(gate: Gate, report: Report, reference: Report | None = None) -> Judgement:
    """Returns whether `report` opens `gate`, with the numbers and one plain sentence on why.

    Raises: ValueError if the reading needs a reference and there is none, or if the reference answered other
    questions or was asked in another way.
    """
    if gate.reading != "absolute" and reference is None:
        raise ValueError(f"a gate read as {gate.reading!r} compares with a reference report, and none was given")
    first, n = report.overall, report.overall.n
    counts = None if reference is None else _pair(report, reference)

    interval = stats.wilson(first.correct, n, gate.confidence)
    if gate.reading == "absolute":
        value, bound, decisive = first.accuracy, gate.threshold, first.accuracy
        compared = f"{_share(report)} against the required {gate.threshold:.1%} (absolute)"
    elif gate.reading == "relative":
        value, bound, decisive = first.accuracy, gate.threshold * reference.overall.accuracy, first.accuracy
        compared = (
            f"{_share(report)} against {bound:.1%}, which is {gate.threshold:.1%} of the reference's "
            f"{_share(reference)} (relative)"
        )
    else:
        interval = stats.paired_difference(counts, gate.confidence)
        value, bound, decisive = counts.difference, -(1 - gate.threshold), interval.low
        compared = (
            f"{_share(report)} against the reference's {_share(reference)}: a difference of {100 * value:+.1f} points "
            f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}], whose lower end must be at least "
            f"{100 * bound:+.1f} (non-inferior)"
        )
    reached = decisive >= bound - _ROUNDING

    # An absolute gate does not lean on its reference, so only the model's own score counts there.
    compared_reports = {"the model": report, "the reference": reference if gate.reading != "absolute" else None}
    at_chance = tuple(who for who, r in compared_reports.items() if r is not None and r.is_at_chance)
    passed = reached and (not at_chance or gate.allow_chance)
    words = f"The gate {'opens' if passed else 'stays closed'}: {compared}{_chance_words(gate, at_chance, reached)}."
    return Judgement(
        passed=passed,
        reading=gate.reading,
        value=value,
        bound=bound,
        interval=interval,
        reference=None if reference is None else reference.overall.accuracy,
        p_value=None if counts is None else stats.mcnemar_exact(counts),
        at_chance=at_chance,
        words=words,
    )


def _share(report: Report) -> str:
    return f"{report.overall.accuracy:.1%} ({report.overall.correct} of {report.overall.n})"


def _chance_words(gate: Gate, at_chance: tuple[str, ...], reached: bool) -> str:
    if not at_chance:
        return ""
    who = f"{' and '.join(at_chance)} {'is' if len(at_chance) == 1 else 'are'} at chance; passing says nothing"
    if not reached:
        return f"; besides, {who}"
    if gate.allow_chance:
        return f", allowed although {who}"
    return f"; the bound is reached, but {who} (allow_chance=True lets it count)"


def _pair(report: Report, reference: Report) -> stats.PairedCounts:
    """Returns the paired counts of two reports over the same questions, asked in the same way."""
    for name in ("mode", "shots", "max_new_tokens"):
        mine, theirs = getattr(report, name), getattr(reference, name)
        if mine != theirs:
            raise ValueError(f"the report has {name} {mine!r}, its reference {theirs!r}; evaluate both in the same way")
    keys = {a.id: a.key for a in report.answers}
    reference_answers = {a.id: a for a in reference.answers}
    strangers = sorted(keys.keys() ^ reference_answers.keys())
    if strangers:
        raise ValueError(
            f"the reference answered other questions: {len(strangers)} ids are in only one of the two, first "
            f"{strangers[0]!r} ({len(keys)} here, {len(reference_answers)} there); "
            "evaluate the reference on the same file and limit"
        )
    changed = [id for id, key in keys.items() if reference_answers[id].key != key]
    if changed:
        raise ValueError(
            f"question {changed[0]!r} has key {keys[changed[0]]} here and {reference_answers[changed[0]].key} in the "
            "reference: the exam file changed; evaluate the reference again"
        )
    return stats.PairedCounts.of(
        [a.correct for a in report.answers], [reference_answers[a.id].correct for a in report.answers]
    )
