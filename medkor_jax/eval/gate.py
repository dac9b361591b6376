"""What a phase must show before the next one may start: a gate, as a config states it.

    gate = Gate(threshold=0.97, reading="non_inferior", requires=(Condition("korean", exam="korean-valid"),))

"97 %" can be read three ways, and a gate says which it means. Each is decided by the end of an interval, so that a
lucky draw of questions is not taken for an ability:
    absolute       at least 97 % of the answers are right: the lower end of the (exact) interval reaches 97 %
    relative       at least 97 % of the reference's own score: the paired interval of (score - 97 % of the
                   reference's score) lies wholly above 0
    non_inferior   the paired interval of (score - reference) lies wholly above -3 points
What is scored is the `metric`: right answers, or the mean probability of the right option (letter and cloze modes),
which moves with every question and so tells more from the same ones; of reasoned exams, also how they are written.

A gate may ask for more things at once (`requires`); it opens when all of them hold, and each is asked at full
confidence. What follows a closed gate (`on_failure`, `rounds`) is carried here as configuration and acted on by the
pipeline. How a gate is judged is in `eval.judgement`, what it can tell at all in `eval.power`, and which to choose in
docs/GATES.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

from medkor_jax.eval.metric import KNOWING, METRICS
from medkor_jax.nearest import nearest

READINGS = ("absolute", "relative", "non_inferior")
ON_FAILURE = ("retain", "train", "stop", "continue")
AGAINST = ("start", "reference")
MIN_QUESTIONS = 20  # fewer open no gate, whatever they say


@dataclasses.dataclass(frozen=True)
class Condition:
    """One thing a gate asks beside its own exam: of another exam, or of the loss on a held-out text."""

    name: str
    """The name that the gate's `requires` has for it."""
    exam: str = ""
    """Exam that it asks about, by name. "": a held-out text."""
    held_out: str = ""
    """Text that it asks about, among `held_out`. "": an exam."""
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
    """Nats a token by which the loss on a held-out text may rise; it is a number over fixed texts
    and has no interval."""
    allow_chance: bool = False
    """Whether a comparison in which a model does no better than guessing may pass."""

    def __post_init__(self) -> None:
        what = f"condition {self.name!r}"
        if bool(self.exam) == bool(self.held_out):
            raise ValueError(
                f"{what} names exam {self.exam!r} and held_out {self.held_out!r}; it asks about exactly one of them"
            )
        _check_choice(what, "against", self.against, AGAINST)
        if self.held_out:
            blank = Condition("", exam="x")
            of_exams = ("metric", "threshold", "reading", "allow_chance")
            if changed := [
                name for name in of_exams if getattr(self, name) != getattr(blank, name)
            ]:
                raise ValueError(
                    f"{what} is about a held-out text, whose loss may rise by rise_nats; leave out {', '.join(changed)}"
                )
            if not (math.isfinite(self.rise_nats) and self.rise_nats >= 0):
                raise ValueError(
                    f"{what} has rise_nats {self.rise_nats}; expected 0 or more nats a token"
                )
        else:
            if self.rise_nats:
                raise ValueError(f"{what} is about an exam; rise_nats is for held-out texts")
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
            raise ValueError(
                f"gate confidence is {self.confidence}; it is a share between 0.5 and 1 (0.95, not 95)"
            )
        if self.rounds < 1:
            raise ValueError(
                f"gate rounds is {self.rounds}; a remedy is tried at least once (on_failure='stop' for none)"
            )

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


def _check_choice(what: str, name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        near = nearest(value, valid, least=0.6)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(f"{what} {name} is {value!r}, which is none of {', '.join(valid)}{hint}")


def _check_reading(what: str, asked: Gate | Condition, *, may_be_one: bool = False) -> None:
    _check_choice(what, "metric", asked.metric, METRICS)
    _check_choice(what, "reading", asked.reading, READINGS)
    threshold = asked.threshold
    if not 0 < threshold <= 1:
        raise ValueError(
            f"{what} threshold is {threshold}; it is a share between 0 and 1 (0.97, not 97)"
        )
    if threshold == 1 and not may_be_one:
        raise ValueError(
            f"{what} threshold is 1, which no interval's lower end reaches; write what may be lost, such as 0.97"
        )
    if asked.reading == "non_inferior" and threshold < 0.5:
        lost = round(100 * (1 - threshold))
        raise ValueError(
            f"{what} threshold is {threshold}, read as non_inferior: {lost} points could be lost; expected 0.5 or more"
        )
    if asked.allow_chance and asked.metric not in KNOWING:
        raise ValueError(
            f"{what} has allow_chance=True and metric {asked.metric!r}, of which guessing has no value; leave it out"
        )


def said_of(words: str, on_failure: str) -> str:
    """Returns a judgement's words as a person is to read them: a gate that goes on either way records, and does not close.

    on_failure: the gate's.
    """
    if on_failure != "continue":
        return words
    for said, instead in (
        ("The gate opens", "would open"),
        ("The gate stays closed", "would stay closed"),
    ):
        if words.startswith(said):
            return f"Recorded, and goes on (as a gate it {instead}){words.removeprefix(said)}"
    return words
