"""The closing table, from files as a run leaves them."""

import dataclasses
import json

import pytest

from medkor_jax.eval.gate import Condition, Gate
from medkor_jax.eval.judgement import Evidence, judge_all
from medkor_jax.eval.report import Report
from medkor_jax.eval.scores import Answer
from medkor_jax.eval.verdict import waive, write_verdict
from medkor_jax.run.summary import closing_table


@pytest.fixture
def make_report():
    return lambda predicted: Report("letter", 0, "english", "valid", tuple(
        Answer(str(i), "A", letter, letter == "A", letter, "english", None, "en", 5) for i, letter in enumerate(predicted)
    ))  # fmt: skip


def measured(loss, right, chrf=None, both=None, digest=""):
    def score(accuracy):
        return {
            "group": "all",
            "accuracy": accuracy,
            "low": accuracy - 0.1,
            "high": accuracy + 0.1,
            "n": 40,
        }

    exams = {"english": {"scores": [score(right)], "mode": "cloze", "split": "valid"}}
    if both is not None:
        exams["reasoned"] = {
            "scores": [score(0.5)],
            "mode": "reason",
            "split": "valid",
            "reasoning": {"both": both},
        }
    pairs = {}
    if chrf is not None:
        one = {
            "direction": "en-ko",
            "metric": "chrf",
            "score": chrf,
            "low": chrf - 1,
            "high": chrf + 1,
            "n": 8,
        }
        pairs = {"pairs": {"scores": [one]}}
    return {
        "digest": digest or f"{loss} {right}",
        "watch": {"korean": {"nats": loss, "tokens": 10}},
        "exams": exams,
        "translations": pairs,
    }


def write(run_dir, name, before, after):
    (run_dir / name).mkdir()
    summary = {
        "phase": name,
        "model": after["digest"],
        "title": f"title of {name}",
        "seconds": 12.3,
        "rounds": 1,
        "before": before,
        "after": after,
    }
    (run_dir / name / "summary.json").write_text(json.dumps(summary))


def test_every_number_is_shown_before_and_after(tmp_path):
    write(tmp_path, "phase3", measured(5.0, 0.6), measured(4.0, 0.5))
    write(tmp_path, "phase5", measured(4.0, 0.5, 12.0, 0.25), measured(4.5, 0.55, 61.0, 0.975))
    table = closing_table(tmp_path, ["phase0", "phase3", "phase5"])
    lines = [" ".join(line.split()) for line in table.split("\n")]
    assert "phase3 title of phase3 (12 s, 1 remedy rounds)" in lines
    assert "loss, korean 5.000 -> 4.000" in lines
    assert "exam, english 60.0% -> 50.0% [40.0%, 60.0%] of 40 (cloze, valid)" in lines
    assert "translation, pairs en-ko chrF 12.0 -> 61.0 [60.0, 62.0] over 8" in lines
    assert "of these texts 97.5% have the format and one letter" in lines
    assert lines.count("verdict: missing or damaged") == 2
    assert "korean loss 5.000 -> 4.500 (lower than before)" in lines
    assert "english exam 60.0% -> 55.0% [45.0%, 65.0%] of 40 (cloze, valid)" in lines
    assert (
        "reasoned exam 50.0% (before phase5) -> 50.0% [40.0%, 60.0%] of 40 (reason, valid)" in lines
    )  # not put to the first phase


def test_conditions_looks_and_final_exams_are_shown(tmp_path, make_report):
    write(tmp_path, "phase5", measured(4.0, 0.5), measured(4.5, 0.55))
    report = make_report("A" * 90 + "B" * 60)
    gate = Gate(
        threshold=0.9,
        on_failure="retain",
        requires=(Condition("korean-loss", held_out="korean", rise_nats=0.05),),
    )
    start, worse = (Evidence({"english": report}, {"korean": loss}) for loss in (3.16, 3.9))
    looks = [
        ("after training", judge_all(gate, "english", worse, start, start)),
        ("after remedy round 1", judge_all(gate, "english", start, start, start)),
    ]
    digests = dict(weights="w", data="d", config="c")
    look = {"exam": "last", "phase": "phase5", "report": measured(0, 0.7)["exams"]["english"]}
    (tmp_path / "final.json").write_text(json.dumps({"digest": {"n": 40, "looks": [look, look]}}))
    for n in (1, 2):
        write_verdict(
            tmp_path / "phase5/verdict.json",
            phase="phase5",
            gate=gate,
            looks=looks[:n],
            report=report,
            reference=None,
            digests=digests,
        )
        table = closing_table(tmp_path, ["phase5"])
        if n == 1:
            assert (
                "CLOSED. The gate stays closed by 1 of 2 conditions: korean-loss: 3.900 nats"
                in table
            )
            assert (
                "\n    holds  english: 60.0% (90 of 150) against" in table
                and "\n    CLOSED korean-loss: 3.900 nats a token" in table
            )
    assert (
        "PASSED. The gate opens, all 2 conditions hold" in table
        and "\n    holds  korean-loss: 3.160" in table
    )
    assert "looks: after training closed, after remedy round 1 opened" in table
    assert (
        "final exam last 70.0% [60.0%, 80.0%] of 40 (cloze, valid), put to phase5's model; its questions were looked at twice in this run"
        in table
    )


def test_what_came_of_the_whole_is_told_of_the_model_that_was_taken(tmp_path):
    """A small candidate that did not pass is no step to what the large one became."""
    write(tmp_path, "phase0", measured(5.0, 0.2, digest="small"), measured(4.9, 0.3, digest="s"))
    write(tmp_path, "phase0-b", measured(3.0, 0.6, digest="large"), measured(2.9, 0.7, digest="l"))
    write(tmp_path, "phase1", measured(2.9, 0.7, digest="l"), measured(2.9, 0.7, digest="l"))
    write(tmp_path, "phase2", measured(2.9, 0.7, digest="l"), measured(3.2, 0.65, digest="m"))
    table = closing_table(tmp_path, ["phase0", "phase0-b", "phase1", "phase2"])
    lines = [" ".join(line.split()) for line in table.split("\n")]
    assert "korean loss 3.000 -> 3.200 (NOT lower than before)" in lines
    assert "english exam 60.0% -> 65.0% [55.0%, 75.0%] of 40 (cloze, valid)" in lines
    assert any(line.startswith("phase0 title") for line in lines)  # it is shown all the same


def exam_of(directory, when, report):
    """What a phase's summary says of the exam `english`, whose answers are on disk then."""
    report.write(directory / f"{when}.jsonl")
    return {
        "digest": when,
        "watch": {},
        "exams": {"english": report.summary()},
        "translations": {},
        "answers": {"english": f"{when}.jsonl"},
    }


@pytest.mark.parametrize(
    ("mode", "right", "words"),
    [
        ("letter", (30, 60), "+30.0 points [+21."),
        ("letter", (30, 33), "+3.0 points"),
        ("letter", (60, 30), "-30.0 points"),
        ("reason", (60, 30), "fell: not learnt"),
    ],
)
def test_what_rose_or_fell_is_said_with_its_paired_interval(
    mode, right, words, make_report, tmp_path
):
    before, after = (make_report("A" * n + ("BCDE" * 25)[: 100 - n]) for n in right)
    if mode == "reason":
        written = dict(has_format=True, is_whole=True, n_tokens=9)
        before, after = (
            dataclasses.replace(
                report,
                mode=mode,
                max_new_tokens=20,
                answers=tuple(dataclasses.replace(a, **written) for a in report.answers),
            )
            for report in (before, after)
        )
    pair = [exam_of(tmp_path / "phase3", w, r) for w, r in (("b", before), ("a", after))]
    (tmp_path / "phase3/summary.json").write_text(json.dumps(
        {"phase": "phase3", "model": "a", "title": "", "seconds": 1, "rounds": 0, "before": pair[0], "after": pair[1]}
    ))  # fmt: skip
    table = closing_table(tmp_path, ["phase3"])
    how = {30: "rose", 3: "cannot be told apart", -30: "fell"}[right[1] - right[0]]
    assert words in table and table.count(f", {how}") == 2
    assert ("not learnt" in table) == (mode == "reason")
    assert f"{how} over these phases, the same 100 questions" in table


def test_other_questions_are_not_compared(make_report, tmp_path):
    pair = [exam_of(tmp_path / "phase3", w, make_report("A" * n)) for w, n in (("b", 9), ("a", 8))]
    (tmp_path / "phase3/summary.json").write_text(json.dumps(
        {"phase": "phase3", "model": "a", "title": "", "seconds": 1, "rounds": 0, "before": pair[0], "after": pair[1]}
    ))  # fmt: skip
    assert "points" not in closing_table(tmp_path, ["phase3"])


def test_a_gate_that_stops_nothing_says_recorded(make_report, tmp_path):
    write(tmp_path, "phase0", measured(4.0, 0.5), measured(4.5, 0.55))
    report = make_report("A" * 20 + "B" * 20)
    gate = Gate(threshold=0.97, reading="absolute", on_failure="continue")
    found = Evidence({"english": report}, {})
    path = tmp_path / "phase0/verdict.json"
    write_verdict(path, phase="phase0", gate=gate, looks=[("after", judge_all(gate, "english", found, found, found))],
                  report=report, reference=None, digests=dict(weights="w", data="d", config="c"))  # fmt: skip
    waive(path, "the config says so")
    (line,) = [
        line for line in closing_table(tmp_path, ["phase0"]).split("\n") if "verdict:" in line
    ]
    assert "Recorded, and goes on (as a gate it would stay closed): 50.0%" in line
    assert "CLOSED" not in line and "Waived" not in line


def test_a_run_without_a_finished_phase_says_so(tmp_path):
    assert "no phase has finished" in closing_table(tmp_path, ["phase0"])
