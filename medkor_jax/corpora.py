"""Every source of a run, loaded once, and the check that nothing it judges by is trained on.

    corpora = Corpora(drop_bad=False)
    corpora.refuse_leaks(recipe)                    # raises LeakError with what to write if it is known
    corpora.examples(stage.data)                    # [(source, documents)] for the loop
"""

from __future__ import annotations

from typing import Sequence

from medkor_jax.data.check import FEWSHOT, JUDGED, TRAINED, DataReport, Use, check
from medkor_jax.data.contents import content_digest
from medkor_jax.data.exams import Question
from medkor_jax.data.leakage import Leak, find_leaks, unexcused
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import Example, Source
from medkor_jax.data.sources import OF_QUESTIONS, load_examples, load_questions
from medkor_jax.data.translation import Pair, load_pairs
from medkor_jax.named_model import open_model
from medkor_jax.phases import Recipe


class LeakError(ValueError):
    """Something that judges the run is also trained on."""


class Corpora:
    """Loads on first use and keeps. Bad rows raise BadDataError; with `drop_bad` they are printed and left out.

    form: how the reasoning that sources of kind "reasoning" teach is written.
    """

    def __init__(self, drop_bad: bool, form: ReasoningFormat = ReasoningFormat()) -> None:
        self._drop_bad, self._form = drop_bad, form
        self._examples: dict[Source, Sequence[Example]] = {}
        self._questions: dict[Source, Sequence[Question]] = {}
        self._pairs: dict[Source, Sequence[Pair]] = {}
        self._digests: dict[Source, str] = {}

    def examples(self, sources: Sequence[Source]) -> list[tuple[Source, Sequence[Example]]]:
        for source in sources:
            if source not in self._examples:
                self._examples[source] = self._kept(source, load_examples(source, drop_bad=self._drop_bad, form=self._form))
        return [(source, self._examples[source]) for source in sources]

    def questions(self, source: Source) -> Sequence[Question]:
        if source not in self._questions:
            self._questions[source] = self._kept(source, load_questions(source, drop_bad=self._drop_bad, form=self._form))
        return self._questions[source]

    def pairs(self, source: Source) -> Sequence[Pair]:
        if source not in self._pairs:
            self._pairs[source] = self._kept(source, load_pairs(source, drop_bad=self._drop_bad))
        return self._pairs[source]

    def digest(self, source: Source) -> str:
        """Returns a digest of every row that `source` gives, as it is taught or read."""
        if source not in self._digests:
            rows = self.questions(source) if source.kind in OF_QUESTIONS else self.examples((source,))[0][1]
            self._digests[source] = content_digest(rows)
        return self._digests[source]

    def said(self, source: Source) -> str:
        """Returns what a record keeps of a source that is trained on: what it is, how many rows, and their digest."""
        rows = self.questions(source) if source.kind in OF_QUESTIONS else self.examples((source,))[0][1]
        return f"{len(rows)} rows of kind {source.kind}, digest {self.digest(source)[:16]}, weight {source.weight:g}"

    def refuse_leaks(self, recipe: Recipe) -> None:
        """Raises: LeakError listing every unnamed leak between what any phase trains on and what any judges by."""
        documents = {TRAINED: [], JUDGED: [], FEWSHOT: []}
        for use in uses_of(recipe):
            source = use.source
            rows = self.questions(source) if source.kind in OF_QUESTIONS else self.examples((source,))[0][1]
            documents[use.purpose].append((source.name, rows))
        leaks = find_leaks(documents[TRAINED] + documents[FEWSHOT], documents[JUDGED])
        if left := unexcused(leaks, recipe.allow_leaks):
            shown = "\n".join(f"  {describe_leak(leak)}" for leak in left[:20])
            more = f"\n  ... and {len(left) - 20} more" if len(left) > 20 else ""
            raise LeakError(
                f"{len(left)} documents that judge this run are also trained on or shown:\n{shown}{more}\n"
                "Take them out, or name in allow_leaks what you accept: a key as printed above, or 'source ~ source' for a pair"
            )

    def _kept(self, source: Source, loaded):
        for note in loaded.notes:
            print(f"{source.name}: {note}")
        if loaded.bad:
            print(f"{source.name}: {len(loaded.bad)} bad rows left out:")
            for row in loaded.bad[:20]:
                print(f"  {row}")
        return loaded.rows


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
        uses += [Use(JUDGED, source) for stage in (phase.train, phase.remedy) if stage.steps for source in stage.validation]
    exams = (*recipe.exams, *recipe.final)
    uses += [Use(JUDGED, exam.source) for exam in exams]
    uses += [Use(FEWSHOT, exam.fewshot) for exam in exams if exam.fewshot and exam.shots]
    uses += [Use(JUDGED, source) for phase in recipe.phases for source in phase.translations]
    uses += [Use(JUDGED, source) for source in recipe.watch]
    return list(dict.fromkeys(uses))


def describe_leak(leak: Leak) -> str:
    return f"{leak.key}  ({leak.kind}, {leak.which}, {leak.similarity:.2f})  {leak.judged_excerpt!r}"


def check_recipe(recipe: Recipe) -> DataReport:
    """Returns what `medkor data check` shows of a recipe's sources, tokens counted with its weights' tokenizer."""
    return check(uses_of(recipe), open_model(recipe.weights).tokenizer, allowed=recipe.allow_leaks, form=recipe.reasoning)
