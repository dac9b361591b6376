r"""The one question that `medkor ask` is given: a row of an exam, or a text that was typed.

    exam_question("exam.csv", 3)
    typed_question("Which vitamin ...?\nA. one\nB. two")

It asks nobody.
"""

from __future__ import annotations

import re
import sys

from medkor_jax.data.cells import composed
from medkor_jax.data.language import has_hangul
from medkor_jax.data.question import LETTERS, Question
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_questions

_OPTION = re.compile(rf"^[ \t]*([{LETTERS}])[.)][ \t]+", re.MULTILINE)
_ASKED_FOR = re.compile(r"\s*(?:정답|풀이|Answer|Reasoning)\s*[:：]\s*$")


def exam_question(
    exam: str, row: int, *, split: str = "valid", subset: str = "", language: str = ""
) -> Question:
    """Returns question `row`, counted from 1, of a file, a hub id or "embedded". Raises: ValueError if there are fewer."""
    source = Source(exam, "exam", exam, split=split, subset=subset, language=language)
    loaded = load_questions(source, drop_bad=True)
    questions = loaded.rows
    for note in (*loaded.notes, *(f"left out: {row}" for row in loaded.bad)):
        print(f"{exam}: {note}", file=sys.stderr)
    if not 1 <= row <= len(questions):
        raise ValueError(f"{exam} has questions 1 to {len(questions)}; row {row} was asked for")
    return questions[row - 1]


def typed_question(text: str) -> Question | str:
    """Returns the question that a text holds, options as lines "A. ...", or the text itself if it has none.

    Such a question has no key: its `answer` means nothing.
    """
    text = _ASKED_FOR.sub("", composed(text).strip())
    found = list(_OPTION.finditer(text))
    if not text:
        raise ValueError(
            "the question is empty; give --question TEXT, --exam FILE --row N, or text on standard input"
        )
    if len(found) < 2 or [match[1] for match in found] != list(LETTERS[: len(found)]):
        return text
    ends = [match.start() for match in found[1:]] + [len(text)]
    options = tuple(text[match.end() : end].strip() for match, end in zip(found, ends))
    language = "ko" if has_hangul(text) else "en"
    return Question("typed", "typed", None, language, text[: found[0].start()].strip(), options, 0)
