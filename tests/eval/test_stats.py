import itertools
import math

import numpy as np
import pytest

from medkor_jax.eval import stats
from medkor_jax.eval.stats import PairedCounts


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_intervals(correct, n, low, high):
    """Newcombe 1998, Stat. Med. 17, 857-872, table I, method 3."""
    assert stats.wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_where_the_score_test_stops_rejecting():
    for correct, n, confidence in ((13, 50, 0.95), (1, 7, 0.9), (99, 100, 0.99)):
        z = {0.95: 1.959963985, 0.9: 1.644853627, 0.99: 2.575829304}[confidence]
        for bound in stats.wilson(correct, n, confidence):
            assert abs(correct / n - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(
                z, abs=1e-7
            )
    assert stats.wilson(5, 5).high == 1.0


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(correct, n):
    with pytest.raises(ValueError, match="0 <= correct <= n"):
        stats.wilson(correct, n)
    with pytest.raises(ValueError, match="95"):
        stats.wilson(1, 2, 95)


def tango_z(counts, bound):
    """The closed form of Tango 1998, eq. 1 and 3, for the plain difference."""
    n, b, c = counts.n, counts.only_first, counts.only_second
    # The share q of `only_second` under the bound solves 2n q^2 + linear q + rest = 0.
    linear, rest = -b - c + (2 * n - b + c) * bound, -c * bound * (1 - bound)
    share = (math.sqrt(linear**2 - 8 * n * rest) - linear) / (4 * n)
    return (b - c - n * bound) / math.sqrt(n * (2 * share + bound * (1 - bound)))


@pytest.mark.parametrize(
    "table",
    [(59, 6, 16, 80), (1, 1, 7, 12), (14, 5, 0, 22), (43, 0, 1, 0), (30, 0, 0, 10), (0, 12, 9, 3)],
)
def test_the_paired_test_is_tangos_score_test(table):
    counts = PairedCounts(*table)
    for bound in (-0.7, -0.3, -0.03, 0.04, 0.5):
        assert float(stats.paired_z(counts, bound)) == pytest.approx(
            tango_z(counts, bound), rel=1e-6
        )
    # Fagerland, Lydersen & Laake 2017, ch. 8: -0.517 to -0.026 for the second table.
    for end, z in zip(stats.paired_difference(counts), (1.959964, -1.959964)):
        if -0.999 < end < 0.999:
            assert tango_z(counts, end) == pytest.approx(z, abs=1e-5)


def test_the_interval_of_a_part_of_the_second_share_is_that_of_its_weights():
    """score - kept x reference: with kept=0 only the first counts, and its score interval is Wilson's."""
    for table in ((59, 6, 16, 80), (1, 1, 7, 12), (14, 5, 0, 22)):
        counts = PairedCounts(*table)
        assert stats.paired_difference(counts, kept=1e-9) == pytest.approx(
            stats.wilson(counts.both + counts.only_first, counts.n), abs=1e-6
        )
        whole, part = stats.paired_difference(counts), stats.paired_difference(counts, kept=0.9)
        assert part.low > whole.low and part.high > whole.high


@pytest.mark.parametrize("correlation", [0.0, 0.7, 0.8])
@pytest.mark.parametrize("kept, bound", [(1.0, -0.05), (0.85, 0.0)])
def test_a_model_at_the_bound_passes_no_more_often_than_stated(correlation, kept, bound):
    """The joined Wilson intervals that stood here passed it in 3.6 % (5.5 %) of draws at 2.5 %, where two models mostly agree."""
    random, reference = np.random.default_rng(0), 0.5
    share = kept * reference + bound
    both = share * reference + correlation * math.sqrt(
        share * (1 - share) * reference * (1 - reference)
    )
    drawn = random.multinomial(
        100, [both, share - both, reference - both, 1 - share - reference + both], size=20_000
    )
    for confidence in (0.95, 0.9875):
        z = stats._normal_quantile(confidence)
        passed = (stats.paired_z(PairedCounts(*drawn.T), bound, kept) >= z).mean()
        assert passed <= (1 - confidence) / 2 * 1.15 + 0.001


def test_paired_difference_mirrors_when_the_models_are_swapped():
    for table in itertools.product((0, 1, 4, 30), repeat=4):
        if sum(table):
            both, first, second, neither = table
            here = stats.paired_difference(PairedCounts(both, first, second, neither))
            there = stats.paired_difference(PairedCounts(both, second, first, neither))
            assert here == pytest.approx((-there.high, -there.low), abs=1e-7)
            assert (
                -1 <= here.low <= (first - second) / sum(table) + 1e-9
                and (first - second) / sum(table) - 1e-9 <= here.high <= 1
            )


def test_paired_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    shares = [0.5, 0.15, 0.10, 0.25]
    tables = random.multinomial(150, shares, size=500)
    intervals = [stats.paired_difference(PairedCounts(*map(int, table))) for table in tables]
    inside = [low <= 0.05 <= high for low, high in intervals]
    assert 0.925 < np.mean(inside) < 0.975


def test_pairing_counts_each_kind_of_question():
    counts = PairedCounts.of([True, True, False, False, True], [True, False, True, False, False])
    assert counts == PairedCounts(both=1, only_first=2, only_second=1, neither=1)
    assert (counts.n, counts.share_first, counts.share_second) == (5, 0.6, 0.4)
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


def test_exact_shares_equal_published_intervals_and_never_err_more_than_stated():
    # Clopper & Pearson as in Newcombe 1998, table I, method 5.
    for correct, n, low, high in (
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ):
        assert stats.exact_share(correct, n) == pytest.approx((low, high), abs=5e-5)
    for share in (0.6, 0.9, 0.97):  # one end alone; Wilson's is passed more often than 2.5 % near 1
        error = sum(
            stats.at_least(k, 164, share) - stats.at_least(k + 1, 164, share)
            for k in range(165)
            if stats.exact_share(k, 164).low > share
        )
        assert 0 < error <= 0.025


@pytest.mark.parametrize(
    ("correct", "n", "confidence", "wilson", "exact"),
    [
        (0, 7, 0.95, (0.0, 0.3543304350666873), (0.0, 0.4096163972250034)),
        (
            13,
            50,
            0.95,
            (0.1587152749355239, 0.3955315726484883),
            (0.14630058439655455, 0.40344767872806575),
        ),
        (
            98,
            164,
            0.9833,
            (0.5041235614019028, 0.6844138021666986),
            (0.5013098043155143, 0.6887168106664973),
        ),
        (435, 435, 0.99, (0.9849765119285507, 1.0), (0.9878938365196326, 1.0)),
        (
            271,
            435,
            0.8,
            (0.5927994498861956, 0.652252350556486),
            (0.591686529951465, 0.653448745641177),
        ),
    ],
)
def test_intervals_are_those_of_the_verdicts_already_written(correct, n, confidence, wilson, exact):
    """Verdicts on disk hold what this package computed by hand before it asked SciPy."""
    assert stats.wilson(correct, n, confidence) == pytest.approx(wilson, abs=1e-12)
    assert stats.exact_share(correct, n, confidence) == pytest.approx(
        exact, abs=2e-12
    )  # SciPy solves to 2e-12


def test_p_values_are_those_of_the_verdicts_already_written():
    for first, second, p in (
        (12, 2, 0.012939453125),
        (6, 16, 0.052478790283203125),
        (40, 90, 1.3715068445175424e-05),
    ):
        assert stats.mcnemar_exact(PairedCounts(1, first, second, 1)) == pytest.approx(p, rel=1e-12)
    for k, n, share, p in (
        (98, 164, 0.55, 0.1257263781591404),
        (1, 5, 0.2, 0.67232),
        (20, 20, 0.9, 0.12157665459056931),
    ):
        assert stats.at_least(k, n, share) == pytest.approx(p, rel=1e-12)


def test_guessing_right_every_time_is_unlikely_and_not_impossible():
    assert stats.chance_p_value(100, [5] * 100) == pytest.approx(0.2**100, rel=1e-9)


def test_each_look_gets_its_part_of_the_error():
    assert stats.confidence_of_look(0.95, 1) == 0.95
    assert stats.confidence_of_look(0.95, 4) == pytest.approx(0.9875)


def test_resampled_means_are_the_same_each_time_and_honest_for_tens_of_questions():
    random = np.random.default_rng(3)
    values = random.beta(0.4, 0.6, 64)
    assert (
        stats.bootstrap_mean(values)
        == stats.bootstrap_mean(values)
        != stats.bootstrap_mean(values, seed=1)
    )
    error = values.std() / 8
    assert stats.bootstrap_mean(values) == pytest.approx(
        (values.mean() - 2 * error, values.mean() + 2 * error), abs=0.3 * error
    )
    assert stats.bootstrap_mean([0.25] * 30) == (0.25, 0.25)
    assert (
        stats.bootstrap_mean([1.0] + [0.0] * 63).low == 0.0
    )  # one value says little: as wide as the values allow
    # The mean of beta(0.4, 0.6) is 0.4; the ends miss it about as often as they say.
    ends = [stats.bootstrap_mean(random.beta(0.4, 0.6, 40)) for _ in range(100)]
    assert 0.89 < np.mean([low <= 0.4 <= high for low, high in ends]) < 1
