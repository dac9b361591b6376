import itertools
import math

import numpy as np
import pytest

from medkor_jax.eval import stats
from medkor_jax.eval.stats import PairedCounts


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_intervals(correct, n, low, high):
    """Newcombe 1998, Stat. Med. 17, 857-872, table I, method 3."""
    assert stats.wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_where_the_score_test_stops_rejecting():
    for correct, n, confidence in ((13, 50, 0.95), (1, 7, 0.9), (99, 100, 0.99)):
        z = {0.95: 1.959963985, 0.9: 1.644853627, 0.99: 2.575829304}[confidence]
        for bound in stats.wilson(correct, n, confidence):
            assert abs(correct / n - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(z, abs=1e-7)
    assert stats.wilson(5, 5).high == 1.0


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(correct, n):
    with pytest.raises(ValueError, match="0 <= correct <= n"):
        stats.wilson(correct, n)
    with pytest.raises(ValueError, match="95"):
        stats.wilson(1, 2, 95)


@pytest.mark.parametrize(
    ("table", "low", "high", "digits"),
    [
        ((59, 6, 16, 80), -0.1186, -0.0046, 4),  # Fagerland et al. 2017, ch. 8, Newcombe square-and-add (Cavo 2012)
        ((1, 1, 7, 12), -0.507, -0.026, 3),  # the same, Bentur 2009
        ((14, 5, 0, 22), 0.011, 0.226, 3),  # Altman et al. 2000, Statistics with Confidence, table 6.2
    ],
)
def test_paired_difference_equals_published_intervals(table, low, high, digits):
    assert stats.paired_difference(PairedCounts(*table)) == pytest.approx((low, high), abs=0.51 * 10**-digits)


def test_paired_difference_mirrors_when_the_models_are_swapped():
    for table in itertools.product((0, 1, 4, 30), repeat=4):
        if sum(table):
            both, first, second, neither = table
            here = stats.paired_difference(PairedCounts(both, first, second, neither))
            there = stats.paired_difference(PairedCounts(both, second, first, neither))
            assert here == pytest.approx((-there.high, -there.low), abs=1e-12)
            assert -1 <= here.low <= (first - second) / sum(table) <= here.high <= 1


def test_paired_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    shares = [0.5, 0.15, 0.10, 0.25]
    tables = random.multinomial(150, shares, size=4000)
    intervals = [stats.paired_difference(PairedCounts(*map(int, table))) for table in tables]
    inside = [low <= 0.05 <= high for low, high in intervals]
    assert 0.935 < np.mean(inside) < 0.97


def test_pairing_counts_each_kind_of_question():
    counts = PairedCounts.of([True, True, False, False, True], [True, False, True, False, False])
    assert counts == PairedCounts(both=1, only_first=2, only_second=1, neither=1)
    assert (counts.n, counts.difference) == (5, 0.2)
    with pytest.raises(ValueError, match="2 and 1 answers"):
        PairedCounts.of([True, False], [True])


def test_mcnemar_equals_published_p_values():
    # Armitage and Berry 1994, p. 127 (two media for sputum); Fagerland et al. 2017, ch. 8.
    assert stats.mcnemar_exact(PairedCounts(20, 12, 2, 16)) == pytest.approx(0.0129, abs=5e-5)
    assert stats.mcnemar_exact(PairedCounts(59, 6, 16, 80)) == pytest.approx(0.0525, abs=5e-5)
    assert stats.mcnemar_exact(PairedCounts(9, 0, 0, 3)) == 1.0
    assert stats.mcnemar_exact(PairedCounts(0, 3, 3, 0)) == 1.0


def test_chance_is_exact_for_mixed_numbers_of_options():
    options = [2, 5, 4, 3]
    for correct in range(5):
        expected = sum(
            math.prod(1 / c if hit else 1 - 1 / c for c, hit in zip(options, hits))
            for hits in itertools.product((0, 1), repeat=4)
            if sum(hits) >= correct
        )
        assert stats.chance_p_value(correct, options) == pytest.approx(expected, abs=1e-12)
    assert stats.chance_share(options) == pytest.approx((1 / 2 + 1 / 5 + 1 / 4 + 1 / 3) / 4)
