"""Commands, their exit codes, and what they print."""

import csv
import json
import pathlib

import pytest

from medkor_jax import cli, pipeline
from medkor_jax.data import embedded
from medkor_jax.eval.verdict import GateClosed

QUICKSTART = str(pathlib.Path(__file__).parents[1] / "configs/quickstart.py")


@pytest.fixture
def exam(tmp_path):
    path = tmp_path / "exam.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", *"ABCDE", "answer"])
        writer.writerows([q.question, *q.options, q.answer + 1] for q in embedded.questions("valid", "en")[:6])
    return path


def test_eval_writes_a_line_a_question_and_a_summary(tiny_base_dir, exam, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert cli.main(["eval", "--weights", str(tiny_base_dir), "--exam", str(exam), "--out", str(out), "--json"]) == 0
    answers = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 6
    assert [a["key"] for a in answers] == ["ABCDE"[q.answer] for q in embedded.questions("valid", "en")[:6]]
    assert len({a["id"] for a in answers}) == 6
    assert all(a["correct"] == (a["predicted"] == a["key"]) and a["text"] == a["predicted"] for a in answers)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    overall = summary["scores"][0]
    assert (overall["n"], overall["correct"]) == (6, sum(a["correct"] for a in answers))


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["run", "--config", QUICKSTART, "--config.phase3.stepz=1"], 2, "stepz"),
        (["run", "--config", "nowhere/quickstart.py"], 2, "no config file"),
        (["eval", "--weights", "embedded", "--exam", "exam.csv", "--shotz=3"], 2, "not understood: --shotz=3"),
        (["eval", "--weights", "embedded", "--exam", "embedded", "--language", "en", "--shots", "3"], 1, "no few-shot file is named"),
        (["bench", "--cases", "txet"], 1, "'txet' is none of"),
        (["bench", "--repeats", "0"], 1, "repeats is 0"),
        (["verify", "--weights", "random:tiny"], 1, "exists only here"),
        (["waive", "nowhere/verdict.json", "--reason", "x"], 3, "does not exist"),
    ],
)
def test_a_failure_is_one_sentence_and_its_code(arguments, code, words, capsys):
    if arguments[0] == "verify":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("medkor: ") and words in error and "Traceback" not in error


def test_no_command_is_bad_usage():
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2


def test_a_closed_gate_has_a_code_of_its_own(monkeypatch, capsys):
    def closed(self):
        raise GateClosed("phase2: 3 of 40")

    monkeypatch.setattr(pipeline.Run, "all", closed)
    assert cli.main(["run", "--config", QUICKSTART]) == 3
    assert capsys.readouterr().err == "medkor: phase2: 3 of 40\n"


def test_data_check_prints_a_table_and_fails_on_a_leak(tiny_base_dir, capsys):
    check = ["data", "check", "--config", QUICKSTART, f"--config.weights={tiny_base_dir}"]
    assert cli.main(check) == 0
    table = capsys.readouterr().out
    assert "english" in table and "Apache-2.0" in table and table.rstrip().endswith("clean")
    assert cli.main([*check, "--config.watch.english.subset=train"]) == 1
    table = capsys.readouterr().out
    assert "LEAK: en-text-train:" in table and "NOT clean" in table
