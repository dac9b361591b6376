"""`medkor data translate`: an exam put into the other language by a model at hand.

    done = translate_exam("runs/quickstart", "doctor/train.csv", to="en", out="doctor-train-en.jsonl")
    say(done.table())

Question and options are translated one by one, a question of several lines line by line, each asked as
translation is taught (`data.pairs`), of a translator such as TranslateGemma by its own chat template; the key is carried over, and a text without a word of the other
language (a number, a drug's Latin name) is kept. What the model wrote goes to OUT.work.jsonl, some questions at a
time, so that a killed run resumes where it stopped and ends with the same file. A row is kept only if it passes
`data.translated_exam.find_faults`; the others, with the reasons, are in OUT.failed.jsonl.

What it does not do: translate rationales, repair a row, or judge meaning. Text that passes can still be wrong:
a model that translates badly makes a bad exam. Read some rows before training on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from medkor_jax.commands.arguments import WEIGHTS, add_dtype, add_mesh, add_part, add_style, whole
from medkor_jax.commands.opening import base_of, check_mesh, open_scorer, shown
from medkor_jax.commands.translation_work import Work, json_lines
from medkor_jax.data import rows
from medkor_jax.data.contents import sha256_of
from medkor_jax.data.language import has_hangul
from medkor_jax.data.pairs import LABELS
from medkor_jax.data.question import Question
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_questions
from medkor_jax.data.style import AUTO
from medkor_jax.data.translated_exam import TranslatedQuestion, find_faults, row_of
from medkor_jax.eval.scoring import Scorer
from medkor_jax.eval.translation import translate
from medkor_jax.io.files import write_atomically
from medkor_jax.io.loaded_model import style_of
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.run.named_model import open_model

MAX_NEW_TOKENS = 512  # for one line; half a page
_SHOWN = 20
_OUT = "a .jsonl file; rows that fail the checks go to OUT.failed.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help=WEIGHTS)
    parser.add_argument("--exam", required=True, help="a file, a hub id, or embedded")
    parser.add_argument("--to", required=True, choices=("en", "ko"))
    parser.add_argument("--out", required=True, help=_OUT)
    add_part(parser, "train")
    words = "off: the base alone that a run stands on"
    parser.add_argument("--adapters", default="on", choices=("on", "off"), help=words)
    words = "first N questions (default: all)"
    parser.add_argument("--limit", type=whole(0), default=0, help=words)
    parser.add_argument("--batch-size", type=whole(1), default=16)
    words = "longest translation of one line"
    parser.add_argument("--max-new-tokens", type=whole(1), default=MAX_NEW_TOKENS, help=words)
    add_style(parser)
    add_dtype(parser)
    add_mesh(parser)
    parser.add_argument("--drop-bad", action="store_true")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    names = (
        "to",
        "out",
        "split",
        "subset",
        "limit",
        "batch_size",
        "max_new_tokens",
        "dtype",
        "style",
        "mesh",
    )
    done = translate_exam(
        arguments.weights,
        arguments.exam,
        **{name: getattr(arguments, name) for name in names},
        adapters=arguments.adapters == "on",
        drop_bad=arguments.drop_bad,
        on_progress=lambda done, total: say(f"translated {done} of {total}"),
    )
    say(done.table())


@dataclasses.dataclass(frozen=True)
class Fault:
    id: str
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ExamTranslation:
    """What came of it. kept: questions whose translation an earlier, interrupted run had made."""

    out: pathlib.Path
    n_questions: int
    faults: tuple[Fault, ...]
    kept: int

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
            lines.append(f"  with what the model wrote: {_beside(self.out, 'failed')}")
        return "\n".join(lines)


def translate_exam(
    weights: str,
    exam: str,
    *,
    to: str,
    out: str | os.PathLike,
    split: str = "train",
    subset: str = "",
    limit: int = 0,
    adapters: bool = True,
    batch_size: int = 16,
    max_new_tokens: int = MAX_NEW_TOKENS,
    dtype: str = "float32",
    drop_bad: bool = False,
    style: str = AUTO,
    on_progress: Callable[[int, int], None] | None = None,
    mesh: MeshShape | None = None,
) -> ExamTranslation:
    """Writes the exam in language `to` to `out`, as JSONL that `data.exams` reads, and says which rows failed.

    Its parameters are the options of `medkor data translate`, one for one; that is why they are so many.
    adapters: False translates with the base that the weights stand on. `on_progress(done, total)` counts questions.

    Raises: ValueError if `to` is no language, the exam is in it already, `out` was begun with other settings, or
    no row passes; BadDataError, WeightsError.
    """
    check_mesh(mesh)
    given = _other(to)
    source = Source(
        exam,
        "exam",
        exam,
        split=split,
        subset=subset,
        limit=limit,
        language=given if exam == rows.EMBEDDED else "",
    )
    questions = shown(exam, load_questions(source, drop_bad=drop_bad))
    if all(question.language == to for question in questions):
        raise ValueError(
            f"{exam} is in {to!r} already: there is nothing to translate; name the other language with --to"
        )
    model = open_model(weights) if adapters else base_of(open_model(weights))
    settings = {
        "weights": model.digest,
        "to": to,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "style": style_of(model, style).name,
        "questions": _digest(questions),
    }
    work = Work(_beside(pathlib.Path(out), "work"), settings, questions)
    how: Any = dict(to=to, out=out, batch_size=batch_size, max_new_tokens=max_new_tokens)
    if len(work.done) == len(questions):
        return finish_exam(None, questions, work, **how)
    opened: Any = dict(dtype=dtype, batch_size=batch_size, style=style, mesh_shape=mesh)
    with open_scorer(model, **opened) as scorer:
        return finish_exam(scorer, questions, work, on_progress=on_progress, **how)


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
    write_atomically(_beside(out, "failed"), json_lines(failed))
    if not good:
        raise ValueError(
            f"none of the {len(questions)} translated questions passes the checks, the first because: "
            f"{'; '.join(faults[0].reasons)}. See {_beside(out, 'failed')}; translate with weights that were taught to"
        )
    write_atomically(out, json_lines(good))
    return ExamTranslation(out, len(questions), tuple(faults), kept)


def _render(
    scorer: Scorer, questions: Sequence[Question], to: str, max_new_tokens: int
) -> list[TranslatedQuestion]:
    """Returns the questions in language `to`; all their lines go to the scorer together."""
    given = _other(to)
    texts = [
        [text.split("\n") for text in (question.question, *question.options)]
        for question in questions
    ]
    wanted = [
        (line.strip(), given, to)
        for question in texts
        for lines in question
        for line in lines
        if _needs(line, to)
    ]
    written = iter(translate(scorer, wanted, max_new_tokens=max_new_tokens) if wanted else ())
    made = []
    for question, parts in zip(questions, texts, strict=True):
        is_whole, translations = True, []
        for lines in parts:
            done = [next(written) if _needs(line, to) else line for line in lines]
            is_whole &= all(one.is_whole for one in done if not isinstance(one, str))
            translations.append(
                "\n".join(one if isinstance(one, str) else one.text for one in done)
            )
        made.append(
            TranslatedQuestion(question.id, translations[0], tuple(translations[1:]), is_whole)
        )
    return made


def _needs(line: str, to: str) -> bool:
    """Returns whether the line has a word of the other language."""
    return (
        has_hangul(line)
        if to == "en"
        else re.search("[A-Za-z]", line) is not None and not has_hangul(line)
    )


def _other(to: str) -> str:
    if to not in LABELS:
        raise ValueError(f"language is {to!r}, expected one of {', '.join(LABELS)}")
    return next(language for language in LABELS if language != to)


def _digest(questions: Sequence[Question]) -> str:
    return sha256_of([repr(list(questions))])


def _beside(out: pathlib.Path, what: str) -> pathlib.Path:
    """Returns the file that belongs to `out`: exam.jsonl has exam.jsonl.work.jsonl and exam.jsonl.failed.jsonl."""
    return out.with_name(f"{out.name}.{what}.jsonl")
