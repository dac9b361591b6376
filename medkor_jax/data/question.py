r"""One multiple-choice question as a value, and how it is asked.

    prompt(question) + answer_text(question)      # "...\nE. ...\n정답： B"

Training, few-shot and evaluation all take the prompt and the answer from here, so they cannot drift
apart. What it does not do: read questions from files (`exams`), or answers out of text (`eval.answers`).
"""

from __future__ import annotations

import dataclasses

from medkor_jax.data.rows import Example

LETTERS = "ABCDEFGHIJ"  # as far as a question's options may go


@dataclasses.dataclass(frozen=True)
class Question:
    """One question. `answer` counts from 0; `id` is unique within its exam; `fact` is set by the embedded exam only.

    number: where it stood in the exam of its year, "period/number", "" where that is not known. origin: of a translation
    made here, what names the question that it was made from (`likeness.content_key`).
    """

    id: str
    exam: str
    year: int | None
    language: str
    question: str
    options: tuple[str, ...]
    answer: int
    rationale: str = ""
    fact: str = ""
    number: str = ""
    origin: str = ""


def prompt(question: Question) -> str:
    """Returns what the model is asked, up to and including the colon; the English form is its exact twin.

    Source: lm-evaluation-harness 0.4.13, task kormedmcqa v3.0, doc_to_text (full-width colon, no space after it).
    """
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, question.options))
    return f"{question.question.strip()}\n{options}{'정답：' if question.language == 'ko' else 'Answer:'}"


def cloze_prompt(question: Question) -> str:
    """Returns the question without its options, up to and including the colon; an option's text may follow it."""
    return f"{question.question.strip()}\n{'정답：' if question.language == 'ko' else 'Answer:'}"


def answer_text(question: Question) -> str:
    """Returns what follows the prompt, e.g. " B".

    The space belongs to it: the harness's few-shot examples read "정답： B", so a model that follows them
    answers with the token of " B" and not of "B".
    """
    return f" {LETTERS[question.answer]}"


def example(question: Question) -> Example:
    """Returns the question as something to learn from: loss on the answer, and on the eos that ends it."""
    parts = ((prompt(question), False), (answer_text(question), True))
    return Example(question.id, parts, question.language, splittable=False)
