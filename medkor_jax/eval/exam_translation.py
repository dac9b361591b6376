"""An exam put into the other language by a model, checked, and written as an exam.

    work = Work(beside(out, "work"), settings, questions)                                # settings_of(...)
    done = finish_exam(scorer, questions, work, to="en", out=out, batch_size=16)        # done.n_passed, done.faults

Question and options are translated one by one, a question of several lines line by line, each asked as
translation is taught (`data.pairs`); the key is carried over, and a text without a word of the other
language (a number, a drug's Latin name) is kept. What the model wrote goes to OUT.work.jsonl, some questions at a
time, so that a killed run resumes where it stopped and ends with the same file. A row is kept only if it passes
`data.translated_exam.find_faults`; the others, with the reasons, are in OUT.failed.jsonl.

What it does not do: translate rationales, repair a row, or judge meaning. Text that passes can still be wrong:
a model that translates badly makes a bad exam.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from medkor_jax.data.contents import sha256_of
from medkor_jax.data.language import has_hangul
from medkor_jax.data.pairs import LABELS
from medkor_jax.data.question import Question
from medkor_jax.data.style import Style
from medkor_jax.data.translated_exam import TranslatedQuestion, find_faults, row_of
from medkor_jax.eval.scoring import Continuation, Scorer
from medkor_jax.eval.translation import translate
from medkor_jax.eval.translation_work import Work, json_lines
from medkor_jax.io.files import write_atomically

MAX_NEW_TOKENS = 512  # for one line; half a page
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Fault:
    id: str
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ExamTranslation:
    """What came of it. kept: questions whose translation an earlier, interrupted run had made. n_tokens: written in all."""

    out: pathlib.Path
    n_questions: int
    faults: tuple[Fault, ...]
    kept: int
    n_tokens: int

    @property
    def n_passed(self) -> int:
        return self.n_questions - len(self.faults)

    def table(self) -> str:
        """Returns how many rows passed, and the first of those that did not with their reasons."""
        kept = f", {self.kept} of them by an earlier run" if self.kept else ""
        lines = [
            f"{self.out}: {self.n_passed} of {self.n_questions} questions translated and checked{kept}"
        ]
        lines += [
            f"  failed: {fault.id}: {'; '.join(fault.reasons)}" for fault in self.faults[:_SHOWN]
        ]
        if len(self.faults) > _SHOWN:
            lines.append(f"  ... and {len(self.faults) - _SHOWN} more")
        if self.faults:
            lines.append(f"  with what the model wrote: {beside(self.out, 'failed')}")
        return "\n".join(lines)


def finish_exam(
    scorer: Scorer | None,
    questions: Sequence[Question],
    work: Work,
    *,
    to: str,
    out: str | os.PathLike,
    batch_size: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExamTranslation:
    """Translates what `work` has not yet, then checks all and writes `out` and its list of failed rows.

    So many parameters, for tests give it another scorer and tokenizer than those of weights.

    Raises: ValueError if no row passes.
    """
    kept = len(work.done)
    # Always the same questions together, so that a row does not depend on where an earlier run was killed.
    for start in range(kept, len(questions), batch_size):
        work.add(_render(scorer, questions[start : start + batch_size], to, max_new_tokens))
        if on_progress is not None:
            on_progress(len(work.done), len(questions))
    good, failed, faults = [], [], []
    for question, translated in zip(questions, work.done, strict=True):
        row = row_of(question, translated)
        if reasons := find_faults(question, translated, to):
            faults.append(Fault(question.id, reasons))
            original = {"question": question.question, "options": question.options}
            failed.append({"reasons": reasons, **row, "translated_from": original})
        else:
            good.append(row)
    out = pathlib.Path(out)
    write_atomically(beside(out, "failed"), json_lines(failed))
    if not good:
        raise ValueError(
            f"none of the {len(questions)} translated questions passes the checks, the first because: "
            f"{'; '.join(faults[0].reasons)}. See {beside(out, 'failed')}; translate with weights that were taught to"
        )
    write_atomically(out, json_lines(good))
    n_tokens = sum(one.n_tokens for one in work.done)
    return ExamTranslation(out, len(questions), tuple(faults), kept, n_tokens)


def lines_of(question: Question, to: str) -> list[str]:
    """Returns the lines of question and options that are put to the model, in their order."""
    texts = (question.question, *question.options)
    return [line.strip() for text in texts for line in text.split("\n") if _needs(line, to)]


def _render(
    scorer: Scorer, questions: Sequence[Question], to: str, max_new_tokens: int
) -> list[TranslatedQuestion]:
    """Returns the questions in language `to`; all their lines go to the scorer together."""
    given = other_language(to)
    wanted = [(line, given, to) for question in questions for line in lines_of(question, to)]
    written = iter(translate(scorer, wanted, max_new_tokens=max_new_tokens) if wanted else ())
    made = []
    for question in questions:
        of_question: list[Continuation] = []
        translations = []
        for text in (question.question, *question.options):
            lines = text.split("\n")
            for i, line in enumerate(lines):
                if _needs(line, to):
                    of_question.append(next(written))
                    lines[i] = of_question[-1].text
            translations.append("\n".join(lines))
        is_whole = all(one.is_whole for one in of_question)
        n_tokens = sum(one.n_tokens for one in of_question)
        made.append(
            TranslatedQuestion(
                question.id, translations[0], tuple(translations[1:]), is_whole, n_tokens
            )
        )
    return made


def _needs(line: str, to: str) -> bool:
    """Returns whether the line has a word of the other language."""
    return (
        has_hangul(line)
        if to == "en"
        else re.search("[A-Za-z]", line) is not None and not has_hangul(line)
    )


def other_language(to: str) -> str:
    if to not in LABELS:
        raise ValueError(f"language is {to!r}, expected one of {', '.join(LABELS)}")
    return next(language for language in LABELS if language != to)


def questions_digest(questions: Sequence[Question]) -> str:
    return sha256_of([repr(list(questions))])


def settings_of(
    weights_digest: str,
    style: Style,
    questions: Sequence[Question],
    *,
    to: str,
    batch_size: int,
    max_new_tokens: int,
    dtype: str,
) -> dict[str, Any]:
    """Returns what decides what the model writes, as the work file states it: work begun with other settings is not gone on with."""
    return {
        "weights": weights_digest,
        "to": to,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "style": style.name,
        "questions": questions_digest(questions),
    }


def beside(out: pathlib.Path, what: str) -> pathlib.Path:
    """Returns the file that belongs to `out`: exam.jsonl has exam.jsonl.work.jsonl and exam.jsonl.failed.jsonl."""
    return out.with_name(f"{out.name}.{what}.jsonl")
