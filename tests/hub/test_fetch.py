"""`medkor data fetch`: what a config takes from the hub is listed, brought and pinned; what fails is named, the rest goes on."""

import json
import types

import pytest

from medkor_jax import cli
from medkor_jax.data.rows import Source
from medkor_jax.io import download
from medkor_jax.run.at_hand import is_here
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import uses_of
from medkor_jax.run.data_lock import read_lock, with_lock

from .standins import standins

PIPELINE = "configs/pipeline.py"


@pytest.fixture
def asked(standin_root, tmp_path_factory, monkeypatch):
    """The hub's libraries, answering from the stand-ins: what they were asked for, as (call, id, revision)."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(download, "_pinned", {})
    asked, load = [], datasets.load_dataset

    def info(self, repository, revision=None, **_):
        asked.append(("info", repository, revision))
        card = types.SimpleNamespace(to_dict=lambda: {"license": "a licence"})
        file = types.SimpleNamespace(rfilename="model.safetensors", size=10**6)
        gated = "manual" if repository.startswith("google/") else False
        sha = revision or f"commit-of-{repository}"
        return types.SimpleNamespace(sha=sha, card_data=card, gated=gated, siblings=[file])

    def load_dataset(path, subset=None, *, split, revision=None):
        asked.append(("load", path, revision))
        return load(str(standin_root / path), subset, split=split)

    def snapshot(repository, *, revision=None, **_):
        asked.append(("model", repository, revision))
        return f"/somewhere/{repository}"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("medkor_jax.run.hub_named.is_here", lambda source: False)
    return asked


# The share that is held out is larger than in the config: the stand-ins are small.
LARGER = [f"--config.{key}.held_share=0.3" for key in ("held_out.english", "held_out.korean")]


def fetch(directory, *arguments):
    return cli.main(
        [
            "data",
            "fetch",
            "--config",
            PIPELINE,
            f"--config.run_dir={directory}",
            *LARGER,
            *arguments,
        ]
    )


def test_everything_is_listed_fetched_read_and_pinned(asked, tmp_path, capsys):
    assert fetch(tmp_path, "--list") == 0 and {call for call, *_ in asked} == {"info"}
    listed = capsys.readouterr().out
    assert (
        "data set sean0042/KorMedMCQA: english-exam-train (doctor train), korean-exam-train (doctor train), "
        "english-choice (doctor dev), korean (doctor dev)" in listed
    )
    assert "licence: CC BY-NC 2.0; the hub's card says a licence" in listed
    assert (
        "gated: accept its terms at https://huggingface.co/google/medgemma-27b-text-it, then set HF_TOKEN"
        in listed
    )
    assert "revision commit-of-se" in listed and not (tmp_path / "data-lock.json").exists()

    assert fetch(tmp_path) == 0
    n = len(standins()["sean0042/KorMedMCQA"].rows["doctor", "train"])
    said = capsys.readouterr().out
    assert f"sean0042/KorMedMCQA: doctor train {n} rows; doctor dev 96 rows" in said
    lock = read_lock(tmp_path)
    recipe = load_recipe(PIPELINE, [f"--config.run_dir={tmp_path}"])
    assert set(lock.datasets) == {use.source.path for use in uses_of(recipe)}
    assert set(lock.models) == {"google/medgemma-4b-it", "google/medgemma-27b-text-it"}
    assert all(revision == f"commit-of-{name}" for name, revision in lock.datasets.items())
    pinned = {use.source.path: use.source.revision for use in uses_of(with_lock(recipe))}
    assert pinned == dict(lock.datasets)

    # The hub has moved on; what is pinned stays, unless the newest is asked for.
    (tmp_path / "data-lock.json").write_text(
        json.dumps(
            {
                "format": 1,
                "datasets": dict.fromkeys(lock.datasets, "old"),
                "models": dict.fromkeys(lock.models, "old"),
            }
        )
    )
    asked.clear()
    assert fetch(tmp_path) == 0
    assert {revision for _, _, revision in asked} == {"old"}
    assert fetch(tmp_path, "--newest") == 0 and read_lock(tmp_path) == lock


def test_one_that_fails_is_named_and_the_others_are_fetched(asked, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    from tests.io.test_hf import hub_error

    def auth_check(self, repository, **_):
        if repository == "sean0042/KorMedMCQA":
            raise hub_error("GatedRepoError")

    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", auth_check)
    wrong = "--config.phase4b_translation.data.general-pairs.fields=('english','Korean')"
    assert fetch(tmp_path, wrong, "--skip", "google/medgemma-27b-text-it") == 1
    said = capsys.readouterr().out
    assert (
        "sean0042/KorMedMCQA: FAILED: the hub refused sean0042/KorMedMCQA: its licence gate is closed to you; accept its licence at https://huggingface.co/datasets/sean0042/KorMedMCQA"
        in said
    )
    assert "no column 'Korean' (nearest: 'korean'); the columns are" in said
    assert "7 of 9 are here; not: " in said
    lock = read_lock(tmp_path)
    assert len(lock.datasets) == 6 and set(lock.models) == {"google/medgemma-4b-it"}
    assert fetch(tmp_path, "--skip", "google/medgemma") == 2
    assert "the config names only" in capsys.readouterr().err


def test_without_network_each_is_named_in_a_sentence(tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert fetch(tmp_path, "--list") == 1
    said = capsys.readouterr().out
    assert "NOT KNOWN: the hub could not be reached: of 10 of these" in said
    assert "gated: accept its terms at https://huggingface.co/google/medgemma-4b-it" in said
    assert fetch(tmp_path) == 1
    said = capsys.readouterr().out
    recipe = load_recipe(PIPELINE)
    for name in {use.source.path for use in uses_of(recipe)} | set(recipe.outside_weights) - {
        "phase0"
    }:
        assert f"{name}: FAILED: the hub could not be reached for {name}" in said
    assert "0 of 10 are here" in said and not (tmp_path / "data-lock.json").exists()


def test_what_is_read_is_what_is_pinned(standin_root, tmp_path, monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **named: asked.append(named) or [])
    (tmp_path / "data-lock.json").write_text(
        json.dumps(
            {"format": 1, "datasets": {"sean0042/KorMedMCQA": "abc"}, "models": {"a/b": "def"}}
        )
    )
    monkeypatch.setattr(download, "_pinned", {})
    recipe = with_lock(load_recipe(PIPELINE, [f"--config.run_dir={tmp_path}"]))
    assert recipe.exam("korean").source.revision == "abc" and download._pinned == {"a/b": "def"}
    assert recipe.exam("korean-final-harness").fewshot.revision == "abc"
    assert recipe.exam("english").source.revision == ""
    assert is_here(recipe.exam("korean").source) and asked[-1]["revision"] == "abc"
    assert with_lock(recipe) == recipe
    own = Source("s", "exam", "sean0042/KorMedMCQA", revision="mine")
    from medkor_jax.run.data_lock import _pinned

    assert _pinned(own, {"sean0042/KorMedMCQA": "abc"}) == own
    (tmp_path / "data-lock.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"data-lock.json cannot be read .*; put it back, or delete it"
    ):
        with_lock(recipe)
