"""Runs side by side: what can be told, and what is not compared."""

import json
import pathlib
import shutil

import pytest

from medkor_jax import cli
from medkor_jax.eval import stats
from medkor_jax.io.files import read_sealed, write_sealed
from medkor_jax.report.comparing import compare
from medkor_jax.report.files import read_run

from ..run.conftest import finished  # noqa: F401
from .test_report import answer_otherwise

ANSWERS = "phase3/answers/english-after.jsonl"


@pytest.fixture
def runs(finished, tmp_path):  # noqa: F811
    """Two runs of the same questions: 10 and 30 of 40 right."""
    found = []
    for name, right in (("one", 10), ("two", 30)):
        found.append(pathlib.Path(shutil.copytree(finished, tmp_path / name)))
        answer_otherwise(found[-1], ANSWERS, right)
    return found


def beside(runs):
    (exam,) = compare([read_run(run) for run in runs])["exams"]
    return exam["runs"][1]


def test_which_is_better_and_by_how_much(runs, capsys):
    found = beside(runs)["beside"]
    counts = stats.PairedCounts(10, 20, 0, 10)
    low, high = stats.paired_difference(counts)  # one exam, one other run: nothing shares the 95 %
    assert (found["points"], found["verdict"]) == (pytest.approx(50.0), "better")
    assert (found["low"], found["high"]) == (pytest.approx(100 * low), pytest.approx(100 * high))
    assert found["p_value"] == stats.mcnemar_exact(counts) == pytest.approx(2 * 0.5**20)
    assert found["probability"]["points"] == 0.0  # they prefer the same, whatever is counted right
    assert beside(runs[::-1])["beside"]["verdict"] == "worse"
    assert beside([runs[0], runs[0]])["beside"]["verdict"] == "cannot be told apart"
    assert cli.main(["compare", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert "+50.0 points" in said and ": better" in said and "tokens trained" in said
    assert cli.main(["compare", *map(str, runs), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2


def rewrite(path, change):
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def ask_otherwise(run, what, changed):
    """The phase was asked another thing, as its record says; of an exam, its questions have another text."""
    record = read_sealed(run / "phase3/record.json")
    record["judged"][what] = "another digest"
    write_sealed(run / "phase3/record.json", record)
    if changed:
        rewrite(run / "questions/english.jsonl", lambda row: row | changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: rewrite(run / ANSWERS, lambda row: row | {"mode": "cloze"}), "mode"),
        (lambda run: rewrite(run / ANSWERS, lambda row: row | {"id": row["id"] + "x"}), "other questions"),
        (lambda run: ask_otherwise(run, "exams.english", {"question": "?"}), "40 have another text"),
        (lambda run: ask_otherwise(run, "exams.english", {"options": ["x"] * 5}), "40 have another text"),
        (lambda run: (run / ANSWERS).unlink(), "not there"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(change, words, runs, capsys):
    change(runs[1])
    found = beside(runs)
    assert found["beside"] is None and words in found["why_not"]
    assert cli.main(["compare", *map(str, runs)]) == 0
    assert words in capsys.readouterr().out


def test_one_run_or_none_finished_is_refused(runs, capsys):
    assert cli.main(["compare", str(runs[0])]) == 1
    assert "at least two" in capsys.readouterr().err
    for i in range(4):
        shutil.rmtree(runs[1] / f"phase{i}")
    assert cli.main(["compare", *map(str, runs)]) == 1
    assert f"{runs[1]} has no finished phase" in capsys.readouterr().err


def test_the_interval_alone_does_not_tell_two_apart(runs):
    """Five gained and none lost: the interval does without 0, the exact test does not reject."""
    answer_otherwise(runs[1], ANSWERS, 15)
    found = beside(runs)["beside"]
    assert found["low"] > 0 and found["p_value"] == pytest.approx(0.0625)
    assert found["verdict"] == "cannot be told apart"


def test_all_comparisons_share_the_confidence(runs, tmp_path):
    more = [*runs, *(shutil.copytree(runs[1], tmp_path / f"more{i}") for i in range(3))]
    alone, among = (compare([read_run(run) for run in some]) for some in (runs, more))
    assert alone["confidence"]["exam"] == 0.95
    assert among["confidence"]["exam"] == pytest.approx(1 - 0.05 / 4)
    narrow, wide = (one["exams"][0]["runs"][1]["beside"] for one in (alone, among))
    assert wide["low"] < narrow["low"] < narrow["points"] < narrow["high"] < wide["high"]


def lose(run, shift):
    """Rewrites what the last phase lost on each document: `shift` nats a token more."""
    path = run / "phase3/summary.json"
    summary = read_sealed(path)
    for loss in summary["after"]["watch"].values():
        tokens = [17.0, 23.0, 11.0, 40.0, 31.0, 19.0, 27.0, 32.0, 12.0, 21.0]
        loss["pieces"] = [
            [n * (4 + i % 3 + shift + 0.01 * (i % 2)), n] for i, n in enumerate(tokens)
        ]
        loss["nats"] = sum(nats for nats, _ in loss["pieces"]) / sum(tokens)
    write_sealed(path, summary)


def loss_beside(runs):
    return compare([read_run(run) for run in runs])["losses"][0]["runs"][1]


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-0.2, "better"), (0.2, "worse"), (0.0, "cannot be told apart")]
)
def test_losses_are_compared_document_by_document(shift, verdict, runs):
    """Documents differ among themselves by far more than the runs do."""
    lose(runs[0], 0.0)
    lose(runs[1], shift)
    found = loss_beside(runs)["beside"]
    assert found["verdict"] == verdict and found["nats"] == pytest.approx(shift, abs=1e-9)
    assert found["low"] <= found["nats"] <= found["high"] and found["n"] == 10


def test_a_loss_of_another_text_is_not_compared(runs):
    lose(runs[0], 0.0)
    lose(runs[1], 0.2)
    for what in read_sealed(runs[1] / "phase3/record.json")["judged"]:
        if what.startswith("watch."):
            ask_otherwise(runs[1], what, {})
    found = loss_beside(runs)
    assert found["beside"] is None and "another text" in found["why_not"]


def test_a_run_keeps_the_documents_of_its_losses(runs):
    for loss in read_run(runs[0]).chain[-1].summary["after"]["watch"].values():
        nats, tokens = zip(*loss["pieces"])
        assert sum(nats) / sum(tokens) == pytest.approx(loss["nats"], rel=1e-4)


def test_what_was_trained_otherwise_is_said(runs, capsys):
    for run, steps in zip(runs, (2, 5)):
        record = read_sealed(run / "phase2/record.json")
        record["trained"]["train.steps"] = steps
        write_sealed(run / "phase2/record.json", record)
    assert cli.main(["compare", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert "trained with phase2.train.steps 5 for 2" in said and "the same model" in said


def test_runs_are_compared_after_a_phase(runs, capsys):
    found = compare([read_run(run) for run in runs], "phase2")
    assert {run["phase"] for run in found["runs"]} == {"phase2"}
    assert [one["phase"] for one in found["costs"][0]["phases"]] == ["phase0", "phase1", "phase2"]
    assert cli.main(["compare", *map(str, runs), "--phase", "phase9"]) == 1
    assert "has not finished a phase 'phase9'; it has phase0, phase1" in capsys.readouterr().err
