"""What a config's gates may ask, and what is said of them before anything is trained."""

import copy
import pathlib

import pytest

from medkor_jax.data.question import Question
from medkor_jax.run.config_file import load_recipe, make_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.gate_outlook import gate_outlook, reference_account
from medkor_jax.run.phases import ConfigError
from medkor_jax.run.translation_files import TranslationFiles

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
TEXT = {"text": dict(kind="text", path="embedded", language="en")}
STAGE = dict(
    steps=3,
    trees=("lora",),
    data=TEXT,
    rules=dict(lora=dict(pattern="lora/.*", learning_rate=1.0)),
    lora=dict(rank=2),
)
REMEDY = dict(
    steps=2,
    trees=("lora",),
    data=TEXT,
    rules=STAGE["rules"],
    next_token_weight=0.0,
    retention=dict(weight=1.0),
)
WIDE = dict(reading="relative", threshold=0.6)


def exam(limit=64, skip=0, mode="letter", **more):
    return dict(
        source=dict(path="embedded", split="valid", language="en", limit=limit, skip=skip),
        mode=mode,
        **more,
    )


def make(phase1={}, phase2={}, exams={}, **changed):
    """Two phases: phase 1 chooses a model by its own questions and is the reference, phase 2 trains and compares with it."""
    first = dict(
        exam="choice",
        is_reference=True,
        gate=dict(reading="absolute", threshold=0.3, on_failure="train", rounds=1),
        remedy=REMEDY,
    )
    second = dict(after="phase1", exam="english", gate=WIDE, remedy=REMEDY, **STAGE)
    config = dict(
        run_dir="runs/x", weights="embedded", run=("phase1", "phase2"),
        exams=dict(english=exam(), choice=exam(0, 64)) | exams,
        held_out=dict(korean=dict(kind="text", path="embedded", language="ko", subset="test")),
        phase1=first | phase1, phase2=second | phase2,
    )  # fmt: skip
    return make_recipe(copy.deepcopy(config | changed))


def outlook(recipe):
    return gate_outlook(recipe, Corpora(False))


def test_every_gate_says_what_it_can_tell():
    recipe = make(phase2=dict(gate=WIDE | dict(on_failure="retain", rounds=3, requires=dict(
        korean=dict(held_out="korean", rise_nats=0.1), kept=dict(exam="choice", threshold=0.6),
    ))))  # fmt: skip
    said = outlook(recipe).split("\n")
    assert said[1].startswith(
        "  phase1: closed, its remedy is trained up to 1 times, then the run stops; up to 2 looks, each at 97.50%"
    )
    assert said[2].startswith(
        "    accuracy on 'choice' at least 30.0%: 32 questions; a model must truly stand at "
    )
    assert said[3].startswith(
        "  phase2: closed, its remedy is trained (each-layer) up to 3 times, then the run stops; up to 4 looks, each at 98.75%"
    )
    assert said[4].startswith(
        "    accuracy on 'english' at least 60.0% of that of phase1: 64 questions; an equal model opens it at the first look in "
    )
    assert (
        said[5]
        == "    korean: loss on 'korean' at most 0.1 nats above the phase's start: a number over fixed texts, without an interval"
    )
    assert said[6].startswith(
        "    kept: accuracy on 'choice' at most 40.0 points below the phase's start: 32 questions; an equal model opens"
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            dict(phase2=dict(gate=dict(threshold=0.97))),
            "phase2, accuracy on 'english' at most 3.0 points below phase1: 64 questions; an equal model opens it "
            ".* refused if an equal model .* fewer than 50% .* more questions, a wider margin .* metric='probability' .* on_failure='continue'",
        ),
        (
            dict(exams=dict(english=exam(19))),
            "19 questions can open no gate; give the exam at least 20",
        ),
        (
            dict(phase1=dict(gate=dict(reading="absolute", threshold=0.97))),
            "not even a faultless model opens it",
        ),
        (
            dict(phase1=dict(gate=dict(reading="absolute", threshold=0.2))),
            "not above guessing .20.0%.",
        ),
        (
            dict(exams=dict(choice=exam(0, 60))),
            "4 of its questions are in exam 'choice' too, by which phase1 chose its model",
        ),
        (
            dict(
                phase2=dict(
                    gate=WIDE | dict(requires=dict(kept=dict(exam="choice", threshold=0.97)))
                )
            ),
            "phase2, kept: accuracy on 'choice' .* is refused",
        ),
    ],
)
def test_a_gate_that_an_equal_model_cannot_open_is_refused_before_training(changes, words):
    with pytest.raises(ConfigError, match=words):
        outlook(make(**changes))


def test_a_gate_that_only_records_is_described_and_not_refused():
    said = outlook(make(phase2=dict(gate=dict(threshold=0.97, on_failure="continue"))))
    assert (
        "phase2: it records only and stops nothing" in said
        and "an equal model opens it at the first look in " in said
    )


CHOOSING = dict(candidates=("embedded", "random:tiny"))


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            dict(phase1=CHOOSING | dict(gate=dict(reading="relative"))),
            "phase 'phase1': the gate compares, .* each would be compared with itself",
        ),
        (
            dict(phase1=CHOOSING | dict(gate=dict(reading="non_inferior"))),
            "compared with itself and pass; use reading 'absolute'",
        ),
        (
            dict(
                phase1=CHOOSING
                | dict(gate=dict(reading="absolute", requires=dict(loss=dict(held_out="korean"))))
            ),
            "condition 'loss' compares, and",
        ),
        (dict(phase1=dict(gate=dict(reading="relative"))), "trains nothing before it is judged"),
        (dict(phase2=dict(exam="choice")), "by exam 'choice', by which phase1 chose its model"),
        (
            dict(phase2=dict(gate=dict(metric="form"))),
            "'form' is about reasoned answers and the exam is asked in 'letter' mode",
        ),
        (
            dict(
                exams=dict(english=exam(mode="harness")),
                phase2=dict(gate=dict(metric="probability")),
            ),
            "'harness' mode has a text only",
        ),
        (
            dict(phase2=dict(gate=WIDE | dict(requires=dict(x=dict(exam="englich"))))),
            "condition 'x' asks about 'englich'; exams of this phase: english, choice",
        ),
        (
            dict(phase2=dict(gate=WIDE | dict(requires=dict(x=dict(held_out="english"))))),
            "asks about 'english'; held-out texts: korean",
        ),
        (
            dict(
                phase1=dict(is_reference=False),
                phase2=dict(
                    gate=WIDE | dict(requires=dict(x=dict(exam="choice", against="reference")))
                ),
            ),
            "no phase before has is_reference=True",
        ),
        (
            dict(exams=dict(english=exam(phases=("phase2",)))),
            "to which exam 'english' is not put; name it in that exam's phases",
        ),
        (
            dict(phase2=dict(gate=WIDE | dict(requires=dict(x=dict())))),
            "condition 'x' names exam '' and held_out ''",
        ),
        (
            dict(phase2=dict(gate=WIDE | dict(requires=dict(x=dict(exams="english"))))),
            "nearest: 'exam'",
        ),
        (dict(final=dict(english=exam(8))), "final exam 'english' bears the name of an exam"),
    ],
)
def test_a_gate_that_says_something_else_than_it_does_is_refused_when_the_config_is_read(
    changes, words
):
    with pytest.raises(ConfigError, match=words):
        make(**changes)


def test_gates_that_only_record_may_compare_what_is_there():
    make(
        phase1=dict(gate=dict(reading="relative", on_failure="continue")),
        phase2=dict(exam="choice"),
    )
    make(
        phase1=dict(gate=dict(reading="absolute", threshold=0.3), remedy={}),
        phase2=dict(exam="choice"),
    )  # phase 1 chose nothing


def test_looks_are_counted_over_candidates_and_rounds():
    first, second = make(
        phase1=CHOOSING
        | dict(gate=dict(reading="absolute", threshold=0.3, on_failure="train", rounds=3))
    ).phases
    assert (first.looks, second.looks, first.chooses, second.chooses) == (5, 1, True, False)


def test_the_verdict_says_where_its_reference_comes_from():
    recipe = make()
    first, second = recipe.phases
    assert reference_account(recipe, first) == ""  # absolute
    assert reference_account(recipe, second) == (
        "The reference is the model that phase1 left, measured once at its end: it chose its model by 'choice'; these questions had "
        "no say in it."
    )
    recipe = make(phase1=dict(is_reference=False))
    assert "started from, measured on these questions before training" in reference_account(
        recipe, recipe.phases[1]
    )


def test_the_quick_starts_gates_are_accepted():
    said = outlook(load_recipe(f"{CONFIGS / 'quickstart.py'}:phase5d_exam"))
    assert "probability on 'english' at least 90.0% of that of phase1: 96 questions" in said


class Counted:
    """Corpora of which only the number of questions is known."""

    def __init__(self, **counts):
        self.counts, self.translations = counts, TranslationFiles()

    def questions(self, source):
        n, options = self.counts[source.name.replace("-", "_")]
        return [
            Question(
                f"{source.name}/{i}",
                "",
                None,
                "en",
                f"{source.name} {i}?",
                tuple("abcde"[:options]),
                0,
            )
            for i in range(n)
        ]


def test_the_real_configs_gates_can_be_reached_by_an_equal_model():
    recipe = load_recipe(str(CONFIGS / "pipeline.py"))
    counts = dict(
        english_choice=(164, 5), english=(1273, 4), korean=(164, 5), korean_reasoned=(164, 5)
    )
    said = gate_outlook(recipe, Counted(**counts))
    assert (
        "probability on 'english' at most 3.0 points below phase1: 1273 questions; an equal model opens it at the first look in 89 of 100"
        in said
    )
    assert (
        "probability on 'english-choice' at least 40.0%: at most 164 questions; a model must truly stand at 47.5% to open it"
        in said
    )
    for phase in recipe.phases[2:]:
        names = {condition.name for condition in phase.gate.requires}
        assert {"korean-kept", "korean-loss"} <= names and ("form" in names) is (
            phase.name[:7] in ("phase5c", "phase5d")
        )
    assert [exam.source.split for exam in recipe.final] == ["test", "test"] and recipe.final[
        1
    ].mode == "harness"
    # What they asked before: the same by the English validation exam.
    with pytest.raises(
        ConfigError,
        match="phase2, .*164 questions; an equal model opens it at the first look in 12 of 100",
    ):
        gate_outlook(recipe, Counted(**counts | dict(english=(164, 5))))


def test_two_exams_of_one_file_share_no_question():
    recipe, corpora = make(), Corpora(False)
    english, choice = (corpora.questions(exam.source) for exam in recipe.exams)
    assert (len(english), len(choice)) == (64, 32) and not {q.id for q in english} & {
        q.id for q in choice
    }
    with pytest.raises(ValueError, match="skip is 96, and there are 96 questions"):
        corpora.questions(make(exams=dict(late=exam(0, 96))).exam("late").source)
    with pytest.raises(ConfigError, match="skip is 2 of kind 'text'"):
        make(phase2=dict(data=dict(text=TEXT["text"] | dict(skip=2))))
