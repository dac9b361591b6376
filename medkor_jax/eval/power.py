"""What a gate can tell with the questions it has, before anything is trained.

    outlook(gate, n=164, n_options=5).words
    # "... an equal model opens it at its first look in 7 of 100 runs ..."

A comparison of few questions closes for equal models and says nothing about worse ones. Nothing is measured yet, so
the figures rest on assumptions, which the words repeat: a reference halfway between guessing and all right, two models
whose answers correlate with 0.7 over questions (two phases of one model; measured 0.4 to 0.95, docs/GATES.md), and
probabilities of the right option with a standard deviation of 0.37. Right answers are simulated (seeded, to about two
points) and put to the very test that decides; means of probabilities take the normal curve for the bootstrap. Luck
of training is not in it: only that of questions and answers.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
import statistics
from typing import Any

import numpy as np

from medkor_jax.eval import stats
from medkor_jax.eval.gate import MIN_QUESTIONS, Condition, Gate

CORRELATION = 0.7
SPREAD = 0.37
WORSE = 0.05  # points that a worse model lacks
LEAST_CHANCE = 0.5  # that an equal model opens the gate at its first look; below, the gate is refused
WANTED_CHANCE = 0.8  # what the needed number of questions gives an equal model
_DRAWS = 4000
_NORMAL = statistics.NormalDist()


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What a gate, or one of its conditions, can tell.

    equal: chance that an equal model opens it at the first look; of an absolute gate, one that is faultless.
    worse: the chance that a model WORSE below (the reference, or the threshold) opens it in any of its looks.
    noticed: of a comparison, the least loss that keeps it closed through all looks with WANTED_CHANCE; None if none.
    needed: questions for WANTED_CHANCE; None where no number (below a million) would do.
    """

    n: int
    equal: float
    worse: float
    noticed: float | None
    needed: int | None
    words: str

    @property
    def can_open(self) -> bool:
        return self.n >= MIN_QUESTIONS and self.equal >= LEAST_CHANCE


def outlook(asked: Gate | Condition, n: int, n_options: float = 5, *, confidence: float = 0.95, looks: int = 1) -> Outlook:
    """Returns what `asked` can tell with n questions of n_options options, looked at up to `looks` times."""
    each = stats.confidence_of_look(confidence, looks)
    if asked.reading == "absolute":
        return _absolute(asked, n, each, looks)
    level = (1 + 1 / n_options) / 2
    kept = asked.threshold if asked.reading == "relative" else 1.0
    bound = 0.0 if asked.reading == "relative" else -(1 - asked.threshold)
    chances = _of_means if asked.metric == "probability" else _of_answers
    equal, in_all = chances(n, level, 0.0, kept, bound, each, looks)
    _, worse = chances(n, level, -WORSE, kept, bound, each, looks)
    losses = np.arange(1, math.floor(100 * level)) / 100

    def is_noticed(loss: float) -> bool:
        return 1 - chances(n, level, -float(loss), kept, bound, each, looks)[1] >= WANTED_CHANCE

    at = bisect.bisect_left(losses, True, key=is_noticed)
    noticed = float(losses[at]) if at < len(losses) else None
    needed = _first(lambda m: chances(m, level, 0.0, kept, bound, each, 1)[0] >= WANTED_CHANCE)
    in_looks = f" ({_of_100(in_all)} with all {looks} looks)" if looks > 1 else ""
    words = (
        f"{n} questions; an equal model opens it at the first look in {_of_100(equal)} of 100 runs{in_looks}, one "
        f"{100 * WORSE:.0f} points worse in {_of_100(worse)}; {_noticed(noticed)}; {_needed(needed)} (assumed: a score of {level:.0%}, answers correlated "
        f"by {CORRELATION})"
    )
    return Outlook(n, equal, worse, noticed, needed, words)


def _absolute(asked: Gate | Condition, n: int, confidence: float, looks: int) -> Outlook:
    def chance(share: float, n: int) -> float:
        if asked.metric == "probability":
            error = SPREAD * math.sqrt(4 * share * (1 - share) / n)  # no spread is left at the ends
            return 1.0 if error == 0 else _NORMAL.cdf((share - asked.threshold) / error - _z(confidence))
        return stats.at_least(_least_right(n, asked.threshold, confidence), n, share)

    shares = np.arange(math.ceil(1000 * asked.threshold), 1001) / 1000
    enough = [share for share in shares if chance(float(share), n) >= LEAST_CHANCE]
    faultless = chance(1.0, n)
    below = chance(max(asked.threshold - WORSE, 0.0), n)
    worse = 1 - (1 - below) ** looks
    needed = _first(lambda m: chance((1 + asked.threshold) / 2, m) >= WANTED_CHANCE)
    even = "not even a faultless model opens it"
    if enough:
        even = f"a model must truly stand at {enough[0]:.1%} to open it in half of its first looks"
    words = (
        f"{n} questions; {even}, one {100 * WORSE:.0f} points below {asked.threshold:.1%} opens it in {_of_100(worse)} of 100 "
        f"runs; {_needed(needed)} for a model halfway between {asked.threshold:.1%} and faultless"
    )
    return Outlook(n, faultless, worse, None, needed, words)


@functools.lru_cache(maxsize=1024)
def _least_right(n: int, threshold: float, confidence: float) -> int:
    """Returns the least number of right answers whose exact interval reaches the threshold; n + 1 if none does."""
    from scipy.stats import binom

    return int(binom.isf((1 - confidence) / 2, n, threshold)) + 1


@functools.lru_cache(maxsize=1024)
def _of_answers(
    n: int, level: float, shift: float, kept: float, bound: float, confidence: float, looks: int
) -> tuple[float, float]:
    """Returns the chance of passing at the first look and in any, of a model whose share is level + shift."""
    random = np.random.default_rng(0)
    share = min(max(level + shift, 0.0), 1.0)
    both = level * share + CORRELATION * math.sqrt(level * (1 - level) * share * (1 - share))
    right = random.binomial(n, level, _DRAWS)[:, None]  # the reference answers once
    also = random.binomial(right, min(both / level, 1.0), (_DRAWS, looks))
    alone = random.binomial(n - right, min(max((share - both) / (1 - level), 0.0), 1.0), (_DRAWS, looks))
    draws: Any = (also, alone, right - also, n - right - alone)  # arrays, of which `paired_z` makes arrays
    counts = stats.PairedCounts(*draws)
    passed = stats.paired_z(counts, bound, kept) >= _z(confidence)
    return float(passed[:, 0].mean()), float(passed.any(1).mean())


def _of_means(
    n: int, level: float, shift: float, kept: float, bound: float, confidence: float, looks: int
) -> tuple[float, float]:
    """The same for means of probabilities, by the normal curve; the looks share what the reference adds to the error."""
    own, shared = SPREAD * math.sqrt(1 - CORRELATION**2), SPREAD * abs(CORRELATION - kept)
    error = math.sqrt((own**2 + shared**2) / n)
    ahead = (level + shift - kept * level - bound) / error - _z(confidence)
    common = shared / math.hypot(own, shared)
    random = np.random.default_rng(0)
    luck = common * random.standard_normal((_DRAWS, 1)) + math.sqrt(1 - common**2) * random.standard_normal((_DRAWS, looks))
    return _NORMAL.cdf(ahead), float((luck <= ahead).any(1).mean())


def _first(is_enough, most: int = 1_000_000) -> int | None:
    """Returns about the least number of questions that is enough, to two digits."""
    n = MIN_QUESTIONS
    while n <= most:
        if is_enough(n):
            return n
        n = math.ceil(n * 1.1)
    return None


def _noticed(loss: float | None) -> str:
    chance = f"in {100 * WANTED_CHANCE:.0f} of 100"
    return f"no loss keeps it closed {chance}" if loss is None else f"a loss of {100 * loss:.0f} points keeps it closed {chance}"


def _needed(needed: int | None) -> str:
    chance = f"{100 * WANTED_CHANCE:.0f} of 100"
    if needed is None:
        return f"no number of questions would give {chance}"
    return f"{chance} would take about {float(f'{needed:.2g}'):.0f} questions"


def _of_100(chance: float) -> str:
    return f"{100 * chance:.0f}" if 0.01 <= chance <= 0.99 or chance in (0, 1) else ("under 1" if chance < 0.5 else "over 99")


def _z(confidence: float) -> float:
    return _NORMAL.inv_cdf(0.5 + confidence / 2)
