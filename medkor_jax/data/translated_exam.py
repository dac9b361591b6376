"""A question put into the other language, and whether it can stand for the original.

    find_faults(question, TranslatedQuestion(question.id, "Which ...?", ("x", "y"), is_whole=True), to="en")
    # ("option A has numbers none, the original 2",)

What is checked is what can be seen without understanding: numbers, empty texts, options that became alike, the
language, and that the written row reads back with the same key. On a hand-made translation of 290 questions
12 fail, all in numbers (a word for a digit, a count in another unit). What it does not do: judge meaning.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from typing import Any

from medkor_jax.data import exams
from medkor_jax.data.cells import BadRowReason
from medkor_jax.data.language import has_hangul
from medkor_jax.data.likeness import content_key
from medkor_jax.data.question import LETTERS, Question
from medkor_jax.data.rows import Source

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MYRIAD = {"만": 10**4, "백만": 10**6, "천만": 10**7, "억": 10**8}
_MYRIADS = re.compile(r"(\d+(?:\.\d+)?)(백만|천만|만|억)(?!성)")  # 만성 is chronic
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclasses.dataclass(frozen=True)
class TranslatedQuestion:
    """What the model made of one question. is_whole: no text of it was cut by length. n_tokens: written for it."""

    id: str
    question: str
    options: tuple[str, ...]
    is_whole: bool
    n_tokens: int = 0


def row_of(question: Question, translated: TranslatedQuestion) -> dict[str, Any]:
    """Returns the translated question as `data.exams` reads it; the key is the question's own, and so is its origin."""
    return {
        "id": question.id,
        "exam": question.exam,
        "year": question.year,
        **({"number": question.number} if question.number else {}),
        "translated_from": question.origin or content_key(question),
        "question": translated.question,
        **dict(zip(LETTERS, translated.options)),
        "answer": LETTERS[question.answer],
    }


def find_faults(question: Question, translated: TranslatedQuestion, to: str) -> tuple[str, ...]:
    """Returns why the translation cannot stand for the question; () if nothing is wrong that can be seen."""
    texts = {"question": (question.question, translated.question)}
    texts |= {
        f"option {letter}": pair
        for letter, pair in zip(LETTERS, zip(question.options, translated.options))
    }
    faults = [] if translated.is_whole else ["a text was cut by length"]
    if len(translated.options) != len(question.options):
        faults.append(
            f"{len(translated.options)} options, the original has {len(question.options)}"
        )
    for name, (before, after) in texts.items():
        if not after.strip():
            faults.append(f"{name} is empty")
        elif to == "en" and has_hangul(after):
            faults.append(f"{name} has Korean left: {_excerpt(after)}")
        elif numbers_in(before) != numbers_in(after):
            faults.append(f"{name} has numbers {_listed(after)}, the original {_listed(before)}")
    if to == "ko" and translated.question.strip() and not has_hangul(translated.question):
        faults.append(f"question has no Korean: {_excerpt(translated.question)}")
    # Options may differ in signs alone, "+" and "-"; that is a fault only where the originals differ in words.
    options = list(zip(LETTERS, question.options, translated.options))
    for i, (letter, before, after) in enumerate(options):
        for other, before_other, after_other in options[:i]:
            is_lost = _words(after) == _words(after_other) and _words(before) != _words(
                before_other
            )
            if after.strip() and (is_lost or after.split() == after_other.split()):
                faults.append(f"options {other} and {letter} both say {_excerpt(after)}")
    return tuple(faults) or _faults_of_reading(question, translated, to)


def _faults_of_reading(
    question: Question, translated: TranslatedQuestion, to: str
) -> tuple[str, ...]:
    """Returns what changed for the reader of the written row: its key, count, id or language."""
    try:
        read = exams.question_from_row(
            row_of(question, translated), Source("translated", "exam", "translated"), 1
        )
    except BadRowReason as reason:
        return (str(reason),)
    expected = (
        question.id,
        question.answer,
        len(question.options),
        question.exam,
        question.year,
        question.number,
        to,
    )
    found = (
        read.id,
        read.answer,
        len(read.options),
        read.exam,
        read.year,
        read.number,
        read.language,
    )
    return () if found == expected else (f"reads back as {found}, expected {expected}",)


def numbers_in(text: str) -> list[str]:
    """Returns the numbers in a text, sorted, since word order differs; 1,000 is 1000, ３ is 3 and 34만 is 340000."""
    plain = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text))
    plain = _MYRIADS.sub(lambda found: f"{round(float(found[1]) * _MYRIAD[found[2]])} ", plain)
    return sorted(_NUMBER.findall(plain))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _listed(text: str) -> str:
    return ", ".join(numbers_in(text)) or "none"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
