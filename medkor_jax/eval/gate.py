"""Whether a phase was good enough for the next one to start.

    gate = Gate(threshold=0.97, reading="non_inferior")
    judgement = judge(gate, report, reference_report)
    print(judgement.words)

"97 %" can be read three ways, and a gate says which it means. Each is decided by the end of an interval, so that a
lucky draw of questions is not taken for an ability:
    absolute       at least 97 % of the answers are right: the lower end of the (exact) interval reaches 97 %
    relative       at least 97 % of the reference's own score: the paired interval of (score - 97 % of the
                   reference's score) lies wholly above 0
    non_inferior   the paired interval of (score - reference) lies wholly above -3 points
What is scored is the `metric`: right answers, or the mean probability of the right option (letter and cloze modes),
which moves with every question and so tells more from the same ones; of reasoned exams, also how they are written.

Several looks at the same questions, one gate: whoever trains a remedy until the gate opens looks up to 1 + rounds
times. The error that `confidence` allows is spent evenly over them (`stats.confidence_of_look`). A gate may ask for
more things at once (`requires`); it opens when all of them hold, and each is asked at full confidence.

A comparison in which a model does no better than guessing shows nothing, so it does not pass unless the
gate says `allow_chance`, and then the words say so. What follows a closed gate (`on_failure`, `rounds`) is
carried here as configuration and acted on by the pipeline. Verdict files are in `eval.verdict`; what a gate can
tell at all is in `eval.power`, and which to choose in docs/GATES.md.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Annotated, Any, Mapping, Sequence

from medkor_jax.eval import stats
from medkor_jax.eval.metric import KNOWING, METRICS, is_at_chance, outcomes, pairing
from medkor_jax.eval.report import Report

READINGS = ("absolute", "relative", "non_inferior")
ON_FAILURE = ("retain", "train", "stop", "continue")
AGAINST = ("start", "reference")
MIN_QUESTIONS = 20  # fewer open no gate, whatever they say
_ROUNDING = 1e-9  # 97 of 100 is 0.97, whatever the last bit says


@dataclasses.dataclass(frozen=True)
class Condition:
    """One thing a gate asks beside its own exam: of another exam, or of the loss on a watched text."""

    name: str
    """The name that the gate's `requires` has for it."""
    exam: str = ""
    """Exam that it asks about, by name. "": a watched text."""
    watch: str = ""
    """Text that it asks about, among `watch`. "": an exam."""
    metric: str = "accuracy"
    """What is scored of the exam: "accuracy", "probability" (the mean of the right option), or, of
    reasoned exams, how they are written, such as "form"."""
    threshold: Annotated[float, "> 0", "<= 1"] = 0.97
    """The share that must be reached or kept, as `reading` has it."""
    reading: str = "non_inferior"
    """"absolute" (the score), "relative" (a share of what it is compared with) or "non_inferior"
    (at most 1 - threshold below that); docs/GATES.md."""
    against: str = "start"
    """What is compared with: the phase's own "start", or the "reference"."""
    rise_nats: Annotated[float, ">= 0"] = 0.0
    """Nats a token by which the loss on a watched text may rise; it is a number over fixed texts
    and has no interval."""
    allow_chance: bool = False
    """Whether a comparison in which a model does no better than guessing may pass."""

    def __post_init__(self) -> None:
        what = f"condition {self.name!r}"
        if bool(self.exam) == bool(self.watch):
            raise ValueError(f"{what} names exam {self.exam!r} and watch {self.watch!r}; it asks about exactly one of them")
        _check_choice(what, "against", self.against, AGAINST)
        if self.watch:
            blank = Condition("", exam="x")
            of_exams = ("metric", "threshold", "reading", "allow_chance")
            if changed := [name for name in of_exams if getattr(self, name) != getattr(blank, name)]:
                raise ValueError(f"{what} is about a watched text, whose loss may rise by rise_nats; leave out {', '.join(changed)}")
            if not (math.isfinite(self.rise_nats) and self.rise_nats >= 0):
                raise ValueError(f"{what} has rise_nats {self.rise_nats}; expected 0 or more nats a token")
        else:
            if self.rise_nats:
                raise ValueError(f"{what} is about an exam; rise_nats is for watched texts")
            _check_reading(what, self)


@dataclasses.dataclass(frozen=True)
class Gate:
    """What must hold before the next phase may start."""

    metric: str = "accuracy"
    """What is scored of the phase's exam: "accuracy", or "probability" (the mean of the right
    option), which tells more from the same questions."""
    threshold: Annotated[float, "> 0", "<= 1"] = 0.97
    """The share that must be reached or kept, as `reading` has it: 0.97, not 97."""
    reading: str = "non_inferior"
    """"absolute" (the score), "relative" (a share of the reference's) or "non_inferior" (at most 1
    - threshold below it); docs/GATES.md."""
    confidence: Annotated[float, ">= 0.5", "< 1"] = 0.95
    """Of the intervals that decide, spent evenly over all looks at the same questions."""
    on_failure: str = "stop"
    """What follows a closed gate: "retain" (the remedy, with "each layer" training), "train" (the
    remedy), "stop", or "continue" (the gate records and decides nothing)."""
    rounds: Annotated[int, ">= 1"] = 3
    """Times the remedy may be trained while the gate stays closed; read with "retain" and
    "train"."""
    allow_chance: bool = False
    """Whether a comparison in which a model does no better than guessing may pass; the verdict says
    so."""
    requires: tuple[Condition, ...] = ()
    """What must hold beside it, each asked at full confidence."""

    def __post_init__(self) -> None:
        _check_choice("gate", "on_failure", self.on_failure, ON_FAILURE)
        _check_reading("gate", self, may_be_one=not self.decides)
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"gate confidence is {self.confidence}; it is a share between 0.5 and 1 (0.95, not 95)")
        if self.rounds < 1:
            raise ValueError(f"gate rounds is {self.rounds}; a remedy is tried at least once (on_failure='stop' for none)")

    @property
    def decides(self) -> bool:
        return self.on_failure != "continue"

    @property
    def has_remedy(self) -> bool:
        return self.on_failure in ("retain", "train")

    @property
    def looks(self) -> int:
        """How often one model of the phase may be put to the gate: once, and after each round of its remedy."""
        return 1 + (self.rounds if self.has_remedy else 0)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was measured of one model: reports by exam, losses in nats a token by watched text."""

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
    bound: float  # what the interval's lower end must reach; for a loss, what the score may not exceed
    interval: stats.Interval | None  # of `value`; None for a loss
    confidence: float  # of this interval, the looks taken into account
    looks: int
    n: int  # questions; 0 for a loss
    p_value: float | None  # exact McNemar, both models equally often right; None where nothing is counted in pairs
    at_chance: tuple[str, ...]  # which of "the model", "the reference" do no better than guessing
    words: str
    conditions: tuple[Judgement, ...] = ()

    def to_json(self) -> dict[str, Any]:
        stored = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("score", "value"):  # a loss may be NaN, which JSON has no word for
            stored[name] = stored[name] if math.isfinite(stored[name]) else None
        return stored | {
            "interval": None if self.interval is None else list(self.interval), "at_chance": list(self.at_chance),
            "conditions": [condition.to_json() for condition in self.conditions],
        }  # fmt: skip


def judge(
    gate: Gate | Condition, report: Report, reference: Report | None = None, *, looks: int = 0, confidence: float = 0.0
) -> Judgement:
    """Returns whether `report` opens `gate` by its own exam, with the numbers and one plain sentence on why.

    looks: at these questions, all rounds and candidates together (default: those of the gate's rounds). confidence: of
    all looks together (default: the gate's; a condition has none of its own).

    Raises: ValueError if the reading needs a reference and there is none, if the reference answered other
    questions or was asked in another way, or if the reports do not hold what the metric reads.
    """
    if gate.reading != "absolute" and reference is None:
        raise ValueError(f"a gate read as {gate.reading!r} compares with a reference report, and none was given")
    looks = looks or gate.looks
    confidence = stats.confidence_of_look(confidence or gate.confidence, looks)
    mine, theirs = outcomes(report, gate.metric), None
    if reference is not None:
        theirs = outcomes(reference, gate.metric)[pairing(report, reference)]
    counts = stats.PairedCounts.of(mine, theirs) if theirs is not None and mine.dtype == bool else None

    score, n = float(mine.mean()), len(mine)
    own, other = _shown(gate.metric, report, score), ""
    if theirs is not None:
        other = _shown(gate.metric, reference, float(theirs.mean()))
    if gate.reading == "absolute":
        value, bound = score, gate.threshold
        is_share = mine.dtype == bool
        interval = stats.exact_share(int(mine.sum()), n, confidence) if is_share else stats.bootstrap_mean(mine, confidence)
        compared = (
            f"{own} {_percent(interval)}, whose lower end must reach the required {gate.threshold:.1%} (absolute)"
        )
    else:
        kept = gate.threshold if gate.reading == "relative" else 1.0
        value, bound = score - kept * float(theirs.mean()), 0.0 if gate.reading == "relative" else -(1 - gate.threshold)
        if counts is None:
            interval = stats.bootstrap_mean(mine - kept * theirs, confidence)
        else:
            interval = stats.paired_difference(counts, confidence, kept)
        points = f"{100 * value:+.1f} points [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
        if gate.reading == "relative":
            compared = (
                f"{own} against the reference's {other}: {points} from {kept:.1%} of it, whose lower end must be at least 0 "
                "(relative)"
            )
        else:
            compared = (
                f"{own} against the reference's {other}: a difference of {points}, whose lower end must be at least "
                f"{100 * bound:+.1f} (non-inferior)"
            )
    reached = interval.low >= bound - _ROUNDING and n >= MIN_QUESTIONS
    if n < MIN_QUESTIONS:
        compared += f"; {n} questions are fewer than the {MIN_QUESTIONS} that can open a gate"

    # An absolute gate does not lean on its reference, so only the model's own score counts there.
    compared_reports = {"the model": report, "the reference": reference if gate.reading != "absolute" else None}
    at_chance = tuple(who for who, r in compared_reports.items() if r is not None and is_at_chance(r, gate.metric))
    passed = reached and (not at_chance or gate.allow_chance)
    spent = f" ({looks} looks, each at {confidence:.2%})" if looks > 1 else ""
    compared = f"{compared}{spent}{_chance_words(gate, at_chance, reached)}"
    return Judgement(
        passed=passed, name=getattr(gate, "name", report.source), metric=gate.metric, reading=gate.reading, score=score,
        reference=None if theirs is None else float(theirs.mean()), value=value, bound=bound, interval=interval,
        confidence=confidence, looks=looks, n=n, p_value=None if counts is None else stats.mcnemar_exact(counts),
        at_chance=at_chance, words=f"The gate {'opens' if passed else 'stays closed'}: {compared}.",
    )  # fmt: skip


def judge_all(gate: Gate, exam: str, found: Evidence, start: Evidence, reference: Evidence, *, looks: int = 0) -> Judgement:
    """Returns the judgement of all that a gate asks: of the phase's own `exam` against `reference`, and of `requires`.

    Raises: ValueError as `judge`.
    """
    looks = looks or gate.looks
    judged = [judge(gate, found.reports[exam], reference.reports[exam] if gate.reading != "absolute" else None, looks=looks)]
    judged[0] = dataclasses.replace(judged[0], name=exam)
    for condition in gate.requires:
        other = start if condition.against == "start" else reference
        if condition.watch:
            judged.append(_judge_loss(condition, found.losses[condition.watch], other.losses[condition.watch], looks))
        else:
            compared = other.reports[condition.exam] if condition.reading != "absolute" else None
            judged.append(judge(condition, found.reports[condition.exam], compared, looks=looks, confidence=gate.confidence))
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
        passed=passed, name=condition.name, metric="loss", reading="not_above", score=loss, reference=before, value=loss,
        bound=bound, interval=None, confidence=1.0, looks=looks, n=0, p_value=None, at_chance=(),
        words=f"The gate {'opens' if passed else 'stays closed'}: {words}.",
    )  # fmt: skip


def _check_choice(what: str, name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        near = difflib.get_close_matches(str(value), valid, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} {name} is {value!r}, which is none of {', '.join(valid)}{hint}")


def _check_reading(what: str, asked: Gate | Condition, *, may_be_one: bool = False) -> None:
    _check_choice(what, "metric", asked.metric, METRICS)
    _check_choice(what, "reading", asked.reading, READINGS)
    threshold = asked.threshold
    if not 0 < threshold <= 1:
        raise ValueError(f"{what} threshold is {threshold}; it is a share between 0 and 1 (0.97, not 97)")
    if threshold == 1 and not may_be_one:
        raise ValueError(f"{what} threshold is 1, which no interval's lower end reaches; write what may be lost, such as 0.97")
    if asked.reading == "non_inferior" and threshold < 0.5:
        lost = round(100 * (1 - threshold))
        raise ValueError(f"{what} threshold is {threshold}, read as non_inferior: {lost} points could be lost; expected 0.5 or more")
    if asked.allow_chance and asked.metric not in KNOWING:
        raise ValueError(f"{what} has allow_chance=True and metric {asked.metric!r}, of which guessing has no value; leave it out")


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
