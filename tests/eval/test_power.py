"""What is said of a gate before training, against brute force and against the gate itself."""

import dataclasses
import math

import numpy as np
import pytest

from medkor_jax.eval import power, stats
from medkor_jax.eval.gate import Condition, Gate
from medkor_jax.eval.judgement import judge
from medkor_jax.eval.power import outlook


def paired(random, n, share, reference, correlation=power.CORRELATION):
    """Two models' right answers to n questions, shares and correlation as given: bool [n], bool [n]."""
    known = random.random(n) < reference
    both = share * reference + correlation * math.sqrt(
        share * (1 - share) * reference * (1 - reference)
    )
    return random.random(n) < np.where(
        known, both / reference, (share - both) / (1 - reference)
    ), known


def report(make_report, right):
    return make_report("".join("AB"[not r] for r in right), "A" * len(right))


@pytest.mark.parametrize("gate, n", [
    (Gate(threshold=0.9), 200), (Gate(threshold=0.9, on_failure="retain", rounds=2), 150), (Gate(reading="relative", threshold=0.8), 100),
])  # fmt: skip
def test_the_stated_chances_are_those_of_the_gate(make_report, gate, n):
    told, random, runs = outlook(gate, n, looks=gate.looks), np.random.default_rng(5), 60
    for shift, chance in ((0.0, told.equal), (-power.WORSE, told.worse)):
        opened = 0
        for _ in range(runs):
            looks = []
            known = None
            for _ in range(gate.looks if shift else 1):
                if known is None:
                    right, known = paired(random, n, 0.6 + shift, 0.6)
                else:  # the same reference, the model drawn again
                    share = 0.6 + shift
                    both = share * 0.6 + power.CORRELATION * math.sqrt(share * (1 - share) * 0.24)
                    right = random.random(n) < np.where(known, both / 0.6, (share - both) / 0.4)
                looks.append(
                    judge(gate, report(make_report, right), report(make_report, known)).passed
                )
            opened += any(looks)
        assert abs(opened / runs - chance) < 4 * math.sqrt(chance * (1 - chance) / runs) + 0.03


def test_the_chances_of_mean_probabilities_are_those_of_the_bootstrap():
    gate, n, random = Gate(metric="probability", threshold=0.9), 120, np.random.default_rng(1)
    told, opened = outlook(gate, n), 0
    for _ in range(80):
        common, own, other = random.standard_normal((3, n))
        mix = lambda noise: (
            0.6
            + power.SPREAD
            * (math.sqrt(power.CORRELATION) * common + math.sqrt(1 - power.CORRELATION) * noise)
        )
        opened += stats.bootstrap_mean(mix(own) - mix(other)).low >= -0.1
    assert abs(opened / 80 - told.equal) < 4 * math.sqrt(told.equal * (1 - told.equal) / 80) + 0.03


def test_what_an_absolute_gate_can_tell_is_exact():
    gate = Gate(reading="absolute", threshold=0.6)
    told = outlook(gate, 164, looks=5)
    least = next(k for k in range(165) if stats.exact_share(k, 164, 0.99).low >= 0.6)
    below = stats.at_least(least, 164, 0.55)
    assert told.equal == 1.0 and told.worse == pytest.approx(1 - (1 - below) ** 5)
    assert "a model must truly stand at 69.8% to open it in half of its first looks" in told.words
    assert stats.at_least(least, 164, 0.697) < 0.5 <= stats.at_least(least, 164, 0.698)


def test_the_english_validation_exam_cannot_tell_three_points():
    """164 questions, non-inferior within 3 points, one look and three rounds: what the real configs asked."""
    told = outlook(Gate(on_failure="retain", rounds=3), 164, looks=4)
    assert not told.can_open and told.equal < 0.1 and 1500 < told.needed < 2500
    assert told.words.startswith(
        "164 questions; an equal model opens it at the first look in 6 of 100 runs"
    )
    by_probability = Gate(metric="probability", on_failure="retain", rounds=3)
    assert outlook(by_probability, 1273, 4, looks=4).can_open  # MedQA's test, what they ask now
    assert (
        outlook(by_probability, 1273, looks=4).needed < told.needed * 0.7
    )  # more power from the same questions


def test_wide_margins_say_what_they_cannot_see():
    told = outlook(Gate(reading="relative", threshold=0.6, metric="probability"), 64, looks=3)
    assert told.equal > 0.99 and told.worse > 0.99 and 0.15 < told.noticed < 0.25
    assert f"a loss of {100 * told.noticed:.0f} points keeps it closed in 80 of 100" in told.words


def test_more_looks_cost_questions_and_conditions_are_asked_alike():
    once, often = (outlook(Gate(threshold=0.9), 150, looks=looks) for looks in (1, 6))
    assert once.equal > often.equal and once.needed < often.needed
    condition = Condition("x", exam="e", threshold=0.9)
    assert dataclasses.replace(outlook(condition, 150), words="") == dataclasses.replace(
        once, words=""
    )


def test_a_gate_that_not_even_a_faultless_model_opens_says_so():
    told = outlook(Gate(reading="absolute", threshold=0.97), 100)
    assert (
        told.equal == 0
        and not told.can_open
        and "not even a faultless model opens it" in told.words
    )
    assert not outlook(
        Gate(reading="absolute", threshold=0.1), 19
    ).can_open  # fewer than open anything
