import dataclasses
import json
import math

import numpy as np
import pytest

from medkor_jax.eval import stats
from medkor_jax.eval.gate import Condition, Gate
from medkor_jax.eval.judgement import Evidence, judge, judge_all


def scored(make_report, correct, n, **options):
    """A report of n answers, the first `correct` of them right, keys spread evenly."""
    key = ("ABCDE" * n)[:n]
    wrong = ("BCDEA" * n)[:n]
    return make_report(key[:correct] + wrong[correct:], key, **options)


def with_right(make_report, right, **options):
    """A report whose answers are right where `right`, bool [questions], says so; the key is always A."""
    return make_report("".join("AB"[not r] for r in right), "A" * len(right), **options)


def sure(report, right):
    """The report with the probability right[i] on question i's key, the rest spread evenly."""
    answers = []
    for answer, p in zip(report.answers, right, strict=True):
        place = "ABCDE".index(answer.key)
        answers.append(
            dataclasses.replace(
                answer, probabilities=tuple(p if i == place else (1 - p) / 4 for i in range(5))
            )
        )
    return dataclasses.replace(report, answers=tuple(answers))


def test_absolute_asks_the_lower_end_and_not_the_point(make_report):
    gate = Gate(reading="absolute", threshold=0.9)
    opened = judge(gate, scored(make_report, 194, 200))
    assert (
        opened.passed
        and opened.interval == stats.exact_share(194, 200)
        and opened.reference is None
        and opened.p_value is None
    )
    closed = judge(gate, scored(make_report, 186, 200))
    assert not closed.passed and closed.value == 0.93 and closed.bound == 0.9
    assert closed.words == (
        "The gate stays closed: 93.0% (186 of 200) [88.5%, 96.1%], whose lower end must reach the required 90.0% (absolute)."
    )


@pytest.mark.parametrize("reading", ["absolute", "relative", "non_inferior"])
def test_one_of_one_opens_nothing(make_report, reading):
    one = scored(make_report, 1, 1)
    judgement = judge(Gate(reading=reading, threshold=0.6, allow_chance=True), one, one)
    assert (
        not judgement.passed
        and "1 questions are fewer than the 20 that can open a gate" in judgement.words
    )


def test_relative_asks_the_paired_interval_of_what_is_above_its_part_of_the_reference(make_report):
    gate = Gate(reading="relative", threshold=0.9)
    reference = scored(make_report, 160, 200)
    opened = judge(gate, scored(make_report, 156, 200), reference)
    assert (
        opened.passed
        and opened.bound == 0
        and opened.reference == 0.8
        and opened.value == pytest.approx(0.78 - 0.72)
    )
    assert opened.interval == stats.paired_difference(stats.PairedCounts(156, 0, 4, 40), kept=0.9)
    assert (
        "78.0% (156 of 200) against the reference's 80.0% (160 of 200): +6.0 points ["
        in opened.words
    )
    assert "from 90.0% of it, whose lower end must be at least 0 (relative)" in opened.words
    # 92.5 % of the reference as a point, but not for sure.
    assert not judge(gate, scored(make_report, 148, 200), reference).passed


def test_non_inferior_asks_the_paired_interval_and_not_the_point(make_report):
    gate = Gate(reading="non_inferior", threshold=0.97)
    # The same score; but once on the same questions, once after trading 40 right answers for 40 others.
    steady = scored(make_report, 300, 500)
    assert judge(gate, steady, steady).passed
    traded = with_right(make_report, [40 <= i < 340 for i in range(500)])
    reference = with_right(make_report, [i < 300 for i in range(500)])
    judgement = judge(gate, traded, reference)
    assert judgement.value == 0 and not judgement.passed
    counts = stats.PairedCounts(both=260, only_first=40, only_second=40, neither=160)
    assert judgement.interval == stats.paired_difference(counts)
    assert judgement.p_value == stats.mcnemar_exact(counts)
    assert judgement.bound == pytest.approx(-0.03)
    assert (
        "a difference of +0.0 points [-3.6, +3.6], whose lower end must be at least -3.0 (non-inferior)"
        in judgement.words
    )
    assert judge(Gate(threshold=0.96), traded, reference).passed  # -3.6 points is within -4
    assert judge(
        Gate(threshold=0.97, confidence=0.8), traded, reference
    ).passed  # a narrower interval


def test_a_model_that_keeps_80_percent_does_not_open_an_85_percent_gate_by_being_asked_often(
    make_report,
):
    """64 questions, a reference right in 53 %, one look and three rounds: the point estimates opened it in most runs."""
    gate = Gate(reading="relative", threshold=0.85, on_failure="retain", rounds=3)
    random, runs, first, ever = np.random.default_rng(0), 100, 0, 0
    for _ in range(runs):
        known = random.random(64) < 0.53
        reference = with_right(make_report, known)
        share = 0.8 * 0.53
        both = share * 0.53 + 0.7 * math.sqrt(share * (1 - share) * 0.53 * 0.47)
        looks = []
        for _ in range(4):
            right = random.random(64) < np.where(known, both / 0.53, (share - both) / 0.47)
            looks.append(judge(gate, with_right(make_report, right), reference).passed)
        first, ever = first + looks[0], ever + any(looks)
    # The stated rate is (1 - 95 %) / 2 for all four looks together, and this model is below the bound.
    assert first / runs <= 0.025 and ever / runs <= 0.025


def test_looks_share_the_error_and_are_told(make_report):
    reference, report = scored(make_report, 300, 500), scored(make_report, 299, 500)
    once, often = Gate(), Gate(on_failure="retain", rounds=3)
    assert (
        once.looks,
        often.looks,
        Gate(rounds=3).looks,
        Gate(rounds=3, on_failure="continue").looks,
    ) == (1, 4, 1, 1)
    one, four = judge(once, report, reference), judge(often, report, reference)
    assert one.confidence == 0.95 and four.confidence == pytest.approx(0.9875) and four.looks == 4
    assert four.interval == stats.paired_difference(stats.PairedCounts(299, 0, 1, 200), 0.9875)
    assert (
        four.interval.low < one.interval.low
        and "(4 looks, each at 98.75%)" in four.words
        and "looks" not in one.words
    )
    assert judge(often, report, reference, looks=5).confidence == pytest.approx(
        0.99
    )  # five candidates and rounds


def test_mean_probabilities_are_compared_in_pairs(make_report):
    random = np.random.default_rng(0)
    known = random.beta(0.5, 0.5, 64)
    plain = scored(make_report, 40, 64)
    gate = Gate(metric="probability", reading="non_inferior", threshold=0.9)
    reference = sure(plain, known)
    worse = sure(plain, np.clip(known - 0.05 + 0.02 * random.standard_normal(64), 0, 1))
    judgement = judge(gate, worse, reference)
    lost = np.array([a.probabilities["ABCDE".index(a.key)] for a in worse.answers]) - known
    assert judgement.interval == stats.bootstrap_mean(lost) and judgement.value == pytest.approx(
        lost.mean()
    )
    assert judgement.passed and judgement.p_value is None
    assert (
        f"{known.mean():.1%} mean probability of the right option (accuracy 62.5% (40 of 64))"
        in judgement.words
    )
    # The same right answers: by accuracy nothing differs, and 64 questions still cannot show it within 5 points.
    assert not judge(Gate(threshold=0.96), worse, reference).passed
    assert not judge(dataclasses.replace(gate, threshold=0.96), worse, reference).passed
    relative = judge(
        Gate(metric="probability", reading="relative", threshold=0.8), worse, reference
    )
    assert relative.passed and relative.value == pytest.approx(
        known.mean() + lost.mean() - 0.8 * known.mean()
    )
    absolute = judge(Gate(metric="probability", reading="absolute", threshold=0.3), reference)
    assert absolute.passed and absolute.interval == stats.bootstrap_mean(known)


def test_probabilities_no_better_than_guessing_are_at_chance(make_report):
    flat = sure(scored(make_report, 40, 64), np.full(64, 0.2) + 0.01 * np.sin(np.arange(64)))
    gate = Gate(metric="probability", reading="relative", threshold=0.5)
    closed = judge(gate, flat, flat)
    assert (
        not closed.passed
        and closed.at_chance == ("the model", "the reference")
        and not flat.is_at_chance
    )
    assert judge(dataclasses.replace(gate, allow_chance=True), flat, flat).passed


@pytest.mark.parametrize("mode", ["harness", "reason"])
def test_a_text_has_no_probability(make_report, mode):
    report = scored(make_report, 40, 64)
    report = dataclasses.replace(
        report, mode=mode, max_new_tokens=8,
        answers=tuple(dataclasses.replace(a, has_format=True, is_whole=True, n_tokens=3) for a in report.answers),
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"'{mode}' mode has a text only; use metric 'accuracy'"):
        judge(Gate(metric="probability"), report, report)


def test_pairs_are_made_by_id_and_not_by_place(make_report):
    report, reference = scored(make_report, 60, 100), scored(make_report, 50, 100)
    shuffled = dataclasses.replace(reference, answers=reference.answers[::-1])
    assert judge(Gate(), report, shuffled) == judge(Gate(), report, reference)


def test_refuses_a_reference_that_cannot_be_compared(make_report):
    report = scored(make_report, 50, 60)
    with pytest.raises(ValueError, match="none was given"):
        judge(Gate(reading="relative"), report)
    with pytest.raises(
        ValueError, match="20 ids are in only one of the two, first 'q60' .60 here, 80 there"
    ):
        judge(Gate(), report, scored(make_report, 50, 80))
    with pytest.raises(ValueError, match="mode 'letter', its reference 'harness'"):
        judge(Gate(), report, scored(make_report, 50, 60, mode="harness"))
    with pytest.raises(ValueError, match="shots 0, its reference 5"):
        judge(Gate(), report, scored(make_report, 50, 60, shots=5))
    with pytest.raises(ValueError, match="max_new_tokens None, its reference 96"):
        judge(Gate(), report, dataclasses.replace(scored(make_report, 50, 60), max_new_tokens=96))
    with pytest.raises(ValueError, match="'q1' has key B here and A in the reference"):
        judge(Gate(), report, make_report("A" * 60))
    with pytest.raises(
        ValueError, match="only one of the two"
    ):  # nor is a p value of strangers recorded
        judge(Gate(reading="absolute"), report, scored(make_report, 50, 80))


@pytest.mark.parametrize("reading", ["relative", "non_inferior"])
def test_no_better_than_guessing_passes_only_when_allowed_and_says_so(make_report, reading):
    lucky = scored(make_report, 40, 200)  # five options: exactly chance
    closed = judge(Gate(reading=reading, threshold=0.9), lucky, lucky)
    assert not closed.passed and closed.at_chance == ("the model", "the reference")
    assert "stays closed" in closed.words and "at chance; passing says nothing" in closed.words
    threshold = 0.97 if reading == "non_inferior" else 0.8
    opened = judge(Gate(reading=reading, threshold=threshold, allow_chance=True), lucky, lucky)
    assert (
        opened.passed
        and "opens" in opened.words
        and "at chance; passing says nothing" in opened.words
    )

    good = scored(make_report, 180, 200)
    against_chance = judge(Gate(reading=reading), good, lucky)
    assert (
        not against_chance.passed
        and "the reference is at chance; passing says nothing" in against_chance.words
    )
    # Being allowed at chance does not excuse from reaching the bound.
    failed = judge(Gate(reading=reading, allow_chance=True), scored(make_report, 10, 200), lucky)
    assert not failed.passed and "at chance" in failed.words


def test_an_absolute_bar_below_chance_is_not_passed_quietly(make_report):
    lucky = scored(make_report, 40, 200)
    assert not judge(Gate(reading="absolute", threshold=0.1), lucky).passed
    good = scored(make_report, 198, 200)
    assert judge(
        Gate(reading="absolute", threshold=0.95), good, lucky
    ).passed  # the reference is only recorded here


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reading": "non-inferior"}, "did you mean 'non_inferior'"),
        ({"on_failure": "retrain"}, "retain, train, stop, continue"),
        ({"metric": "loss"}, "accuracy"),
        ({"threshold": 97}, "0.97, not 97"),
        ({"threshold": 0.0}, "between 0 and 1"),
        ({"threshold": 1.0}, "no interval's lower end reaches"),
        ({"threshold": 0.4}, "60 points could be lost"),
        ({"confidence": 1.0}, "between 0.5 and 1"),
        ({"confidence": 95.0}, "0.95, not 95"),
        ({"rounds": 0}, "at least once"),
        ({"metric": "form", "allow_chance": True}, "of which guessing has no value"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Gate(**change)


def test_a_gate_that_only_records_may_ask_for_everything():
    assert Gate(threshold=1.0, reading="absolute", on_failure="continue").threshold == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "exactly one of them"),
        ({"exam": "a", "held_out": "b"}, "exactly one of them"),
        ({"exam": "a", "against": "begin"}, "start, reference"),
        ({"exam": "a", "rise_nats": 0.1}, "for held-out texts"),
        ({"exam": "a", "threshold": 1.0}, "condition 'x' threshold is 1"),
        (
            {"held_out": "b", "metric": "probability", "threshold": 0.5},
            "leave out metric, threshold",
        ),
        ({"held_out": "b", "rise_nats": -0.1}, "rise_nats -0.1"),
        ({"held_out": "b", "rise_nats": math.nan}, "rise_nats nan"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Condition("x", **change)


@pytest.fixture
def several(make_report):
    """A gate that asks for four things, and the evidence of a start that is good in all of them."""
    gate = Gate(reading="non_inferior", threshold=0.9, on_failure="retain", rounds=1, requires=(
        Condition("korean-kept", exam="korean", threshold=0.8),
        Condition("form", exam="reasoned", metric="form", reading="absolute", threshold=0.7),
        Condition("korean-loss", held_out="korean", rise_nats=0.05),
    ))  # fmt: skip
    reasoned = scored(make_report, 30, 60)
    answers = (
        dataclasses.replace(a, has_format=True, is_whole=True, n_tokens=9) for a in reasoned.answers
    )
    reasoned = dataclasses.replace(
        reasoned, mode="reason", max_new_tokens=16, answers=tuple(answers)
    )
    reports = {
        "english": scored(make_report, 150, 200),
        "korean": scored(make_report, 100, 150),
        "reasoned": reasoned,
    }
    return gate, Evidence(reports, {"korean": 3.16})


def test_a_gate_that_asks_for_several_things_opens_when_all_hold(several):
    gate, start = several
    judgement = judge_all(gate, "english", start, start, start)
    assert judgement.passed and [c.name for c in judgement.conditions] == [
        "english",
        "korean-kept",
        "form",
        "korean-loss",
    ]
    assert judgement.words.startswith(
        "The gate opens, all 4 conditions hold (english, korean-kept, form, korean-loss): english: 75.0% (150"
    )
    assert all(c.looks == 2 for c in judgement.conditions)
    assert (
        judgement.conditions[1].confidence
        == judgement.conditions[0].confidence
        == pytest.approx(0.975)
    )
    assert judgement.value == 0 and judgement.conditions[2].score == 1.0


def test_each_condition_closes_the_gate_by_itself_and_is_named(several, make_report):
    gate, start = several
    lost = dataclasses.replace(start.reports["reasoned"], answers=tuple(
        dataclasses.replace(a, has_format=i % 2 == 0) for i, a in enumerate(start.reports["reasoned"].answers)
    ))  # fmt: skip
    spoilt = {
        "english": Evidence(
            start.reports | {"english": scored(make_report, 110, 200)}, start.losses
        ),
        "korean-kept": Evidence(
            start.reports | {"korean": scored(make_report, 60, 150)}, start.losses
        ),
        "form": Evidence(start.reports | {"reasoned": lost}, start.losses),
        "korean-loss": Evidence(
            start.reports, {"korean": 3.9}
        ),  # the quick start's 5c, which opened
    }
    for name, found in spoilt.items():
        judgement = judge_all(gate, "english", found, start, start)
        assert not judgement.passed and [c.name for c in judgement.conditions if not c.passed] == [
            name
        ]
        assert judgement.words.startswith(f"The gate stays closed by 1 of 4 conditions: {name}: ")
    assert (
        "3.900 nats a token, where at most 3.210 are allowed (its start: 3.160, and 0.05). These hold: english"
        in judgement.words
    )
    both = Evidence(spoilt["english"].reports, {"korean": 3.9})
    assert (
        "closed by 2 of 4 conditions: english: 55.0%"
        in judge_all(gate, "english", both, start, start).words
    )
    broken = judge_all(gate, "english", Evidence(start.reports, {"korean": math.nan}), start, start)
    assert not broken.passed and broken.to_json()["conditions"][3]["score"] is None


def test_the_gate_compares_with_the_reference_and_a_condition_with_what_it_names(
    several, make_report
):
    gate, start = several
    reference = Evidence(
        start.reports
        | {"english": scored(make_report, 190, 200), "korean": scored(make_report, 140, 150)},
        {"korean": 2.0},
    )
    closed = judge_all(gate, "english", start, start, reference)
    assert [c.passed for c in closed.conditions] == [
        False,
        True,
        True,
        True,
    ] and closed.reference == 0.95
    leaning = dataclasses.replace(
        gate, requires=tuple(dataclasses.replace(c, against="reference") for c in gate.requires)
    )
    assert [
        c.passed for c in judge_all(leaning, "english", start, start, reference).conditions
    ] == [False, False, True, False]


def test_judgement_is_plain_json(make_report, several):
    report = scored(make_report, 60, 100)
    stored = json.loads(json.dumps(judge(Gate(), report, report).to_json()))
    assert stored["passed"] is False or stored["passed"] is True
    assert stored["interval"] == list(judge(Gate(), report, report).interval)
    gate, start = several
    stored = json.loads(
        json.dumps(judge_all(gate, "english", start, start, start).to_json(), allow_nan=False)
    )
    assert [c["name"] for c in stored["conditions"]] == [
        "english",
        "korean-kept",
        "form",
        "korean-loss",
    ]
