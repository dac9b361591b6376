"""Reasoning before the answer: how it is written, asked for, and learnt from.

    Reasoning:<R> Vitamin C deficiency causes scurvy. ... <R/> C

    reasoning_prompt(question) + reasoned_text(question, ReasoningFormat())

The tags are plain text, not tokens of their own, so any tokenizer and any exported model can write them. The
prompt is that of the exam with another last line, so that a model can be asked both for a letter at once and
for its reasoning. What it does not do: read an answer out of text (`eval.answers`).
"""

from __future__ import annotations

import dataclasses

from medkor_jax.data.exams import LETTERS, Question, prompt
from medkor_jax.data.rows import Example

_ASKED = {"ko": "풀이：", "en": "Reasoning:"}
_ANSWERED = {"ko": "정답：", "en": "Answer:"}


@dataclasses.dataclass(frozen=True)
class ReasoningFormat:
    """opening, closing: the tags around the reasoning; one letter follows the closing one."""

    opening: str = "<R>"
    closing: str = "<R/>"

    def __post_init__(self) -> None:
        if not self.opening.strip() or not self.closing.strip() or self.opening == self.closing:
            raise ValueError(f"reasoning tags are {self.opening!r} and {self.closing!r}; they must be two different texts")


def reasoning_prompt(question: Question) -> str:
    """Returns what the model is asked: the exam's prompt, ending in a call for reasoning instead of the answer."""
    asked = prompt(question)
    return asked.removesuffix(_ANSWERED[question.language]) + _ASKED[question.language]


def reasoned_text(question: Question, form: ReasoningFormat) -> str:
    """Returns what should follow the prompt: the question's own rationale between the tags, then its letter.

    Raises: ValueError if the question has no rationale, or one that holds a tag.
    """
    rationale = " ".join(question.rationale.split())
    if not rationale:
        raise ValueError(f"question {question.id!r} has no rationale to learn reasoning from")
    if form.opening in rationale or form.closing in rationale:
        raise ValueError(f"the rationale of {question.id!r} holds {form.opening!r} or {form.closing!r}; choose other tags")
    return f" {form.opening} {rationale} {form.closing} {LETTERS[question.answer]}"


def reasoned_example(question: Question, form: ReasoningFormat) -> Example:
    """Returns the question as reasoning to learn: loss on tags, rationale, letter and the eos that ends it."""
    parts = ((reasoning_prompt(question), False), (reasoned_text(question, form), True))
    return Example(question.id, parts, question.language, splittable=False)
