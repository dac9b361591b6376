"""Intervals and tests for shares of right answers.

    wilson(13, 50)                                  # Interval(low=0.159, high=0.396)
    counts = PairedCounts.of(new_correct, old_correct)
    paired_difference(counts)                       # interval of new - old on the same questions

An exam is a small sample, so every score here comes with an interval, and two scores over the same
questions are compared as pairs: the questions that both get right or wrong carry no information on which
model is better. Shares of right answers have closed forms; means of probabilities are resampled, with a fixed
seed. Nothing here corrects for looking many times: whoever looks asks for `confidence_of_look`.

What SciPy has is SciPy's (jax brings it along; imported where it is used, since that takes a second). By hand is what no
library here has: Tango's interval of paired shares; the bootstrap-t (SciPy's bootstrap is not studentised); and the chance
of guessing, whose tails SciPy's Poisson binomial, made by a Fourier transform, rounds to 0.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import NamedTuple, Sequence

import numpy as np

RESAMPLES = 10_000  # of a bootstrap interval; a tail of 0.5 % still holds 50 of them
_BLOCK = 2_000_000  # resampled counts held at once


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
    def of(cls, first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> PairedCounts:
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
    def share_first(self) -> float:
        return (self.both + self.only_first) / self.n

    @property
    def share_second(self) -> float:
        return (self.both + self.only_second) / self.n


def confidence_of_look(confidence: float, looks: int) -> float:
    """Returns the confidence of each of `looks` intervals that together are wrong no more often than one of `confidence`.

    The error is spent evenly over the looks, whether they are taken or not.
    Source: Bonferroni's inequality; as an even spending function, Lan & DeMets 1983, Biometrika 70, 659-663.
    """
    return 1 - (1 - confidence) / looks


def wilson(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns the score interval of a share `correct / n`.

    Raises: ValueError unless 0 <= correct <= n, n >= 1 and 0 < confidence < 1.
    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212; method 3 of Newcombe 1998, Stat. Med. 17, 857-872.
    """
    return _share_interval(correct, n, confidence, "wilson")


def exact_share(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns the exact interval of a share: each end is wrong at most half of (1 - confidence) of the time.

    `wilson` is right on average over both ends; near 0 and 1 one end alone is wrong more often than it says.

    Raises: ValueError as `wilson`.
    Source: Clopper & Pearson 1934, Biometrika 26, 404-413.
    """
    return _share_interval(correct, n, confidence, "exact")


def _share_interval(correct: int, n: int, confidence: float, method: str) -> Interval:
    from scipy.stats import binomtest

    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n}: an interval needs 0 <= correct <= n and at least one question")
    _check_confidence(confidence)
    found = binomtest(correct, n).proportion_ci(confidence, method)
    # At the ends the bound is exactly 0 or 1; rounding must not leave 1e-17 there.
    return Interval(0.0 if correct == 0 else float(found.low), 1.0 if correct == n else float(found.high))


def at_least(k: int, n: int, share: float) -> float:
    """Returns the probability of k or more right answers of n, each right with probability `share`."""
    from scipy.stats import binom

    return float(binom.sf(k - 1, n, share))


def paired_difference(counts: PairedCounts, confidence: float = 0.95, kept: float = 1.0) -> Interval:
    """Returns the interval of (first share - kept x second share) over the same questions.

    kept=1 is the difference; kept=0.97 asks how far the first is above 97 % of the second. The ends are where `paired_z`
    stops rejecting.

    Source: Tango 1998, Stat. Med. 17, 891-908. (The joined Wilson intervals of Newcombe 1998 are narrower than they say
    for two models that agree on most questions, which is what is compared here.)
    """
    z, middle = _normal_quantile(confidence), counts.share_first - kept * counts.share_second

    def end(outside: float, sign: int) -> float:
        inside = middle
        for _ in range(5):  # each round leaves a 64th of what was between
            tried = np.clip(np.linspace(outside, inside, 65)[1:], -kept + 1e-9, 1 - 1e-9)
            first_inside = int(np.argmax(np.append(sign * paired_z(counts, tried[:-1], kept) <= z, True)))
            outside, inside = (outside if first_inside == 0 else tried[first_inside - 1]), tried[first_inside]
        return float(inside)

    return Interval(end(-kept, 1), end(1.0, -1))


def paired_z(counts: PairedCounts, bound, kept: float = 1.0) -> np.ndarray:
    """Returns how many standard errors (first share - kept x second share) lies above `bound`, which is in (-kept, 1).

    The standard error is that of the likeliest model whose true value is `bound` (the score test), so that a table with
    few or no differences is not taken for certainty. Counts and bound may be arrays; they broadcast.
    """
    cells = np.stack(np.broadcast_arrays(counts.both, counts.only_first, counts.only_second, counts.neither), -1)
    n = cells.sum(-1)
    observed = cells / n[..., None]
    # What a question of each kind adds, and how far that is from the bound.
    away = np.array([1 - kept, 1.0, -kept, 0.0]) - np.asarray(bound, float)[..., None]
    least, most = away.min(-1), away.max(-1)
    # Under the bound each kind has the probability observed / (1 + multiplier x away): one multiplier, by bisection.
    low, high = np.broadcast_arrays(-1 / most, -1 / least, n)[:2]
    for _ in range(40):
        multiplier = (low + high) / 2
        is_below = (observed * away / (1 + multiplier[..., None] * away)).sum(-1) > 0
        low, high = np.where(is_below, multiplier, low), np.where(is_below, high, multiplier)
    multiplier = (low + high) / 2
    share = observed / (1 + multiplier[..., None] * away)
    # What is left over belongs to the extreme kind, which was never seen.
    extreme = np.where(multiplier < 0, most, least) ** 2
    variance = (share * away**2).sum(-1) + np.maximum(1 - share.sum(-1), 0.0) * extreme
    return (observed * away).sum(-1) * np.sqrt(n / variance)


def bootstrap_mean(values: Sequence[float] | np.ndarray, confidence: float = 0.95, *, seed: int = 0) -> Interval:
    """Returns the interval of the mean of `values`, one a question, by resampling questions.

    Each resample's distance from the mean is measured in its own standard error, which keeps the interval honest for
    tens of questions, where plain percentiles are too narrow. The same values give the same interval. A few values
    unlike all others leave resamples without spread: the interval is then as wide as the values allow.

    Source: bootstrap-t, Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 12.5.
    """
    found: np.ndarray = np.asarray(values, np.float64)
    n, mean, spread = len(found), float(found.mean()), float(found.std())
    if spread == 0:
        return Interval(mean, mean)
    random, distances = np.random.default_rng(seed), []
    squares = np.stack([found - mean, (found - mean) ** 2], axis=1)
    block = max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, block):
        drawn = random.multinomial(n, np.full(n, 1 / n), size=min(block, RESAMPLES - start))
        shift, square = (drawn @ squares / n).T
        own = np.sqrt(np.maximum(square - shift**2, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            distances.append(np.where(own > 1e-12, shift / own, np.sign(shift) * np.inf))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(distances), [1 - tail, tail], method="higher")
    least, most = float(found.min()), float(found.max())
    return Interval(max(least, mean - float(low) * spread), min(most, mean - float(high) * spread))


def mcnemar_exact(counts: PairedCounts) -> float:
    """Returns the two-sided exact p value for "both models are right equally often"; 1 if they never differ.

    Source: McNemar 1947, Psychometrika 12, 153-157; the exact conditional form (sign test on discordant pairs).
    """
    from scipy.stats import binomtest

    differ = counts.only_first + counts.only_second
    return float(binomtest(counts.only_first, differ).pvalue) if differ else 1.0


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
    _check_confidence(confidence)
    return statistics.NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1 (0.95 means 95 %)")
