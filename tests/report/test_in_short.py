"""What a run says first when it ends: four lines, and no claim beyond an interval."""

import shutil

import pytest

from medkor_jax.io.files import read_sealed, write_sealed
from medkor_jax.report.files import read_run
from medkor_jax.report.in_short import in_short

from ..run.conftest import finished  # noqa: F401
from .test_report import answer_otherwise, run_dir  # noqa: F401


def lines_of(run_dir):  # noqa: F811
    return dict(line.split(": ", 1) for line in in_short(read_run(run_dir)))


def changed_summary(run_dir, phase, change):  # noqa: F811
    path = run_dir / phase / "summary.json"
    summary = read_sealed(path)
    change(summary)
    write_sealed(path, summary)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (30, 8, "30 of 40 right (75.0%) after phase1, 8 of 40 right (20.0%) after phase3: -55.0"),
        (20, 20, "+0.0 points [-8.8, +8.8], cannot be told apart"),
        (10, 38, "rose"),
    ],
)
def test_english_is_compared_with_the_model_that_the_gates_compare_with(
    before,
    after,
    words,
    run_dir,  # noqa: F811
):
    answer_otherwise(run_dir, "phase1/answers/english-after.jsonl", before)
    answer_otherwise(run_dir, "phase3/answers/english-after.jsonl", after)
    said = lines_of(run_dir)["English"]
    assert said.startswith("english ") and words in said
    assert "; mean probability of the right option " in said and "%, " in said.split("option ")[1]
    assert "Its gate, which wants" in said and said.endswith((" opened.", " did not open."))


def test_what_training_without_retention_did_is_the_look_before_the_remedy(run_dir):  # noqa: F811
    last = read_sealed(run_dir / "phase3/summary.json")["after"]["answers"]["english"]
    trained = "answers/english-trained.jsonl"
    shutil.copy(run_dir / "phase3" / last, run_dir / "phase3" / trained)

    def remedied(summary):
        summary["rounds"] = 1
        summary["before_remedy"]["answers"]["english"] = trained

    changed_summary(run_dir, "phase3", remedied)
    answer_otherwise(run_dir, "phase1/answers/english-after.jsonl", 30)
    answer_otherwise(run_dir, f"phase3/{trained}", 10)
    answer_otherwise(run_dir, f"phase3/{last}", 29)
    said = lines_of(run_dir)["Without retention"]
    assert said.startswith("phase3's training alone moved english by -50.0 points")
    assert "after its remedy -2.5 points" in said
    changed_summary(run_dir, "phase3", lambda one: one.update(rounds=0))
    assert "not measured, since no gate closed" in lines_of(run_dir)["Without retention"]


def test_nothing_is_claimed_of_what_was_not_asked(run_dir):  # noqa: F811
    said = lines_of(run_dir)
    assert said["Korean"] == "no exam was asked, so nothing can be said."
    assert said["Reasoned answers"] == "not asked."


@pytest.mark.parametrize(("right", "words"), [(9, "nothing is claimed"), (36, "above guessing")])
def test_reasoned_answers_at_chance_are_no_claim(right, words, run_dir):  # noqa: F811
    def reasoned(summary):
        for when in ("before", "before_remedy", "after"):
            summary[when]["exams"]["english"]["mode"] = "reason"

    changed_summary(run_dir, "phase3", reasoned)
    file = read_sealed(run_dir / "phase3/summary.json")["after"]["answers"]["english"]
    answer_otherwise(run_dir, f"phase3/{file}", right)
    said = lines_of(run_dir)
    assert words in said["Reasoned answers"] and f"{right} of 40 right" in said["Reasoned answers"]
