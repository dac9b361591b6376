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
from medkor_jax.data.leakage import Document, Leak, find_leaks, unexcused
from medkor_jax.data.packing import encode
from medkor_jax.data.rows import BadDataError, BadRow, Source
from medkor_jax.data.sources import load_examples, load_questions

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


@dataclasses.dataclass(frozen=True)
class DataReport:
    sources: list[SourceReport]
    leaks: list[Leak]  # those that no name in `allowed` excuses
    allowed_leaks: list[Leak]

    @property
    def is_clean(self) -> bool:
        return not self.leaks and not any(report.bad for report in self.sources)


def check(uses: Sequence[Use], tokenizer: Tokenizer | None = None, *, allowed: Sequence[str] = ()) -> DataReport:
    """Returns what is in each source, and what is judged by but also trained on or shown as an example.

    allowed: leaks that the config names, see `leakage.unexcused`.
    """
    reports, documents = [], {TRAINED: [], JUDGED: [], FEWSHOT: []}
    for use in uses:
        rows, bad = _load(use.source)
        reports.append(_describe(use, rows, bad, tokenizer))
        documents[use.purpose].append((use.source.name, rows))
    leaks = find_leaks(documents[TRAINED] + documents[FEWSHOT], documents[JUDGED])
    left = unexcused(leaks, allowed)
    return DataReport(reports, left, [leak for leak in leaks if leak not in left])


def _load(source: Source) -> tuple[Sequence[Document], list[BadRow]]:
    """Returns the documents, exams as questions so that stems can be compared, and the bad rows."""
    load = load_questions if source.kind == "exam" else load_examples
    try:
        loaded = load(source, drop_bad=True)
    except BadDataError as error:  # nothing at all could be read
        return [], error.bad
    return loaded.rows, loaded.bad


def _describe(use: Use, rows: Sequence[Document], bad: list[BadRow], tokenizer: Tokenizer | None) -> SourceReport:
    languages: collections.Counter[str] = collections.Counter()
    lengths = []
    for row in rows:
        languages[row.language] += 1
        if tokenizer is not None:
            example = exams.example(row) if isinstance(row, exams.Question) else row
            lengths.append(len(encode(example, tokenizer).tokens) + 1)
    tokens = None
    if lengths:
        median, p95 = (int(round(value)) for value in np.percentile(lengths, [50, 95]))
        tokens = TokenLengths(median, p95, max(lengths), sum(lengths))
    return SourceReport(use.source, use.purpose, len(rows), dict(languages), tokens, bad)
