"""Runs of letters: what two documents are compared by, hashed, and an index of those of many.

    overlap_of(runs_of(ours), runs_of(theirs)).jaccard
    Index([runs_of(text) for text in judged], [0.5] * len(judged)).candidates([runs_of(text) for text in read])

What it does not do: decide whether two documents are the same (`likeness`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

SHINGLE = 5  # letters in a run
_SAMPLE_RUNS = 64


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How many runs of letters two documents share: as counts, and as shares of all runs or of theirs."""

    jaccard: float
    contained: float
    smaller: int  # runs of the smaller of the two


def overlap_of(ours: np.ndarray, theirs: np.ndarray) -> Overlap:
    shared = len(np.intersect1d(ours, theirs, assume_unique=True))
    return Overlap(
        shared / (len(ours) + len(theirs) - shared),
        shared / len(theirs),
        min(len(ours), len(theirs)),
    )


def sampled_runs(runs: np.ndarray) -> np.ndarray:
    """Returns the runs of smallest hash. runs: sorted."""
    return runs[:_SAMPLE_RUNS]


class Index:
    """A sample of the runs of each judged document, and which documents hold each.

    The sample is the _SAMPLE_RUNS runs of smallest hash: a random one, and all runs of a short document. It
    keeps the work on long documents bounded; `match` then decides on all the runs.
    """

    def __init__(self, documents: Sequence[np.ndarray], least_shares: Sequence[float]):
        samples = [sampled_runs(runs) for runs in documents]
        self._sizes = np.array([len(sample) for sample in samples])
        self._least = self._sizes * np.array(least_shares)
        runs, owners = np.concatenate(samples), np.repeat(np.arange(len(samples)), self._sizes)
        order = np.argsort(runs, kind="stable")
        self._runs, starts = np.unique(runs[order], return_index=True)
        self._starts = np.append(starts, len(runs))
        self._owners = owners[order]

    def candidates(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the pairs [n, 2] of (one of ours, one of theirs) that may share enough of the runs of theirs."""
        runs = np.concatenate(documents)
        owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        at = np.minimum(np.searchsorted(self._runs, runs), len(self._runs) - 1)
        known = self._runs[at] == runs
        at, owners = at[known], owners[known]
        counts = self._starts[at + 1] - self._starts[at]
        # Each run of ours meets all its owners: positions start, start + 1, ... of `_owners`, laid end to end.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        theirs = self._owners[np.repeat(self._starts[at], counts) + within]
        pairs = np.repeat(owners, counts) * len(self._sizes) + theirs
        shared = np.bincount(pairs, minlength=len(documents) * len(self._sizes)).reshape(
            len(documents), -1
        )
        return np.argwhere(shared >= self._least)


def runs_of(text: str) -> np.ndarray:
    """Returns the distinct runs of SHINGLE letters, hashed and sorted, uint64; a shorter text is one run."""
    return np.unique(hashed_runs(text))


def hashed_runs(text: str) -> np.ndarray:
    """Returns the hash of each run of SHINGLE letters in turn, uint64; a shorter text is one run."""
    units = np.frombuffer(text.ljust(SHINGLE, "\0").encode("utf-32-le"), np.uint32).astype(
        np.uint64
    )
    count = len(units) - SHINGLE + 1
    hashed = np.zeros(count, np.uint64)
    for i in range(SHINGLE):
        hashed = (hashed ^ units[i : i + count]) * np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(
            29
        )  # spreads the high bits, so that order by hash is random order
    return hashed
