"""What an exam gained or lost between two models, question by question.

    change = change_between(Report.read(before), Report.read(after))
    change.words                # "+4.7 points [-1.2, +10.9], cannot be told apart"

Both answered the same questions in the same way; the interval is of the paired difference. It decides nothing: gates are
`eval.judgement`'s.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from medkor_jax.eval import stats
from medkor_jax.eval.metric import metric_needs, outcomes, pairing
from medkor_jax.eval.report import Report


@dataclasses.dataclass(frozen=True)
class Change:
    """difference: of the shares of right answers, after less before. interval: paired, 95 % by default. p_value: exact McNemar.
    at_chance: the later one does no better than guessing."""

    n: int
    difference: float
    interval: stats.Interval
    p_value: float
    at_chance: bool

    @property
    def verdict(self) -> str:
        """Returns "rose", "fell", or "cannot be told apart"."""
        if self.interval.low > 0:
            return "rose"
        return "fell" if self.interval.high < 0 else "cannot be told apart"

    @property
    def words(self) -> str:
        low, high = (100 * end for end in self.interval)
        said = f"{100 * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}], {self.verdict}"
        return said + (", at chance now" if self.at_chance else "")


@dataclasses.dataclass(frozen=True)
class Likelier:
    """How the mean probability of the right option moved, as shares of 1; the interval is paired by question (bootstrap)."""

    before: float
    after: float
    interval: stats.Interval

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def words(self) -> str:
        low, high = (100 * end for end in self.interval)
        return (
            f"mean probability of the right option {self.before:.1%} to {self.after:.1%}, "
            f"{100 * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}]"
        )


def likelier_between(before: Report, after: Report, *, confidence: float = 0.95) -> Likelier | None:
    """Returns the same of the probability of the right option, which tells more than a choice does; None where a mode has none,
    or the answers do not hold it. Raises: ValueError if they answered other questions."""
    if metric_needs("probability", after.mode):
        return None
    pairs = pairing(after, before)
    try:
        mine, theirs = (outcomes(report, "probability") for report in (after, before))
    except ValueError:
        return None
    moved = mine - theirs[pairs]
    interval = stats.bootstrap_mean(moved, confidence)
    return Likelier(float(theirs[pairs].mean()), float(mine.mean()), interval)


def change_between(before: Report, after: Report, *, confidence: float = 0.95) -> Change:
    """Raises: ValueError if they answered other questions, or were asked in another way."""
    theirs = [before.answers[i].correct for i in pairing(after, before)]
    counts = stats.PairedCounts.of([a.correct for a in after.answers], theirs)
    return Change(
        len(theirs),
        counts.share_first - counts.share_second,
        stats.paired_difference(counts, confidence),
        stats.mcnemar_exact(counts),
        after.is_at_chance,
    )


def read_change(
    exam: str,
    before: tuple[pathlib.Path, dict[str, Any]],
    after: tuple[pathlib.Path, dict[str, Any]],
) -> Change | None:
    """Returns the change between two measurements of an exam, each given as (a phase's directory, what its summary.json says of
    it: "before" or "after"); None where the answers of one are not there, or not of the same questions."""
    try:
        reports = [
            Report.read(directory / measured["answers"][exam])
            for directory, measured in (before, after)
        ]
        return change_between(*reports)
    except (OSError, ValueError, KeyError):
        return None
