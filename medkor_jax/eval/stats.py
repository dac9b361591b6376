"""Intervals and tests for shares of right answers.

    wilson(13, 50)                                  # Interval(low=0.159, high=0.396)
    counts = PairedCounts.of(new_correct, old_correct)
    paired_difference(counts)                       # interval of new - old on the same questions

An exam is a small sample, so every score here comes with an interval, and two scores over the same
questions are compared as pairs: the questions that both get right or wrong carry no information on which
model is better. Plain Python and NumPy; nothing here corrects for looking many times.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import NamedTuple, Sequence

import numpy as np


class Interval(NamedTuple):
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PairedCounts:
    """How two models did on the same questions."""

    both: int  # right in both
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> PairedCounts:
        """Counts the four kinds of question; `first` and `second` are in the same order of questions."""
        if len(first) != len(second) or not len(first):
            raise ValueError(
                f"{len(first)} and {len(second)} answers; a paired comparison needs the same questions, at least one"
            )
        a, b = np.asarray(first, bool), np.asarray(second, bool)
        return cls(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))

    @property
    def n(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        return (self.only_first - self.only_second) / self.n


def wilson(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns the score interval of a share `correct / n`.

    Raises: ValueError unless 0 <= correct <= n, n >= 1 and 0 < confidence < 1.
    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212; method 3 of Newcombe 1998, Stat. Med. 17, 857-872.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n}: an interval needs 0 <= correct <= n and at least one question")
    z2 = _normal_quantile(confidence) ** 2
    share = correct / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the bound is exactly 0 or 1; rounding must not leave 1e-17 there.
    return Interval(0.0 if correct == 0 else centre - half, 1.0 if correct == n else centre + half)


def paired_difference(counts: PairedCounts, confidence: float = 0.95) -> Interval:
    """Returns the interval of (first share - second share) over the same questions.

    Joins the two Wilson intervals, with their correlation phi corrected for continuity.

    Source: Newcombe 1998, Stat. Med. 17, 2635-2650, method 10.
    """
    c, n = counts, counts.n
    right_first, right_second = c.both + c.only_first, c.both + c.only_second
    first, second = wilson(right_first, n, confidence), wilson(right_second, n, confidence)
    below_first, above_first = right_first / n - first.low, first.high - right_first / n
    below_second, above_second = right_second / n - second.low, second.high - right_second / n

    margins = right_first * (n - right_first) * right_second * (n - right_second)
    cross = c.both * c.neither - c.only_first * c.only_second
    corrected = max(cross - n / 2, 0) if cross > 0 else cross
    phi = corrected / math.sqrt(margins) if margins else 0.0

    down = below_first**2 - 2 * phi * below_first * above_second + above_second**2
    up = above_first**2 - 2 * phi * above_first * below_second + below_second**2
    # phi may be -1 or 1 exactly, where rounding can leave a tiny negative square.
    return Interval(c.difference - math.sqrt(max(down, 0.0)), c.difference + math.sqrt(max(up, 0.0)))


def mcnemar_exact(counts: PairedCounts) -> float:
    """Returns the two-sided exact p value for "both models are right equally often"; 1 if they never differ.

    Source: McNemar 1947, Psychometrika 12, 153-157; the exact conditional form (sign test on discordant pairs).
    """
    differ, fewer = counts.only_first + counts.only_second, min(counts.only_first, counts.only_second)
    tail = sum(math.comb(differ, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**differ)


def chance_p_value(correct: int, n_options: Sequence[int]) -> float:
    """Returns the probability of `correct` or more right answers by guessing evenly; n_options: [questions].

    Exact, also when questions have different numbers of options: the distribution is the convolution of the
    questions' own (Poisson binomial), in float64.
    """
    distribution = np.ones(1)
    for options in n_options:
        distribution = np.convolve(distribution, [1 - 1 / options, 1 / options])
    return float(min(1.0, distribution[correct:].sum()))


def chance_share(n_options: Sequence[int]) -> float:
    """Returns the share of right answers that even guessing expects."""
    return float(np.mean([1 / options for options in n_options]))


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1 (0.95 means 95 %)")
    return statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
