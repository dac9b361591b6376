r"""One multiple-choice question as a value, and how it is asked.

    prompt(question) + answer_text(question)      # "...\nE. ...\n정답： B"

Training, few-shot and evaluation all take the prompt and the answer from here, so they cannot drift
apart. What it does not do: read questions from files (`exams`), or answers out of text (`eval.answers`).
"""

from __future__ import annotations

import dataclasses

from medkor_jax.data.named_exams import FORMS, STRIPPED, preamble_of
from medkor_jax.data.rows import Example

LETTERS = "ABCDEFGHIJ"  # as far as a question's options may go


@dataclasses.dataclass(frozen=True)
class Question:
    """One question. `answer` counts from 0; `id` is unique within its exam; `fact` is set by the embedded exam only.

    number: where it stood in the exam of its year, "period/number", "" where that is not known. origin: of a translation
    made here, what names the question that it was made from (`likeness.content_key`). asked_as: the form of its prompt, see
    `named_exams.FORMS`; no part of what the question is, so not of its digest either: the prompts have their own.
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
    asked_as: str = dataclasses.field(default="", repr=False)


def prompt(question: Question) -> str:
    """Returns what the model is asked, up to and including the colon, in the question's own form.

    Source: lm-evaluation-harness 0.4.13, doc_to_text of tasks kormedmcqa v3.0 (full-width colon, no space after it; the English
    form is its exact twin), medqa_4options, medmcqa and mmlu_*.
    """
    form = question.asked_as.partition("/")[0]
    stem = question.question.strip() if form in STRIPPED else question.question
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, question.options))
    return FORMS[form].format(stem=stem, options=options, due=_due(question))


def preamble(question: Question) -> str:
    """Returns what the form puts in front of all shots, as system text where there is a chat; "" in most forms."""
    return preamble_of(question.asked_as)


def cloze_prompt(question: Question) -> str:
    """Returns the question without its options, up to and including the colon; an option's text may follow it."""
    return f"{question.question.strip()}\n{_due(question)}"


def _due(question: Question) -> str:
    return "정답：" if question.language == "ko" else "Answer:"


def answer_text(question: Question) -> str:
    """Returns what follows the prompt, e.g. " B".

    The space belongs to it: the harness's few-shot examples read "정답： B", so a model that follows them
    answers with the token of " B" and not of "B".
    """
    return f" {LETTERS[question.answer]}"


def option_text(option: str) -> str:
    """Returns an option's text as it follows `cloze_prompt`."""
    return f" {option}"


def example(question: Question, answered_by: str = "letter") -> Example:
    """Returns the question as something to learn from: loss on the answer, and on the eos that ends it.

    answered_by: "letter", or "text", that of the right option behind the question alone.
    """
    if answered_by == "text":
        asked, answer = cloze_prompt(question), option_text(question.options[question.answer])
    else:
        asked, answer = prompt(question), answer_text(question)
    parts = ((asked, False), (answer, True))
    return Example(question.id, parts, question.language, splittable=False)
