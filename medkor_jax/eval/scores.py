"""Answers to an exam and the numbers drawn from them, each with its mode, count and interval.

    scored = Scored(mode="letter", shots=0, source="kormedmcqa/doctor", split="valid", answers=answers)
    scored.overall.accuracy, scored.is_at_chance

What is read, printed and kept of them, alarms included: `report`. Reasoned answers carry how they were written besides.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence

from medkor_jax.data.style import PLAIN
from medkor_jax.data.thinking import split_thought
from medkor_jax.eval import stats

MODES = ("letter", "harness", "reason", "cloze", "cloze_norm")
OF_REASONING = ("has_format", "is_whole", "n_tokens")  # what only a reasoned answer says


@dataclasses.dataclass(frozen=True)
class Answer:
    """One question answered. Letters are "A" to "E"; `predicted` is None where no answer could be read."""

    id: str
    key: str
    predicted: str | None
    correct: bool
    text: str  # what the model wrote, or the letter it preferred
    exam: str
    year: int | None
    language: str
    n_options: int
    probabilities: tuple[float, ...] | None = (
        None  # [options], over the options alone; letter and cloze modes
    )
    among_shots: bool = False
    truncated: bool = False  # the prompt lost its beginning
    # Reason mode only; None elsewhere, and then not written.
    has_format: bool | None = None  # reasoning between its tags, and whole
    is_whole: bool | None = None  # the model ended its text itself, so it was not cut by length
    n_tokens: int | None = None  # written: tags, reasoning and letter
    # Where it was asked to think (then harness mode says the two above too), or reasons in its thought; None elsewhere.
    n_thought: int | None = None  # of n_tokens, those of its thought
    # Cloze modes only; None elsewhere, and then not written.
    option_lengths: tuple[int, ...] | None = None  # [options], characters


@dataclasses.dataclass(frozen=True)
class ReasoningShares:
    """How reasoned answers are written, whatever they say; shares of all answers.

    one_letter: exactly one valid letter at the end. A text cut by length has neither format nor letter.
    """

    has_format: float
    one_letter: float
    both: float
    cut: float
    mean_tokens: float
    max_new_tokens: int

    @property
    def words(self) -> str:
        return (
            f"format {self.has_format:.1%}, one valid letter {self.one_letter:.1%}, both {self.both:.1%}, "
            f"cut at {self.max_new_tokens} tokens {self.cut:.1%}, {self.mean_tokens:.0f} tokens on average"
        )


@dataclasses.dataclass(frozen=True)
class ThinkingShares:
    """How much was thought and said. unfinished: the share whose thought was not closed, or longer than its limit (None: it was
    asked for none of its own)."""

    mean_thought: float
    mean_said: float
    thought_at_all: float
    unfinished: float
    max_thinking_tokens: int | None

    @property
    def words(self) -> str:
        limit = f" within {self.max_thinking_tokens} tokens" if self.max_thinking_tokens else ""
        return (
            f"thinking: {self.mean_thought:.0f} tokens thought and {self.mean_said:.0f} said on average, "
            f"{self.thought_at_all:.1%} thought, {self.unfinished:.1%} did not finish thinking{limit}"
        )


@dataclasses.dataclass(frozen=True)
class Score:
    """A share of right answers and everything needed to quote it."""

    group: str  # "all", "exam" or "year"
    exam: str
    year: int | None
    n: int
    correct: int
    unparsed: int
    accuracy: float
    low: float
    high: float
    confidence: float
    chance: float  # what even guessing expects
    mode: str
    shots: int
    source: str
    split: str


@dataclasses.dataclass(frozen=True)
class Scored:
    """The answers to one exam, all asked in the same way."""

    mode: str
    shots: int
    source: str
    split: str
    answers: tuple[Answer, ...]
    confidence: float = 0.95
    max_new_tokens: int | None = None  # reason mode only: what an answer was given to end in
    style: str = PLAIN  # the form in which all were asked
    max_thinking_tokens: int | None = None  # what a thought was given to end in; None: not asked

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is unknown; it is one of {', '.join(MODES)}")
        if not self.answers:
            raise ValueError(
                f"no answers for {self.source or 'this exam'} {self.split}: there is nothing to score"
            )
        repeated = [
            id for id, count in collections.Counter(a.id for a in self.answers).items() if count > 1
        ]
        if repeated:
            raise ValueError(
                f"question id {repeated[0]!r} occurs more than once; ids must tell questions apart"
            )
        unknown = [
            name for name in OF_REASONING if any(getattr(a, name) is None for a in self.answers)
        ]
        if self.mode == "reason" and (unknown or self.max_new_tokens is None):
            raise ValueError(
                f"reasoned answers must say max_new_tokens and {', '.join(OF_REASONING)}; evaluate again"
            )

    @functools.cached_property
    def overall(self) -> Score:
        return self._score(self.answers, "all", self.source, None)

    @functools.cached_property
    def scores(self) -> tuple[Score, ...]:
        """Overall, then each exam, then each exam and year; answers without a year count in their exam only."""
        exams, years = collections.defaultdict(list), collections.defaultdict(list)
        for answer in self.answers:
            exams[answer.exam].append(answer)
            if answer.year is not None:
                years[answer.exam, answer.year].append(answer)
        return (
            self.overall,
            *(self._score(exams[exam], "exam", exam, None) for exam in sorted(exams)),
            *(self._score(years[key], "year", *key) for key in sorted(years)),
        )

    @functools.cached_property
    def reasoning(self) -> ReasoningShares | None:
        """How the reasoned answers are written; None in the other modes."""
        if self.mode != "reason":
            return None
        share = lambda found: sum(found) / len(self.answers)
        return ReasoningShares(
            has_format=share(a.has_format for a in self.answers),
            one_letter=share(a.predicted is not None for a in self.answers),
            both=share(a.has_format and a.predicted is not None for a in self.answers),
            cut=share(not a.is_whole for a in self.answers),
            mean_tokens=share(a.n_tokens for a in self.answers),
            max_new_tokens=self.max_new_tokens,
        )

    @functools.cached_property
    def thinking(self) -> ThinkingShares | None:
        """How much was thought; None where nobody was to think."""
        told = [a for a in self.answers if a.n_thought is not None]
        if not told:
            return None
        limit, share = self.max_thinking_tokens, lambda found: sum(found) / len(told)
        is_closed = lambda a: (
            split_thought(a.text).is_closed and a.n_thought <= (limit or a.n_thought)
        )
        return ThinkingShares(
            mean_thought=share(a.n_thought for a in told),
            mean_said=share(a.n_tokens - a.n_thought for a in told),
            thought_at_all=share(a.n_thought > 0 for a in told),
            unfinished=share(not is_closed(a) for a in told),
            max_thinking_tokens=limit,
        )

    def _score(self, answers: Sequence[Answer], group: str, exam: str, year: int | None) -> Score:
        n, correct = len(answers), sum(a.correct for a in answers)
        low, high = stats.wilson(correct, n, self.confidence)
        return Score(
            group=group,
            exam=exam,
            year=year,
            n=n,
            correct=correct,
            unparsed=sum(a.predicted is None for a in answers),
            accuracy=correct / n,
            low=low,
            high=high,
            confidence=self.confidence,
            chance=stats.chance_share([a.n_options for a in answers]),
            mode=self.mode,
            shots=self.shots,
            source=self.source,
            split=self.split,
        )

    @property
    def is_at_chance(self) -> bool:
        """Whether the overall interval contains what guessing expects, or lies below it."""
        return self.overall.low <= self.overall.chance
