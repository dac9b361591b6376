"""What a person wants to know of the data before training on it: the substance of `medkor data check`.

    report = check([Use("trained", source), Use("judged", exam)], tokenizer)
    report.sources[0].rows, report.sources[0].tokens.p95, report.leaks

Nothing is raised for bad rows: they are what is looked for. What it does not do: print, or stop a run.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medkor_jax.data import exams
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.leakage import Document, Leak, find_leaks, unexcused
from medkor_jax.data.packing import encode
from medkor_jax.data.rows import BadDataError, BadRow, Loaded, Source
from medkor_jax.data.sources import OF_QUESTIONS, load_examples, load_questions, question_example

if TYPE_CHECKING:
    from medkor_jax.data.tokenizer import Tokenizer

TRAINED, JUDGED, FEWSHOT = "trained", "judged", "few-shot"


@dataclasses.dataclass(frozen=True)
class Use:
    """A source and what it is for: trained on, judged by, or shown as few-shot examples while judging."""

    purpose: str
    source: Source

    def __post_init__(self):
        if self.purpose not in (TRAINED, JUDGED, FEWSHOT):
            raise ValueError(f"purpose is {self.purpose!r}, expected {TRAINED!r}, {JUDGED!r} or {FEWSHOT!r}")


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
    tokens: TokenLengths | None  # None if no tokenizer was given or no row is good
    bad: list[BadRow]
    notes: tuple[str, ...] = ()  # what was left out without being bad


@dataclasses.dataclass(frozen=True)
class DataReport:
    sources: list[SourceReport]
    leaks: list[Leak]  # those that no name in `allowed` excuses
    allowed_leaks: list[Leak]

    @property
    def is_clean(self) -> bool:
        return not self.leaks and not any(report.bad for report in self.sources)


def check(
    uses: Sequence[Use],
    tokenizer: Tokenizer | None = None,
    *,
    allowed: Sequence[str] = (),
    form: ReasoningFormat = ReasoningFormat(),
) -> DataReport:
    """Returns what is in each source, and what is judged by but also trained on or shown as an example.

    allowed: leaks that the config names, see `leakage.unexcused`.
    """
    reports, documents = [], {TRAINED: [], JUDGED: [], FEWSHOT: []}
    for use in uses:
        loaded = _load(use.source, form)
        reports.append(_describe(use, loaded, tokenizer, form))
        documents[use.purpose].append((use.source.name, loaded.rows))
    leaks = find_leaks(documents[TRAINED] + documents[FEWSHOT], documents[JUDGED])
    left = unexcused(leaks, allowed)
    return DataReport(reports, left, [leak for leak in leaks if leak not in left])


def _load(source: Source, form: ReasoningFormat) -> Loaded[Document]:
    """Returns the documents, questions as questions so that stems can be compared."""
    load = load_questions if source.kind in OF_QUESTIONS else load_examples
    try:
        return load(source, drop_bad=True, form=form)
    except BadDataError as error:  # nothing at all could be read
        return Loaded([], error.bad)


def _describe(use: Use, loaded: Loaded[Document], tokenizer: Tokenizer | None, form: ReasoningFormat) -> SourceReport:
    languages: collections.Counter[str] = collections.Counter()
    lengths = []
    for row in loaded.rows:
        languages[row.language] += 1
        if tokenizer is not None:
            example = question_example(row, use.source, form) if isinstance(row, exams.Question) else row
            lengths.append(len(encode(example, tokenizer).tokens) + 1)
    tokens = None
    if lengths:
        median, p95 = (int(round(value)) for value in np.percentile(lengths, [50, 95]))
        tokens = TokenLengths(median, p95, max(lengths), sum(lengths))
    return SourceReport(use.source, use.purpose, len(loaded.rows), dict(languages), tokens, loaded.bad, loaded.notes)
