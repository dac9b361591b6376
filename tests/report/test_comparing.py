"""Runs side by side: what can be told, and what is not compared."""

import json
import pathlib
import shutil

import pytest

from medkor_jax import cli
from medkor_jax.eval import stats
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
    low, high = stats.paired_difference(counts)
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: rewrite(run / ANSWERS, lambda row: row | {"mode": "cloze"}), "mode"),
        (lambda run: rewrite(run / ANSWERS, lambda row: row | {"id": row["id"] + "x"}), "other questions"),
        (lambda run: rewrite(run / "questions/english.jsonl", lambda row: row | {"question": "?"}), "other questions"),
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
