"""What a sampled answer earns, part by part.

    reward = Reward(answer=1.0, letter=0.1, format=0.2)
    reward.score("<R> Vitamin C ... <R/> C", question, n_tokens=14, is_finished=True).total       # 1.3 if C is the key

The text is read by the parser that also judges (`eval.answers`), so what is rewarded is what is measured. What
was cut off by the length earns nothing: its letter might have gone on. It decides nothing about groups (`rollout`).
"""

from __future__ import annotations

import dataclasses

from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.eval.answers import parse_reasoned

ANSWER, LETTER, FORMAT, LENGTH = PARTS = ("answer", "letter", "format", "length")


@dataclasses.dataclass(frozen=True)
class Earned:
    """One sample's reward. parts: {part: what it earned}, all PARTS. Nothing unfinished is right, parsed or in form."""

    parts: dict[str, float]
    is_right: bool
    is_parsed: bool
    has_format: bool

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Reward:
    """What each part is worth.

    answer: the key's letter; letter: exactly one of the question's letters ends the text; format: reasoning between
    the two tags. An answer above `max_reasoning_tokens` loses `length_penalty`, little by little up to twice as many
    (either 0: never). answer 0 rewards the form alone, for a model that has yet to learn it.

    Raises: ValueError unless the answer is worth more than all else together.
    """

    answer: float = 1.0
    letter: float = 0.1
    format: float = 0.2
    length_penalty: float = 0.0
    max_reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        rest = self.letter + self.format + self.length_penalty
        if min(self.answer, self.letter, self.format, self.length_penalty, self.max_reasoning_tokens) < 0:
            raise ValueError(f"no part of a reward may be below 0 (length_penalty is taken away as it is); got {self}")
        if self.answer == self.letter == self.format == 0:
            raise ValueError("answer, letter and format are all worth 0: nothing would be rewarded")
        if 0 < self.answer <= rest:
            raise ValueError(
                f"the answer is worth {self.answer} and letter + format + length_penalty {rest:.3g}: a model would learn the "
                "form and not the answer. Raise answer above the others together (or set it to 0 to teach the form alone)"
            )

    @property
    def best(self) -> float:
        """What a right answer in the right form earns."""
        return self.answer + self.letter + self.format

    def score(
        self, text: str, question: Question, *, n_tokens: int, is_finished: bool, form: ReasoningFormat = ReasoningFormat()
    ) -> Earned:
        """Returns what the text earned. n_tokens: sampled; is_finished: the text ended by itself."""
        read = parse_reasoned(text, len(question.options), form)
        is_parsed = is_finished and read.answer is not None
        is_right = is_parsed and read.answer == question.answer
        has_format = is_finished and read.has_format
        parts = {
            ANSWER: self.answer * is_right, LETTER: self.letter * is_parsed, FORMAT: self.format * has_format,
            LENGTH: -self.length_penalty * self._excess(n_tokens),
        }  # fmt: skip
        return Earned(parts, is_right, is_parsed, has_format)

    def _excess(self, n_tokens: int) -> float:
        """Returns the share of the penalty that so many tokens cost.

        Source: the linear ramp of Yu et al. 2025 (arXiv:2503.14476), eq. 13.
        """
        if not self.max_reasoning_tokens:
            return 0.0
        return min(max(n_tokens / self.max_reasoning_tokens - 1.0, 0.0), 1.0)
