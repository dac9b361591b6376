"""Every source of a run, loaded once, and the check that nothing it judges by is trained on.

    corpora = Corpora(drop_bad=False)
    corpora.refuse_leaks(recipe)                    # raises LeakError with what to write if it is known
    corpora.examples(stage.data)                    # [(source, documents)] for the loop

What it does not do: read rows (`data.sources`), or make batches of them (`data.batches`).
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from medkor_jax.data.check import FEWSHOT, JUDGED, TRAINED, Use, leaks_of, loader_of
from medkor_jax.data.contents import content_digest
from medkor_jax.data.kept import size_bytes
from medkor_jax.data.leakage import Leak, unexcused
from medkor_jax.data.likeness import content_key
from medkor_jax.data.pairs import Pair, load_pairs
from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import Example, Loaded, Source
from medkor_jax.data.sources import OF_QUESTIONS, load_examples, load_questions
from medkor_jax.data.stored import StoredExamples
from medkor_jax.io.models import Model
from medkor_jax.parallel.hosts import say
from medkor_jax.run.at_hand import NotHereError, is_at_hand, is_here
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import Recipe
from medkor_jax.run.translation_files import TranslationFiles


class LeakError(ValueError):
    """Something that judges the run is also trained on."""


class Corpora:
    """Loads on first use and keeps. Bad rows raise BadDataError; with `drop_bad` they are left out.

    form: how the reasoning that sources of kind "reasoning" teach is written. style_digest: of the chat template in which all
    is put to the model, "" where it is asked plainly. say: what was left out or read otherwise is printed. only_here: nothing is
    fetched; a source that would have to be raises NotHereError, and no leak is looked for in it.
    """

    def __init__(
        self,
        drop_bad: bool,
        form: ReasoningFormat = ReasoningFormat(),
        *,
        say: bool = True,
        style_digest: str = "",
        only_here: bool = False,
    ) -> None:
        self.style_digest = style_digest
        self._drop_bad, self._form, self._say = drop_bad, form, say
        self._only_here, self._here = only_here, dict[tuple[str, ...], bool]()
        self._loaded: dict[tuple[str, Source], Loaded] = {}
        self._digests: dict[Source, str] = {}
        self.translations = TranslationFiles()
        self._said: set[Source] = set()

    def examples(self, sources: Sequence[Source]) -> list[tuple[Source, Sequence[Example]]]:
        return [
            (source, self._load(source, functools.partial(load_examples, form=self._form)).rows)
            for source in sources
        ]

    def questions(self, source: Source) -> Sequence[Question]:
        return self._load(source, functools.partial(load_questions, form=self._form)).rows

    def pairs(self, source: Source) -> Sequence[Pair]:
        return self._load(source, load_pairs).rows

    def of_use(self, use: Use) -> Loaded:
        """Returns a source's documents as leaks are looked for in them, see `check.loader_of`."""
        return self._load(use.source, loader_of(use, self._form))

    def compared(self, use: Use) -> Sequence[Any]:
        """Returns what leaks are looked for in: the documents, and of a translation the questions that it was made from too."""
        found = self.of_use(use).rows
        if self.translations.of(use.source) is None:
            return found
        passed = {question.origin for question in found}
        originals = self.questions(use.source.original)
        return [*found, *(q for q in originals if (q.origin or content_key(q)) in passed)]

    def rows(self, source: Source) -> Sequence[Example | Question]:
        """Returns every row that the source gives, a question as a question."""
        return (
            self.questions(source)
            if source.kind in OF_QUESTIONS
            else self.examples((source,))[0][1]
        )

    def digest(self, source: Source) -> str:
        """Returns a digest of every row that `source` gives, as it is taught or read."""
        place = self.translations.read_from(source)
        if place not in self._digests:
            self._digests[place] = content_digest(self.rows(source))
        return self._digests[place]

    def said(self, source: Source) -> str:
        """Returns what a record keeps of a source that is trained on: what it is, how many rows, and their digest."""
        carried = f", loss {source.loss}" if source.loss else ""
        return (
            f"{len(self.rows(source))} rows of kind {source.kind}, digest {self.digest(source)[:16]}, "
            f"weight {source.weight:g}{carried}"
        )

    def leaks(self, recipe: Recipe, weights: Sequence[str] = ()) -> list[Leak]:
        """Returns every leak between what any phase trains on, or the weights have read, and what any judges by; with `weights`,
        of what those have read alone."""
        read = self.read_before(recipe, weights)
        uses = [
            use
            for use in uses_of(recipe)
            if self.has(use.source) and (use.purpose == JUDGED or not weights)
        ]
        found: dict[str, Leak] = {}
        for leak in leaks_of(uses, self.compared, read) if read or not weights else ():
            found.setdefault(leak.key, leak)  # a translation and what it was made from: the same
        return list(found.values())

    def read_before(
        self, recipe: Recipe, weights: Sequence[str] = ()
    ) -> list[tuple[str, Sequence[Example | Question]]]:
        """Returns what `weights`, or those that the run starts from for certain, were trained on, as (NAME@WEIGHTS, its documents).

        Raises: LeakError if some of it cannot be read any more, and is not named in allow_leaks as "NAME@WEIGHTS ~ *".
        """
        trained = frozenset(
            _content(self.translations.read_from(use.source))
            for use in uses_of(recipe)
            if use.purpose == TRAINED
        )
        allowed = [
            name.removesuffix(" ~ *") for name in recipe.allow_leaks if name.endswith(" ~ *")
        ]
        found: list[Any] = []
        lost: list[Any] = []
        for name in weights or recipe.outside_weights:
            if not weights and name != recipe.weights and not pathlib.Path(name).exists():
                continue  # a candidate on the hub: too large to fetch for this, before it is put to its exam
            if self._only_here and not is_at_hand(name):
                continue
            documents, missing = documents_read(
                open_model(name), name, self._form, known=trained, passed_over=allowed
            )
            found, lost = found + documents, lost + missing
        if lost:
            shown = "\n".join(f"  {line}" for line in lost)
            raise LeakError(
                f"what these weights were trained on cannot be compared with what judges this run:\n{shown}\n"
                "Put the files back, or accept what cannot be known by naming it in allow_leaks: 'NAME@WEIGHTS ~ *'"
            )
        return found

    def refuse_leaks(self, recipe: Recipe, weights: Sequence[str] = ()) -> None:
        """Raises: LeakError listing every unnamed leak, see `leaks`."""
        if left := unexcused(self.leaks(recipe, weights), recipe.allow_leaks):
            shown = "\n".join(f"  {describe_leak(leak)}" for leak in left[:20])
            more = f"\n  ... and {len(left) - 20} more" if len(left) > 20 else ""
            raise LeakError(
                f"{len(left)} documents that judge this run are also trained on or shown:\n{shown}{more}\n"
                "Take them out, or name in allow_leaks what you accept: a key as printed above, or 'source ~ source' for a pair"
            )

    def has(self, source: Source) -> bool:
        """Whether the source may be read: all of them where fetching is allowed."""
        source = self.translations.read_from(source)
        if not self._only_here:
            return True
        key = (source.path, source.subset, source.split, source.revision)
        if key not in self._here:
            self._here[key] = is_here(source)
        return self._here[key]

    def _load(self, source: Source, load: Callable[..., Loaded]) -> Loaded:
        if not self.has(source):
            raise NotHereError(f"{source.name} ({source.path}) is not here yet")
        source = self.translations.read_from(source)
        key = (getattr(load, "func", load).__name__, source)
        if key not in self._loaded:
            loaded = self._loaded[key] = load(source, drop_bad=self._drop_bad)
            if self._say and source not in self._said:
                self._said.add(source)
                _say(source, loaded)
        return self._loaded[key]


def documents_read(
    model: Model,
    weights: str,
    form: ReasoningFormat = ReasoningFormat(),
    *,
    known: frozenset[Source] = frozenset(),
    passed_over: Sequence[str] = (),
) -> tuple[list[tuple[str, Sequence[Example | Question]]], list[str]]:
    """Returns what the model was trained on by runs of this program, as (NAME@WEIGHTS, documents), and in words what of it
    cannot be read any more.

    weights: the model as the person named it. known: contents at hand already, see `_content`. passed_over: names that need not be read.
    """
    found, lost = [], []
    for reading in model.read:
        name = f"{reading.source.name}@{weights}"
        if name in passed_over:
            continue
        if not reading.is_unchanged:
            lost.append(
                f"{name}: {reading.source.path}, which {reading.by} was trained on, is not there or not what it was"
            )
        elif _content(reading.source) not in known:
            try:
                found.append(
                    (
                        name,
                        Corpora(True, form, say=False).rows(
                            dataclasses.replace(reading.source, name=name)
                        ),
                    )
                )
            except ValueError as error:
                lost.append(
                    f"{name}: {reading.source.path}, which {reading.by} was trained on: {error}"
                )
    return found, lost


def _say(source: Source, loaded: Loaded) -> None:
    if isinstance(loaded.rows, StoredExamples):
        place = loaded.rows.directory
        size = f"{size_bytes(place) / 1e9:.2f} GB"
        say(
            f"{source.name}: {len(loaded.rows):,} documents, kept in {place} ({size}, which may be deleted)"
        )
    for note in loaded.notes:
        say(f"{source.name}: {note}")
    if loaded.bad:
        say(f"{source.name}: {len(loaded.bad)} bad rows left out:")
        for row in loaded.bad[:20]:
            say(f"  {row}")


def _content(source: Source) -> Source:
    """Returns what decides which documents a source gives."""
    path = (
        str(pathlib.Path(source.path).resolve())
        if pathlib.Path(source.path).exists()
        else source.path
    )
    return dataclasses.replace(source, name="", weight=1.0, loss="", licence="", path=path)


def uses_of(recipe: Recipe) -> list[Use]:
    """Returns every source of every phase with what it is for, each once."""
    uses = [
        Use(TRAINED, source)
        for phase in recipe.phases
        for stage in (phase.train, phase.remedy)
        if stage.steps
        for source in stage.data
    ]
    for phase in recipe.phases:
        uses += [
            Use(JUDGED, source)
            for stage in (phase.train, phase.remedy)
            if stage.steps
            for source in stage.validation
        ]
    exams = (*recipe.exams, *recipe.final)
    uses += [Use(JUDGED, exam.source) for exam in exams]
    uses += [Use(FEWSHOT, exam.fewshot) for exam in exams if exam.fewshot and exam.shots]
    uses += [Use(JUDGED, source) for phase in recipe.phases for source in phase.translations]
    uses += [Use(JUDGED, source) for source in recipe.held_out]
    return list(dict.fromkeys(uses))


def describe_leak(leak: Leak) -> str:
    return (
        f"{leak.key}  ({leak.kind}, {leak.which}, {leak.similarity:.2f})  {leak.judged_excerpt!r}"
    )
