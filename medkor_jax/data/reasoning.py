"""Reasoning before the answer: how it is written, asked for, and learnt from.

    Reasoning:<R> Vitamin C deficiency causes scurvy. ... <R/> C

    reasoning_prompt(question) + reasoned_text(question, ReasoningFormat())

The tags are plain text, not tokens of their own, so any tokenizer and any exported model can write them. A config may take
the marks around MedGemma's thought instead (`thinking`), which are control tokens and leave no space beside them. The prompt is that of the exam with another last line, so that a model can be asked both for a letter at once and
for its reasoning. What it does not do: read an answer out of text (`eval.answers`).
"""

from __future__ import annotations

import dataclasses

from medkor_jax.data import exams, rows
from medkor_jax.data.question import LETTERS, Question, prompt
from medkor_jax.data.rows import Example, Loaded, MarkedExample, Source
from medkor_jax.data.thinking import LABEL, THOUGHT_CLOSES, THOUGHT_OPENS, holds_mark

_ASKED = {"ko": "풀이：", "en": "Reasoning:"}
_ANSWERED = {"ko": "정답：", "en": "Answer:"}
_JUDGED = {"ko": ("아니다", "맞다"), "en": ("no", "yes")}  # a wrong option, and the right one
_OWN = (THOUGHT_OPENS + LABEL.strip(), THOUGHT_CLOSES)


@dataclasses.dataclass(frozen=True)
class ReasoningFormat:
    """The tags around the reasoning: plain text, or the marks of MedGemma's own thought."""

    opening: str = "<R>"
    """Tag in front of the reasoning; "<unused94>thought" is the model's own, with its closing."""
    closing: str = "<R/>"
    """Tag behind it; one letter follows. "<unused95>": the model's own."""

    def __post_init__(self) -> None:
        if not self.opening.strip() or not self.closing.strip() or self.opening == self.closing:
            raise ValueError(
                f"reasoning tags are {self.opening!r} and {self.closing!r}; they must be two different texts"
            )
        if not self.is_own and holds_mark(self.opening + self.closing):
            raise ValueError(
                f"reasoning tags are {self.opening!r} and {self.closing!r}; the model's own are {_OWN[0]!r} and {_OWN[1]!r}, and "
                "other tags may not hold these marks"
            )

    @property
    def is_own(self) -> bool:
        """Whether the tags are those of the model's own thinking, which are control tokens and no text."""
        return (self.opening, self.closing) == _OWN

    @property
    def before_letter(self) -> str:
        """What stands between the closing tag and the letter."""
        return "" if self.is_own else " "


def load(
    source: Source, *, drop_bad: bool, form: ReasoningFormat = ReasoningFormat()
) -> Loaded[Question]:
    """Returns the questions of a source whose own rationale can be learnt; the others are counted in `notes`.

    Not bad rows: an exam with a few rationales is a sound exam, and `exams` leaves out those that lead to
    another answer than the key.

    Raises: BadDataError for bad rows (unless `drop_bad`), wrong columns, or no question with a usable rationale.
    """
    loaded = exams.load(source, drop_bad=drop_bad)
    reasoned = [question for question in loaded.rows if question.rationale.strip()]
    usable = [question for question in reasoned if not _holds_tag(question.rationale, form)]
    counts = {
        "without a rationale that leads to its key": len(loaded.rows) - len(reasoned),
        f"with {form.opening!r} or {form.closing!r} in the rationale": len(reasoned) - len(usable),
    }
    notes = tuple(
        f"{n} of {len(loaded.rows)} questions left out: {why}" for why, n in counts.items() if n
    )
    return rows.settle(source, usable, loaded.bad, loaded.notes + notes, drop_bad=drop_bad)


def reasoning_prompt(question: Question) -> str:
    """Returns what the model is asked: the exam's prompt, ending in a call for reasoning instead of the answer."""
    asked = prompt(question)
    return asked.removesuffix(_ANSWERED[question.language]) + _ASKED[question.language]


def in_turn(question: Question) -> str:
    """Returns its options one after another, each judged, up to the right one: "A. thiamine: no. B. vitamin K: yes."

    Then the letter to be written is the last that was read. A small model that knows the answer's text does not find the
    letter that stands before it in the question (docs/RESULTS.md, "The reward by itself").
    """
    no, yes = _JUDGED[question.language]
    options = list(zip(LETTERS, question.options))[: question.answer + 1]
    return " ".join(
        f"{letter}. {option}: {no if i < question.answer else yes}."
        for i, (letter, option) in enumerate(options)
    )


def reasoned_text(question: Question, form: ReasoningFormat, answered_by: str = "letter") -> str:
    """Returns what should follow the prompt: the question's own rationale between the tags, then its letter.

    answered_by: "letter", or "in_turn": the options, judged one after another, end the rationale.

    Raises: ValueError if the question has no rationale, or one that holds a tag.
    """
    rationale = " ".join(question.rationale.split())
    if not rationale:
        raise ValueError(f"question {question.id!r} has no rationale to learn reasoning from")
    if answered_by == "in_turn":
        rationale = f"{rationale} {in_turn(question)}"
    if _holds_tag(rationale, form):
        raise ValueError(
            f"the rationale of {question.id!r} holds {form.opening!r} or {form.closing!r}; choose other tags"
        )
    if form.is_own:
        return f"{form.opening}\n{rationale}{form.closing}{LETTERS[question.answer]}"
    return f" {form.opening} {rationale} {form.closing} {LETTERS[question.answer]}"


def reasoned_example(
    question: Question, form: ReasoningFormat, answered_by: str = "letter"
) -> Example:
    """Returns the question as reasoning to learn: loss on tags, rationale, letter and the eos that ends it."""
    told = reasoned_text(question, form, answered_by)
    parts = ((reasoning_prompt(question), False), (told, True))
    kind = MarkedExample if form.is_own else Example
    return kind(question.id, parts, question.language, splittable=False)


def _holds_tag(text: str, form: ReasoningFormat) -> bool:
    """The marks of a thought end or begin one whatever the tags are."""
    return form.opening in text or form.closing in text or (form.is_own and holds_mark(text))
