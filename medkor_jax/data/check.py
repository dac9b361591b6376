"""What a person wants to know of the data before training on it: the substance of `medkor data check`.

    report = check([Use("trained", source), Use("judged", exam)], style)
    report.sources[0].rows, report.sources[0].tokens.p95, report.leaks

Nothing is raised for bad rows: they are what is looked for. What it does not do: print, or stop a run.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medkor_jax.data.leakage import Judged, Leak, Trained, find_leaks, unexcused
from medkor_jax.data.packing import encode
from medkor_jax.data.pairs import Pair, both_ways, load_pairs
from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import BadDataError, BadRow, Example, Loaded, Source
from medkor_jax.data.sources import OF_QUESTIONS, load_examples, load_questions, question_example
from medkor_jax.data.style import Style

TRAINED, JUDGED, FEWSHOT = "trained", "judged", "few-shot"


@dataclasses.dataclass(frozen=True)
class Use:
    """A source and what it is for: trained on, judged by, or shown as few-shot examples while judging."""

    purpose: str
    source: Source

    def __post_init__(self):
        if self.purpose not in (TRAINED, JUDGED, FEWSHOT):
            raise ValueError(
                f"purpose is {self.purpose!r}, expected {TRAINED!r}, {JUDGED!r} or {FEWSHOT!r}"
            )


@dataclasses.dataclass(frozen=True)
class TokenLengths:
    """Tokens a document, bos included."""

    median: int
    p95: int
    longest: int
    total: int


@dataclasses.dataclass(frozen=True)
class SourceReport:
    source: Source
    purpose: str
    rows: int
    languages: dict[str, int]  # documents in each language
    tokens: TokenLengths | None  # None if no style was given or no row is good
    bad: list[BadRow]
    notes: tuple[str, ...] = ()  # what was left out without being bad


@dataclasses.dataclass(frozen=True)
class DataReport:
    """obstacles: what else would refuse the run before it trains, in words, see `readiness`."""

    sources: list[SourceReport]
    leaks: list[Leak]  # those that no name in `allowed` excuses
    allowed_leaks: list[Leak]
    obstacles: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        return (
            not self.leaks and not self.obstacles and not any(report.bad for report in self.sources)
        )


def check(
    uses: Sequence[Use],
    style: Style | None = None,
    *,
    allowed: Sequence[str] = (),
    form: ReasoningFormat = ReasoningFormat(),
    load: Callable[[Use], Loaded] | None = None,
    read_before: Sequence[tuple[str, Sequence[Trained]]] = (),
    compared: Callable[[Use], Sequence[Any]] | None = None,
) -> DataReport:
    """Returns what is in each source, and what is judged by but also trained on or shown as an example.

    allowed: leaks that the config names, see `leakage.unexcused`. load: how a source is read; by default again, see `loader_of`.
    read_before: what the weights were trained on already. compared: what leaks are looked for in, where that is more than is loaded.
    """
    reports, loaded_of = [], {}
    for use in uses:
        try:
            loaded_of[use] = load(use) if load else loader_of(use, form)(use.source, drop_bad=True)
        except BadDataError as error:  # nothing at all could be read
            loaded_of[use] = Loaded([], error.bad)
        reports.append(_describe(use, loaded_of[use], style, form))

    def documents(use: Use) -> Sequence[Any]:
        rows = loaded_of[use].rows
        return compared(use) if compared and len(rows) else rows

    leaks = leaks_of(uses, documents, read_before)
    left = unexcused(leaks, allowed)
    return DataReport(reports, left, [leak for leak in leaks if leak not in left])


def leaks_of(
    uses: Sequence[Use],
    documents: Callable[[Use], Sequence[Any]],
    read_before: Sequence[tuple[str, Sequence[Trained]]] = (),
) -> list[Leak]:
    """Returns what is judged by among what is trained on, shown as an example, or was read before."""
    of = {
        purpose: [(use.source.name, documents(use)) for use in uses if use.purpose == purpose]
        for purpose in (TRAINED, FEWSHOT, JUDGED)
    }
    return find_leaks([*of[TRAINED], *of[FEWSHOT], *read_before], of[JUDGED])


def loader_of(use: Use, form: ReasoningFormat) -> Callable[..., Loaded]:
    """Returns load(source, drop_bad=...), in the form in which leaks are looked for: questions as questions, judged pairs as pairs."""
    if use.purpose == JUDGED and use.source.kind == "translation":
        return load_pairs
    return functools.partial(
        load_questions if use.source.kind in OF_QUESTIONS else load_examples, form=form
    )


def _describe(
    use: Use, loaded: Loaded[Trained | Judged], style: Style | None, form: ReasoningFormat
) -> SourceReport:
    languages: collections.Counter[str] = collections.Counter()
    lengths = []
    for example in (example for row in loaded.rows for example in _examples(row, use.source, form)):
        languages[example.language] += 1
        if style is not None:
            lengths.append(len(encode(example, style).tokens) + 1)
    tokens = None
    if lengths:
        median, p95 = (round(value) for value in np.percentile(lengths, [50, 95]))
        tokens = TokenLengths(median, p95, max(lengths), sum(lengths))
    return SourceReport(
        use.source,
        use.purpose,
        sum(languages.values()),
        dict(languages),
        tokens,
        loaded.bad,
        loaded.notes,
    )


def _examples(document: Trained | Judged, source: Source, form: ReasoningFormat) -> list[Example]:
    """Returns what the document teaches, or would."""
    if isinstance(document, Pair):
        return both_ways(document)
    return (
        [question_example(document, source, form)] if isinstance(document, Question) else [document]
    )
