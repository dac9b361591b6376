import dataclasses
import json

import pytest

from medkor_jax.eval import stats
from medkor_jax.eval.gate import Gate, judge


def scored(make_report, correct, n, **options):
    """A report of n answers, the first `correct` of them right, keys spread evenly."""
    key = ("ABCDE" * n)[:n]
    wrong = ("BCDEA" * n)[:n]
    return make_report(key[:correct] + wrong[correct:], key, **options)


def test_absolute_counts_the_bound_itself_as_reached(make_report):
    gate = Gate(reading="absolute", threshold=0.97)
    assert judge(gate, scored(make_report, 97, 100)).passed
    closed = judge(gate, scored(make_report, 96, 100))
    assert not closed.passed
    assert closed.words == "The gate stays closed: 96.0% (96 of 100) against the required 97.0% (absolute)."
    assert closed.interval == stats.wilson(96, 100) and closed.reference is None and closed.p_value is None


def test_relative_compares_with_the_references_own_score(make_report):
    gate, reference = Gate(reading="relative", threshold=0.97), scored(make_report, 100, 200)
    opened = judge(gate, scored(make_report, 97, 200), reference)
    assert opened.passed and opened.bound == pytest.approx(0.485) and opened.reference == 0.5
    assert opened.words.startswith("The gate opens: 48.5% (97 of 200) against 48.5%, which is 97.0% of the reference's")
    assert not judge(gate, scored(make_report, 96, 200), reference).passed
    # 0.9 * 0.8 comes out a little above 0.72; reaching the bound is reaching it.
    exact = Gate(reading="relative", threshold=0.9)
    assert judge(exact, scored(make_report, 72, 100), scored(make_report, 80, 100)).passed


def test_non_inferior_asks_the_paired_interval_and_not_the_point(make_report):
    gate = Gate(reading="non_inferior", threshold=0.97)
    # The same score; but once on the same questions, once after trading 40 right answers for 40 others.
    steady = scored(make_report, 300, 500)
    assert judge(gate, steady, steady).passed
    traded = make_report("".join("A" if 40 <= i < 340 else "B" for i in range(500)), "A" * 500)
    reference = make_report("".join("A" if i < 300 else "B" for i in range(500)), "A" * 500)
    judgement = judge(gate, traded, reference)
    assert judgement.value == 0 and not judgement.passed
    counts = stats.PairedCounts(both=260, only_first=40, only_second=40, neither=160)
    assert judgement.interval == stats.paired_difference(counts)
    assert judgement.p_value == stats.mcnemar_exact(counts)
    assert judgement.bound == pytest.approx(-0.03)
    assert "+0.0 points [-3.5, +3.5], whose lower end must be at least -3.0 (non-inferior)" in judgement.words
    assert judge(Gate(threshold=0.96), traded, reference).passed  # -3.5 points is within -4
    assert judge(Gate(threshold=0.97, confidence=0.8), traded, reference).passed  # a narrower interval


def test_pairs_are_made_by_id_and_not_by_place(make_report):
    report, reference = scored(make_report, 60, 100), scored(make_report, 60, 100)
    shuffled = dataclasses.replace(reference, answers=reference.answers[::-1])
    assert judge(Gate(), report, shuffled) == judge(Gate(), report, reference)


def test_refuses_a_reference_that_cannot_be_compared(make_report):
    report = scored(make_report, 50, 60)
    with pytest.raises(ValueError, match="none was given"):
        judge(Gate(reading="relative"), report)
    with pytest.raises(ValueError, match="20 ids are in only one of the two, first 'q60' .60 here, 80 there"):
        judge(Gate(), report, scored(make_report, 50, 80))
    with pytest.raises(ValueError, match="mode 'letter', its reference 'harness'"):
        judge(Gate(), report, scored(make_report, 50, 60, mode="harness"))
    with pytest.raises(ValueError, match="shots 0, its reference 5"):
        judge(Gate(), report, scored(make_report, 50, 60, shots=5))
    with pytest.raises(ValueError, match="max_new_tokens None, its reference 96"):
        judge(Gate(), report, dataclasses.replace(scored(make_report, 50, 60), max_new_tokens=96))
    with pytest.raises(ValueError, match="'q1' has key B here and A in the reference"):
        judge(Gate(), report, make_report("A" * 60))
    with pytest.raises(ValueError, match="only one of the two"):  # nor is a p value of strangers recorded
        judge(Gate(reading="absolute"), report, scored(make_report, 50, 80))


@pytest.mark.parametrize("reading", ["relative", "non_inferior"])
def test_no_better_than_guessing_passes_only_when_allowed_and_says_so(make_report, reading):
    lucky = scored(make_report, 20, 100)  # five options: exactly chance
    closed = judge(Gate(reading=reading), lucky, lucky)
    assert not closed.passed and closed.at_chance == ("the model", "the reference")
    assert "stays closed" in closed.words and "at chance; passing says nothing" in closed.words
    opened = judge(Gate(reading=reading, allow_chance=True), lucky, lucky)
    assert opened.passed and "opens" in opened.words and "at chance; passing says nothing" in opened.words

    good = scored(make_report, 90, 100)
    against_chance = judge(Gate(reading=reading), good, lucky)
    assert not against_chance.passed and "the reference is at chance; passing says nothing" in against_chance.words
    # Being allowed at chance does not excuse from reaching the bound.
    failed = judge(Gate(reading=reading, allow_chance=True), scored(make_report, 5, 100), lucky)
    assert not failed.passed and "at chance" in failed.words


def test_an_absolute_bar_below_chance_is_not_passed_quietly(make_report):
    lucky = scored(make_report, 20, 100)
    assert not judge(Gate(reading="absolute", threshold=0.15), lucky).passed
    good = scored(make_report, 98, 100)
    assert judge(Gate(reading="absolute"), good, lucky).passed  # the reference is only recorded here


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reading": "non-inferior"}, "did you mean 'non_inferior'"),
        ({"on_failure": "retrain"}, "retain, train, stop, continue"),
        ({"metric": "loss"}, "accuracy"),
        ({"threshold": 97}, "0.97, not 97"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"rounds": 0}, "at least once"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Gate(**change)


def test_judgement_is_plain_json(make_report):
    report = scored(make_report, 60, 100)
    stored = json.loads(json.dumps(judge(Gate(), report, report).to_json()))
    assert stored["passed"] is False or stored["passed"] is True
    assert stored["interval"] == list(judge(Gate(), report, report).interval)
