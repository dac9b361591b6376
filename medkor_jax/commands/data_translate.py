"""`medkor data translate`: an exam put into the other language by a model at hand.

    done = translate_exam("runs/quickstart", "doctor/train.csv", to="en", out="doctor-train-en.jsonl")
    say(done.table())

The translation itself, its checks and its files are in `eval.exam_translation`; a run translates an exam by itself
(`run.translated`). Read some rows before training on them.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from medkor_jax.commands.arguments import WEIGHTS, add_dtype, add_mesh, add_part, add_style, whole
from medkor_jax.commands.opening import base_of, check_mesh, open_scorer, shown
from medkor_jax.data import rows
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_questions
from medkor_jax.data.style import AUTO
from medkor_jax.eval.exam_translation import (
    MAX_NEW_TOKENS,
    ExamTranslation,
    beside,
    finish_exam,
    other_language,
    settings_of,
)
from medkor_jax.eval.translation_work import Work
from medkor_jax.io.loaded_model import style_of
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.run.named_model import open_model

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
    given = other_language(to)
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
    how: Any = dict(to=to, batch_size=batch_size, max_new_tokens=max_new_tokens)
    settings = settings_of(model.digest, style_of(model, style), questions, dtype=dtype, **how)
    work = Work(beside(pathlib.Path(out), "work"), settings, questions)
    how["out"] = out
    if len(work.done) == len(questions):
        return finish_exam(None, questions, work, **how)
    opened: Any = dict(dtype=dtype, batch_size=batch_size, style=style, mesh_shape=mesh)
    with open_scorer(model, **opened) as scorer:
        return finish_exam(scorer, questions, work, on_progress=on_progress, **how)
