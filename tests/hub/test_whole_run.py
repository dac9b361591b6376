"""`medkor run --config configs/pipeline.py` on the stand-ins: phases 0 to 5 to the end, English exam translated on the way."""

import dataclasses
import json

import pytest

from medkor_jax import cli
from medkor_jax.eval.report import Report
from medkor_jax.eval.verdict import read_verdict
from medkor_jax.io.bases import save_base
from medkor_jax.io.models import open_model
from medkor_jax.run import pipeline as running
from medkor_jax.train.rewards import Earned, Reward
from tests.run.test_translated import ENGLISH, KOREAN, Translator

from .standins import standins
from .test_dry_run import ALIKE, RECIPE, SMALL

NAMES = [phase.name for phase in RECIPE.phases]


def overrides(directory, weights):
    """The config as it is, cut to a tiny model: few steps, short rows, gates that record, no large candidate."""
    said = {
        "run_dir": directory / "run",
        "weights": weights,
        "dtype": "float32",
        "param_dtype": "float32",
        "remat": "none",
        "held_out_tokens": 256,
        "max_translation_tokens": 8,
        "exams.korean-reasoned.max_new_tokens": 8,
        "final.korean-final-harness.source.limit": 4,
        "phase1.candidates": ("phase0",),
        "phase5d_exam.reward.rollout.max_new_tokens": 8,
        "phase5d_exam.reward.rollout.group_size": 4,
        "phase5d_exam.reward.rollout.max_refills": 0,
        "phase4b_translation.translations.held-out-pairs.limit": 4,
        "phase5b_translation.translations.held-out-pairs.limit": 4,
    }
    for phase in RECIPE.phases:
        said[f"{phase.name}.gate.on_failure"] = "continue"
        for of, stage in (("", phase.train), ("remedy.", phase.remedy)):
            if stage.steps:
                short = {"steps": 1, "batch_size": 4, "seq_len": 512, "warmup_steps": 1}
                said |= {f"{phase.name}.{of}{key}": value for key, value in short.items()}
    said["phase5d_exam.batch_size"] = 8
    return [*SMALL, ALIKE, *(f"--config.{key}={value!s}" for key, value in said.items())]


def by_length(self, text, question, **_):
    """What a random model's answers earn: they never end, and are never right."""
    earned = {"answer": sum(map(ord, text)) % 97 / 96, "letter": 0.0, "format": 0.0, "length": 0.0}
    return Earned(earned, False, False, False)


@pytest.fixture
def weights(make_base, tiny_base_dir, tmp_path):
    """The tiny model with room for the 1,024 tokens that the harness lets it write."""
    model = open_model(tiny_base_dir)
    config = dataclasses.replace(model.config, max_positions=2048)
    made_by = {"made_by": "tests"}
    save_base(tmp_path / "base", make_base(config), config, model.tokenizer, made_by)
    return tmp_path / "base"


@pytest.mark.slow
def test_all_phases_of_the_pipeline_run_to_the_end(
    hub, weights, tmp_path, monkeypatch, request, capsys
):
    config = str(request.config.rootpath / "configs/pipeline.py")
    true, loaded = running.Run._translator, []

    def translator(self, name):
        loaded.append(name)
        return Translator(true(self, name), [KOREAN["valid"][0].question])

    monkeypatch.setattr(running.Run, "_translator", translator)
    monkeypatch.setattr(Reward, "score", by_length)
    arguments = ["run", "--config", config, *overrides(tmp_path, weights)]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    run, rows = tmp_path / "run", standins()["sean0042/KorMedMCQA"].rows
    for name in NAMES:
        verdict = read_verdict(run / name / "verdict.json")
        assert verdict["phase"] == name and open_model(run / name).digest
    assert loaded == [str(weights)]

    n_dev, n_train = len(rows["doctor", "dev"]), len(rows["doctor", "train"])
    assert f"english-choice: sean0042/KorMedMCQA doctor dev into English by {weights}" in said
    assert f"at most {n_dev} questions; " in said
    report = json.loads((run / "translated/english-choice.json").read_text())
    failed = n_dev - report["n_passed"]
    assert report["n_questions"] == n_dev and 0 < failed < 10
    asked = Report.read(next((run / "phase0/answers").glob("english-choice-before.jsonl")))
    assert len(asked.answers) == n_dev - failed and {a.language for a in asked.answers} == {"en"}
    texts = [
        json.loads(line)["question"]
        for line in (run / "translated/english-exam-train.jsonl").open()
    ]
    assert len(texts) == n_train and set(texts) <= {q.question for q in ENGLISH["train"]}
    assert f"translated exam, english-choice: {n_dev - failed} of {n_dev} questions" in said
    assert "final exam korean-final" in said

    before = sorted(run.rglob("*"))
    assert cli.main(arguments) == 0 and sorted(run.rglob("*")) == before and len(loaded) == 1
