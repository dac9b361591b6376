"""What a sampled answer earns, part by part.

    reward = Reward(parts=make_parts(answer=1.0, letter=0.1, format=0.2))
    reward.score("<R> Vitamin C ... <R/> C", question, n_tokens=14, is_finished=True).total       # 1.3 if C is the key

A part is a function of the answer, in 0 to 1, and its weight; the table is `PARTS`. The text is read by the parser that
also judges (`eval.answers`), so what is rewarded is what is measured. What was cut off by the length earns nothing: its
letter might have gone on. It decides nothing about groups (`groups`, `rollout`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, NamedTuple

from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.eval.answers import parse_reasoned
from medkor_jax.nearest import nearest


@dataclasses.dataclass(frozen=True)
class Response:
    """A sampled answer, as a part of the reward sees it.

    n_tokens: sampled; is_finished: the text ended by itself, not at the length. letter: the option's number that the
    parser reads at its end, None if it is not exactly one of the question's; has_format: reasoning between the two tags.
    """

    text: str
    question: Question
    n_tokens: int
    is_finished: bool
    letter: int | None
    has_format: bool


def answer(response: Response, bound: float) -> float:
    """Returns 1 for the key's letter."""
    return float(response.letter == response.question.answer)


def letter(response: Response, bound: float) -> float:
    """Returns 1 if exactly one of the question's letters ends the text."""
    return float(response.letter is not None)


def form(response: Response, bound: float) -> float:
    """Returns 1 for reasoning between the two tags."""
    return float(response.has_format)


def length(response: Response, bound: float) -> float:
    """Returns how far the answer is above `bound` tokens: little by little from 0 up to 1 at twice as many; 0 without a bound.

    Source: the linear ramp of Yu et al. 2025 (arXiv:2503.14476), eq. 13.
    """
    if not bound:
        return 0.0
    return min(max(response.n_tokens / bound - 1.0, 0.0), 1.0)


class Builtin(NamedTuple):
    """A part of the reward: what of it an answer earns, (response, bound) -> 0 to 1, and its weight where a config says none.

    is_penalty: it takes away, so that its weight is below 0.
    """

    function: Callable[[Response, float], float]
    weight: float
    is_penalty: bool = False


PARTS = {
    "answer": Builtin(answer, 1.0),
    "letter": Builtin(letter, 0.1),
    "format": Builtin(form, 0.2),
    "length": Builtin(length, 0.0, is_penalty=True),
}


@dataclasses.dataclass(frozen=True)
class RewardPart:
    """One part of the reward and what it is worth."""

    name: str
    """Which part, as `train.rewards.PARTS` names them; in a config, its key."""
    weight: Annotated[float, ">= -100", "<= 100"]
    """What an answer earns that has all of it; below 0: what it loses. 0: the part is left out."""
    bound: Annotated[float, ">= 0"] = 0.0
    """The number that the part reads, if it reads one. length: the tokens above which an answer loses; 0: never."""

    def __post_init__(self) -> None:
        if self.name not in PARTS:
            near = nearest(self.name, PARTS)
            raise ValueError(f"{self.name!r} is no part of a reward; there are {', '.join(PARTS)}; nearest: {near!r}")
        if self.weight and (self.weight < 0) != PARTS[self.name].is_penalty:
            what = "takes away: its weight is below 0" if PARTS[self.name].is_penalty else "is earned: its weight may not be below 0"
            raise ValueError(f"the reward's part {self.name!r} has weight {self.weight}; it {what}")

    @property
    def is_on(self) -> bool:
        return self.weight != 0


DEFAULT_PARTS = tuple(RewardPart(name, part.weight) for name, part in PARTS.items())


def make_parts(**weights: float) -> tuple[RewardPart, ...]:
    """Returns parts of these weights, and nothing of any other."""
    return tuple(RewardPart(name, weight) for name, weight in weights.items())


def check_parts(parts: tuple[RewardPart, ...]) -> None:
    """Raises: ValueError unless something is rewarded, and the answer, if at all, above all else together."""
    weights = {part.name: part.weight for part in parts}
    own = weights.pop("answer", 0.0)
    rest = sum(map(abs, weights.values()))
    if own == 0 and all(weight <= 0 for weight in weights.values()):
        raise ValueError("answer, letter and format are all worth 0: nothing would be rewarded")
    if 0 < own <= rest:
        raise ValueError(
            f"the answer is worth {own} and {' + '.join(weights)} {rest:.3g}: a model would learn the "
            "form and not the answer. Raise answer above the others together (or set it to 0 to teach the form alone)"
        )


def best(parts: tuple[RewardPart, ...]) -> float:
    """Returns what an answer earns that has all there is to earn."""
    return sum(part.weight for part in parts if part.weight > 0)


@dataclasses.dataclass(frozen=True)
class Earned:
    """One sample's reward. parts: {part: what it earned}. Nothing unfinished is right, parsed or in form."""

    parts: dict[str, float]
    is_right: bool
    is_parsed: bool
    has_format: bool

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward in force. form: between which tags an answer reasons.

    Raises: ValueError unless the answer is worth more than all else together.
    """

    parts: tuple[RewardPart, ...] = DEFAULT_PARTS
    form: ReasoningFormat = ReasoningFormat()

    def __post_init__(self) -> None:
        check_parts(self.parts)

    def score(self, text: str, question: Question, *, n_tokens: int, is_finished: bool) -> Earned:
        """Returns what the text earned. n_tokens: sampled; is_finished: the text ended by itself."""
        read = parse_reasoned(text, len(question.options), self.form)
        is_parsed = is_finished and read.answer is not None
        has_format = is_finished and read.has_format
        response = Response(text, question, n_tokens, is_finished, read.answer if is_parsed else None, has_format)
        parts = {part.name: self._earned(part, response) for part in self.parts}
        return Earned(parts, is_parsed and read.answer == question.answer, is_parsed, has_format)

    def _earned(self, part: RewardPart, response: Response) -> float:
        if part.weight > 0 and not response.is_finished:
            return 0.0
        return part.weight * PARTS[part.name].function(response, part.bound)
