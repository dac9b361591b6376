"""A run translates the exams that it is given in no other form, before it trains anything.

    translate_all(recipe, corpora, pending, scorer_of)  # RUN_DIR/translated/NAME.jsonl, .json, .jsonl.work.jsonl, .jsonl.failed.jsonl

It is done once. NAME.json says by which weights, prompts and rows it was made, what it cost and which rows failed. Where one of
the former is another, the files are moved aside and made anew; what was trained on or judged by the old rows is then known by
their content, as everything is. A killed run goes on to the same file. Every process of several takes part.

How an exam is translated and checked: `eval.exam_translation`. What it does not do: judge meaning.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from medkor_jax.data.contents import file_digest
from medkor_jax.data.question import Question
from medkor_jax.data.rows import Source
from medkor_jax.eval.exam_translation import MAX_NEW_TOKENS, beside, finish_exam
from medkor_jax.eval.scoring import Scorer
from medkor_jax.eval.translation_work import Work
from medkor_jax.io.files import write_sealed
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import ConfigError, Recipe
from medkor_jax.run.translated import (
    BATCH_SIZE,
    file_of,
    originals_of,
    settings_for,
    take,
    translator_of,
    translators_of,
)
from medkor_jax.run.translation_files import FORMAT, read_report, report_words

_SAID_EVERY = 10  # batches


def translate_all(
    recipe: Recipe,
    corpora: Corpora,
    pending: Sequence[Source],
    scorer_of: Callable[[str], Scorer],
) -> None:
    """Translates what is `pending`; `corpora` reads it from then on. One model is held at a time, the run's own last.

    scorer_of: loads the weights of that name, which is asked for only where something is left to translate.

    Raises: ConfigError if of some exam no row passes the checks.
    """
    for name, of_name in translators_of(recipe).items():
        scorer: Scorer | None = None
        for source in (one for one in of_name if one in pending):
            hosts.at(f"translating {source.name}")
            model, questions = open_model(name), originals_of(corpora, source)
            made_by = settings_for(recipe, source, questions, model)
            out = file_of(recipe, source)
            if aside := hosts.first(out, functools.partial(_move_aside, out, made_by)):
                say(aside)
            report = _Report(recipe, source, made_by)
            report.write()
            work = Work(beside(out, "work"), made_by, questions)
            if scorer is None and len(work.done) < len(questions):
                scorer = scorer_of(name)
            take(recipe, corpora, source, _finish(report, questions, work, scorer))


class _Report:
    """What stands beside the translation, written from its beginning on, so that no time it took is lost with a kill."""

    def __init__(self, recipe: Recipe, source: Source, made_by: dict[str, Any]) -> None:
        self.source, self.out, self.made_by = source, file_of(recipe, source), made_by
        self.by = translator_of(recipe, source)
        self._path = self.out.with_suffix(".json")
        before = hosts.first(self._path, lambda: read_report(self._path))
        self._seconds, self._began = before["seconds"] if before else 0.0, time.monotonic()

    def write(self, digest: str = "", **found: Any) -> dict[str, Any]:
        """Returns what it says now, which is on disk then. digest: of the whole file."""
        seconds = round(self._seconds + time.monotonic() - self._began, 3)
        said = {
            "format": FORMAT,
            "name": self.source.name,
            "to": self.source.translated_to,
            "by": self.by,
            "made_by": self.made_by,
            "seconds": hosts.first(f"seconds of {self.source.name}", lambda: seconds),
            "digest": digest,
            **found,
        }
        write_sealed(self._path, said)
        return said

    def note(self, n_done: int, total: int) -> None:
        self.write()
        if n_done == total or n_done % (_SAID_EVERY * BATCH_SIZE) == 0:
            say(f"{self.source.name}: translated {n_done} of {total}")


def _finish(
    report: _Report, questions: Sequence[Question], work: Work, scorer: Scorer | None
) -> dict[str, Any]:
    """Returns the report of the whole translation, which is on disk then. Raises: ConfigError if no row passes the checks."""
    try:
        done = finish_exam(
            scorer,
            questions,
            work,
            to=report.source.translated_to,
            out=report.out,
            batch_size=BATCH_SIZE,
            max_new_tokens=MAX_NEW_TOKENS,
            on_progress=report.note,
        )
    except ValueError as error:
        raise ConfigError(
            f"{report.source.name}, translated by {report.by}: {error}. Others can be named as `translator` of the source. "
            "Nothing was trained"
        ) from error
    counts = {name: getattr(done, name) for name in ("n_questions", "n_passed", "n_tokens")}
    faults = [dataclasses.asdict(fault) for fault in done.faults]
    digest = hosts.first(f"digest of {report.source.name}", lambda: file_digest(report.out))
    whole = report.write(digest, **counts, faults=faults)
    say(report_words(whole))
    return whole


def _move_aside(out: pathlib.Path, made_by: dict[str, Any]) -> str:
    """Moves aside what other weights made, or what was made of other rows; returns what was done, "" for nothing."""
    report = read_report(out.with_suffix(".json"))
    files = [out, out.with_suffix(".json"), beside(out, "work"), beside(out, "failed")]
    there = [file for file in files if file.exists()]
    if not there or (report and report["made_by"] == made_by):
        return ""
    was = report["made_by"] if report else {}
    others = ", ".join(name for name, value in made_by.items() if was.get(name) != value)
    number = 1
    while (place := out.with_name(f"{out.stem}.before-{number}")).exists():
        number += 1
    place.mkdir()
    for file in there:
        file.rename(place / file.name)
    return (
        f"{out.stem} is translated anew: other {others}. What was made before is in {place}; what was judged by it is judged again, "
        "and what was trained on it has to be trained again (--restart)"
    )
