"""The questions that `medkor eval` asks: of a file or hub id, or of an exam by its name, subset by subset.

    mode, split, n_shots = usual("medqa")                       # "letter", "test", 0
    parts = read_parts("mmlu-medical", split, limit=20)         # six parts, the first 20 questions of each

What it does not do: ask.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from medkor_jax.commands.opening import shown
from medkor_jax.data.named_exams import NAMED
from medkor_jax.data.question import Question
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_questions

_SPLITS = ("train", "training", "valid", "validation", "dev", "test", "fewshot")
"""Words in a file's name that say which it is."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Questions that are asked with the same shots in front of each."""

    questions: Sequence[Question]
    shots: Sequence[Question]


def usual(
    exam: str, mode: str = "", split: str = "", n_shots: int | None = None
) -> tuple[str, str, int]:
    """Returns mode, split and shots: as given, else as the exam of that name is asked, else letter, valid and none."""
    named = NAMED.get(exam)
    mode = mode or (named.mode if named else "letter")
    if n_shots is None:
        n_shots = named.shots if named and mode == named.mode else 0
    return mode, split or (named.split if named else "valid"), n_shots


def read_parts(
    exam: str,
    split: str,
    *,
    subset: str = "",
    language: str = "",
    fewshot: str | None = None,
    n_shots: int = 0,
    drop_bad: bool = False,
    **of_questions: Any,
) -> list[Part]:
    """Returns the parts of the exam, one where it has no subsets. Its parameters are options of `medkor eval`.

    of_questions: keys of a source, such as limit, that are not those of the shots.

    Raises: ValueError if a subset is not there, or the shots; BadDataError.
    """

    def read(path: str, subset: str, split: str, **rest: Any) -> list[Question]:
        name = f"{path}/{subset}" if path in NAMED and len(subsets) > 1 else path
        source = Source(name, "exam", path, split=split, subset=subset, language=language, **rest)
        return shown(source.name, load_questions(source, drop_bad=drop_bad))

    named = NAMED.get(exam)
    subsets = named.chosen(subset) if named else (subset,)
    shown_from, shown_split = fewshot, "fewshot"
    if n_shots and not fewshot and named and named.fewshot:
        shown_from, shown_split = exam, named.fewshot
    if n_shots and shown_from is None:
        raise ValueError(
            f"{n_shots} shots are asked for and no few-shot file is named; give --fewshot FILE"
        )
    parts = []
    for one in subsets:
        questions = read(exam, one, split, **of_questions)
        shots = read(shown_from, one, shown_split)[:n_shots] if n_shots and shown_from else []
        if len(shots) < n_shots:
            raise ValueError(
                f"{shown_from} holds {len(shots)} questions; {n_shots} shots were asked for"
            )
        parts.append(Part(questions, shots))
    return parts


def known_split(path: str, split: str) -> str:
    """Returns the split as far as it is known: of a file, what its name says; of a hub id or what is embedded, what was asked for."""
    if not pathlib.Path(path).is_file():
        return split
    words = re.split(r"[^a-z]+", pathlib.Path(path).name.lower())
    return next((word for word in words if word in _SPLITS), "not said")
