"""`medkor run --dry-run`: what would happen and what can be checked, with nothing fetched, trained or written."""

import types

import pytest

from medkor_jax import cli
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import uses_of

from .standins import standins

PIPELINE = "configs/pipeline.py"
RECIPE = load_recipe(PIPELINE)
# The share that is held out is larger than in the config, since the stand-ins are small; so are the exams, whose gates only record.
SMALL = [
    f"--config.{key}.held_share=0.3"
    for key in (
        "held_out.english",
        "held_out.korean",
        *(
            f"{phase.name}.{of}data.{source.name}"
            for phase in RECIPE.phases
            for of, stage in (("", phase.train), ("remedy.", phase.remedy))
            for source in stage.data
            if source.part
        ),
    )
]
# The facts of one relation are told alike, and so are the stand-ins' documents.
ALIKE = "--config.allow_leaks=('english-text ~ english-choice','english-text ~ english','medqa-train ~ english')"
RECORD_ONLY = [
    ALIKE,
    *(f"--config.{phase.name}.gate.on_failure=continue" for phase in RECIPE.phases),
]


def dry_run(directory, *overrides, config=PIPELINE):
    arguments = ["run", "--dry-run", "--config", str(config), f"--config.run_dir={directory}/run"]
    return cli.main([*arguments, *overrides])


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """As on a machine without one: everything that would be asked fails at once, and nothing is cached."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def pipeline(standin_root, request):
    return request.config.rootpath / PIPELINE


def test_without_network_it_says_what_it_would_fetch_and_could_not_check(
    no_network, tmp_path, capsys
):
    assert dry_run(tmp_path) == 0
    said = capsys.readouterr().out
    for use in uses_of(RECIPE):
        source = use.source
        assert f"data set {source.path}: " in said and f"{source.name} (" in said
        assert f"licence: {source.licence}" in said
    for name in RECIPE.outside_weights:
        assert f"model {name}: " in said
        assert f"gated: accept its terms at https://huggingface.co/{name}" in said
    assert "NOT KNOWN: the hub could not be reached: of 10 of these" in said
    for phase in RECIPE.phases:
        assert f"  {phase.name}: {phase.title}; from " in said
    assert "trains lora: 2000 steps of 16 x 1024 tokens, 32.8M at most" in said
    assert "google/medgemma-4b-it has 3.88B parameters, 7.8 GB in bfloat16; the run writes" in said
    assert "NOT CHECKED: english (GBaker/MedQA-USMLE-4-options) is not here yet" in said
    assert "the model is for non-commercial use" in said
    assert "?      NOT CHECKED: columns, rows and languages of english-text" in said
    assert "nothing found that would stop this run" in said
    assert not (tmp_path / "run").exists()
    for name, split in (("english-choice", "dev"), ("english-exam-train", "train")):
        by = "by google/medgemma-4b-it, as it is before any training; how many questions is not known"
        assert f"{name}: sean0042/KorMedMCQA doctor {split} into English {by}" in said
    assert (
        "NOT CHECKED: whether the translations of english-exam-train, english-choice pass" in said
    )
    assert (
        "model google/medgemma-4b-it: what the run starts from, translates english-exam-train and english-choice"
        in said
    )
    assert (
        "model google/medgemma-27b-text-it: a candidate of phase1, which a run opens only if phase0 does not pass"
        in said
    )


def test_a_translator_is_one_of_the_models_to_be_fetched(no_network, tmp_path, capsys):
    named = "--config.exams.english-choice.source.translator=google/translategemma-4b-it"
    assert dry_run(tmp_path, named) == 0
    said = capsys.readouterr().out
    assert "model google/translategemma-4b-it: translates english-choice" in said
    assert "gated: accept its terms at https://huggingface.co/google/translategemma-4b-it" in said
    assert "before all phases: english-choice translated by google/translategemma-4b-it" in said
    assert "before all phases: english-exam-train translated by google/medgemma-4b-it" in said


def test_what_is_here_is_checked_as_a_run_would(hub, no_network, pipeline, tmp_path, capsys):
    assert dry_run(tmp_path, *SMALL, *RECORD_ONLY, config=pipeline) == 0
    said = " ".join(capsys.readouterr().out.split())
    n = len(standins()["sean0042/KorMedMCQA"].rows["doctor", "train"])
    assert f"korean-exam-train (sean0042/KorMedMCQA): {n} documents; CC BY-NC 2.0" in said
    assert "exam korean, judged" in said and "text korean, judged" in said
    assert "leaks ok holds" in said
    assert "96 questions; an equal model opens it" in said
    assert "at most 96 questions; an equal model opens it" in said  # dev, not translated yet
    assert "english-choice: sean0042/KorMedMCQA doctor dev into English by " in said
    assert "as it is before any training: 96 questions, " in said
    assert "lengths ? NOT CHECKED: google/medgemma-4b-it is not here" in said

    assert (
        dry_run(tmp_path, *SMALL, ALIKE, config=pipeline) == 1
    )  # gates of 96 questions that decide
    said = capsys.readouterr().out
    assert "FAILS  phase2, probability on 'english'" in said and "1 of " in said

    wrong = "--config.phase5c_reasoning.data.korean-solutions.rationale=('thinkings',)"
    assert dry_run(tmp_path, *SMALL, *RECORD_ONLY, wrong, config=pipeline) == 1
    assert "no column 'thinkings' (nearest: 'thinking')" in capsys.readouterr().out

    assert dry_run(tmp_path, *SMALL[:2], *RECORD_ONLY, config=pipeline) == 1
    said = capsys.readouterr().out
    assert "parts " in said and "cut otherwise (held_share 0.0" in said
    assert not (tmp_path / "run").exists()


def test_a_closed_gate_of_the_hub_and_a_lost_name_are_trouble(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    from tests.io.test_hf import hub_error

    def info(self, repository, **_):
        if repository == "Moo/korean-parallel-corpora":
            raise hub_error("RepositoryNotFoundError")
        gated = "manual" if repository.startswith("google/") else False
        return types.SimpleNamespace(sha="abcdef", card_data=None, gated=gated, siblings=[])

    def auth_check(self, repository, **_):
        if repository == "google/medgemma-27b-text-it":
            raise hub_error("GatedRepoError")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", auth_check)
    assert dry_run(tmp_path) == 1
    said = capsys.readouterr().out
    assert "FAILS  the hub has no Moo/korean-parallel-corpora" in said
    assert (
        "FAILS  the hub refused google/medgemma-27b-text-it: its licence gate is closed to you"
        in said
    )
    assert "2 of " in said and "checks fail" in said


def test_a_file_that_is_not_there_is_trouble_and_needs_no_network(no_network, tmp_path, capsys):
    own = "--config.phase0.data.english-text.path=data/english.jsonl"
    assert dry_run(tmp_path, own) == 1
    assert (
        "no such file. Expected 'embedded', a file, a directory or a hub id"
        in capsys.readouterr().out
    )


def test_the_standins_have_what_the_pipeline_names():
    assert {use.source.path for use in uses_of(RECIPE)} <= set(standins())


def test_what_is_pinned_beside_the_run_is_what_it_would_take(no_network, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/data-lock.json").write_text(
        '{"format": 1, "datasets": {"sean0042/KorMedMCQA": "0123456789abcdef"}, "models": {}}'
    )
    assert dry_run(tmp_path) == 0
    assert "revision 0123456789ab, not here yet" in capsys.readouterr().out
    (tmp_path / "run/data-lock.json").write_text("{}")
    assert dry_run(tmp_path) == 1
    assert "data-lock.json cannot be read" in capsys.readouterr().err
