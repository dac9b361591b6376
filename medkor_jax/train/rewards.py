"""What a sampled answer earns, part by part.

    reward = Reward(parts=make_parts(answer=1.0, letter=0.1, format=0.2))
    earned = reward.score("<R> Vitamin C ... <R/> C", question, n_tokens=14, is_finished=True)
    earned.total                                        # 1.3 if C is the key

A part is a function of the answer, in 0 to 1, and its weight. Those that come with the program are
in the table `PARTS`; a user's own is named by its file, which needs nothing of this package:

    def brevity(response, bound):                       # my_rewards.py
        return max(0.0, 1.0 - response.n_tokens / bound)

    phase.reward.parts.brevity = dict(function="my_rewards.py:brevity", weight=0.1, bound=200)

The text is read by the parser that also judges (`eval.answers`), so what is rewarded is what is
measured. What was cut off by the length earns nothing: its letter might have gone on. It decides
nothing about groups (`groups`, `rollout`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import numbers
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from medkor_jax.data.contents import hash_file
from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.eval.answers import parse_reasoned
from medkor_jax.nearest import nearest


@dataclasses.dataclass(frozen=True)
class Response:
    """A sampled answer, as a part of the reward sees it.

    n_tokens: sampled; is_finished: the text ended by itself, not at the length. letter: the
    option's number that the parser reads at its end, None if it is not exactly one of the
    question's; has_format: reasoning between the two tags.
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
    """Returns how far the answer is above `bound` tokens: little by little from 0 up to 1 at twice
    as many; 0 without a bound.

    Source: the linear ramp of Yu et al. 2025 (arXiv:2503.14476), eq. 13.
    """
    if not bound:
        return 0.0
    return min(max(response.n_tokens / bound - 1.0, 0.0), 1.0)


PartFunction = Callable[[Response, float], float]


class Builtin(NamedTuple):
    """A part of the reward: what of it an answer earns, (response, bound) -> 0 to 1, and its weight
    where a config says none.

    is_penalty: it takes away, so that its weight is below 0.
    """

    function: PartFunction
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
    """Which part, one of answer, letter, format and length, or a name for a function of yours; in a
    config, its key.
    """
    weight: Annotated[float, ">= -100", "<= 100"]
    """What an answer earns that has all of it; below 0: what it loses. 0: the part is left out."""
    bound: Annotated[float, ">= 0"] = 0.0
    """The number that the part reads, if it reads one. length: the tokens above which an answer
    loses; 0: never.
    """
    function: str = ""
    """"FILE.py:NAME": a function of yours that says how much of the part an answer has, (response,
    bound) -> 0 to 1, see `train.rewards`. "": the program's own of that name."""

    def __post_init__(self) -> None:
        if self.function:
            self._check_own()
            return
        if self.name not in PARTS:
            raise ValueError(
                f"{self.name!r} is no part of a reward; there are {', '.join(PARTS)}; nearest: "
                f"{nearest(self.name, PARTS)!r}. For a function of your own, say where it is: "
                "function='FILE.py:NAME'"
            )
        if self.weight and (self.weight < 0) != PARTS[self.name].is_penalty:
            what = (
                "takes away: its weight is below 0"
                if PARTS[self.name].is_penalty
                else "is earned: its weight may not be below 0"
            )
            raise ValueError(f"the reward's part {self.name!r} has weight {self.weight}; it {what}")

    def _check_own(self) -> None:
        if self.name in PARTS:
            raise ValueError(
                f"the reward's part {self.name!r} is the program's own; give the function "
                f"{self.function!r} another name"
            )
        file, _, name = self.function.rpartition(":")
        if not file or not name.isidentifier():
            raise ValueError(
                f"the reward's part {self.name!r} has function {self.function!r}; expected "
                "'FILE.py:NAME'"
            )
        if not pathlib.Path(file).is_file():
            raise ValueError(
                f"the reward's part {self.name!r} is to be found in {file}, and there is no such "
                "file"
            )

    @property
    def is_on(self) -> bool:
        return self.weight != 0

    def facts(self) -> dict[str, Any]:
        """Returns what of the part decides what is learnt: of a user's function its source,
        wherever the file lies.
        """
        said = {"name": self.name, "weight": self.weight, "bound": self.bound}
        if not self.function:
            return said
        file, _, name = self.function.rpartition(":")
        return said | {"function": name, "source": hash_file(file)}

    def load(self) -> PartFunction:
        """Returns the function. Raises: ValueError if the file cannot be run, or has no such
        function.
        """
        if not self.function:
            return PARTS[self.name].function
        file, _, name = self.function.rpartition(":")
        spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a user's file may raise anything
            raise ValueError(
                f"{file}, named by the reward's part {self.name!r}, cannot be run: {error!r}"
            ) from error
        if not callable(found := getattr(module, name, None)):
            near = nearest(
                name, [known for known in vars(module) if callable(getattr(module, known))]
            )
            raise ValueError(
                f"{file} has no function {name!r}, which the reward's part {self.name!r} names; "
                f"nearest: {near!r}"
            )
        return found


DEFAULT_PARTS = tuple(RewardPart(name, part.weight) for name, part in PARTS.items())


def make_parts(**weights: float) -> tuple[RewardPart, ...]:
    """Returns parts of these weights, and nothing of any other."""
    return tuple(RewardPart(name, weight) for name, weight in weights.items())


def in_order(parts: tuple[RewardPart, ...]) -> tuple[RewardPart, ...]:
    """Returns the parts as `PARTS` has them, then a user's own by name: their sum is taken so."""
    known = list(PARTS)
    place = lambda part: known.index(part.name) if part.name in PARTS else len(known)
    return tuple(sorted(parts, key=lambda part: (place(part), part.name)))


def check_parts(parts: tuple[RewardPart, ...]) -> None:
    """Raises: ValueError unless something is rewarded, and the answer, if at all, above all else
    together.
    """
    weights = {part.name: part.weight for part in parts}
    own = weights.pop("answer", 0.0)
    rest = sum(map(abs, weights.values()))
    if own == 0 and all(weight <= 0 for weight in weights.values()):
        raise ValueError("answer, letter and format are all worth 0: nothing would be rewarded")
    if 0 < own <= rest:
        raise ValueError(
            f"the answer is worth {own} and {' + '.join(weights)} {rest:.3g}: a model would learn "
            "the form and not the answer. Raise answer above the others together (or set it to 0 "
            "to teach the form alone)"
        )


def best(parts: tuple[RewardPart, ...]) -> float:
    """Returns what an answer earns that has all there is to earn."""
    return sum(part.weight for part in parts if part.weight > 0)


@dataclasses.dataclass(frozen=True)
class Earned:
    """One sample's reward. parts: {part: what it earned}; letter: which option it chose, None where
    that cannot be read. Nothing unfinished is right, parsed or in form.
    """

    parts: dict[str, float]
    is_right: bool
    is_parsed: bool
    has_format: bool
    letter: int | None = None

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward in force. form: between which tags an answer reasons.

    Raises: ValueError unless the answer is worth more than all else together, or if a user's
    function cannot be loaded.
    """

    parts: tuple[RewardPart, ...] = DEFAULT_PARTS
    form: ReasoningFormat = ReasoningFormat()

    def __post_init__(self) -> None:
        check_parts(self.parts)
        _ = self._functions  # a file that cannot be run is found now

    def score(self, text: str, question: Question, *, n_tokens: int, is_finished: bool) -> Earned:
        """Returns what the text earned. n_tokens: sampled; is_finished: the text ended by
        itself.
        """
        read = parse_reasoned(text, len(question.options), self.form)
        is_parsed = is_finished and read.answer is not None
        has_format = is_finished and read.has_format
        letter = read.answer if is_parsed else None
        response = Response(text, question, n_tokens, is_finished, letter, has_format)
        parts = {part.name: self._earned(part, of, response) for part, of in self._functions}
        is_right = is_parsed and letter == question.answer
        return Earned(parts, is_right, is_parsed, has_format, letter)

    @functools.cached_property
    def _functions(self) -> tuple[tuple[RewardPart, PartFunction], ...]:
        return tuple((part, part.load()) for part in self.parts)

    def _earned(self, part: RewardPart, function: PartFunction, response: Response) -> float:
        """Raises: ValueError if a user's function says something else than a share."""
        if part.weight == 0 or (part.weight > 0 and not response.is_finished):
            return 0.0
        share = function(response, part.bound)
        if not isinstance(share, numbers.Real) or not math.isfinite(share) or not 0 <= share <= 1:
            raise ValueError(
                f"the reward's part {part.name!r} gave {share!r} for an answer of "
                f"{response.n_tokens} tokens; a part says which "
                "share of its weight was earned, 0 to 1"
            )
        return part.weight * float(share)
