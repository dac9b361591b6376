"""A run that an earlier version of this program finished, and one that it was stopped in, still do all they should.

`kept_run_format1.tar.xz` was made at cf33e1b (26 November 2026) from `tests/parallel/tiny_phases.py` on the tiny base of
`tests/conftest.py`, all seven phases: `run` finished; `stopped` holds what replaces it where phase5c was sent SIGTERM at step 2 of 3.
Never make it again: what it holds is what users have on disk.
"""

import json
import pathlib
import shutil
import tarfile

import jax
import numpy as np
import pytest

from medkor_jax.commands.eval import evaluate_file
from medkor_jax.io.export import export_hf
from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.named_model import open_model

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parent / "parallel" / "tiny_phases.py"


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("kept")
    with tarfile.open(HERE / "kept_run_format1.tar.xz") as archive:
        archive.extractall(
            directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    return directory


@pytest.fixture
def recipe_of(kept, monkeypatch):
    def recipe_of(run_dir, *overrides):
        monkeypatch.setenv("WEIGHTS", str(kept / "base"))
        monkeypatch.setenv("RUN_DIR", str(run_dir))
        return load_recipe(str(CONFIG), list(overrides))

    return recipe_of


def test_it_is_opened_and_answers_as_it_did(kept):
    model = open_model(str(kept / "run"))
    assert model.name.endswith("phase5d")
    report = evaluate_file(
        str(kept / "run"), "embedded", language="en", split="valid", limit=20, mode="letter"
    )
    stored = (kept / "run" / "phase5d" / "answers" / "english-after.jsonl").read_text(
        encoding="utf-8"
    )
    report.write(kept / "again.jsonl")
    letters = [
        [row["predicted"] for row in map(json.loads, text.splitlines()) if "predicted" in row]
        for text in (stored, (kept / "again.jsonl").read_text())
    ]
    assert len(letters[0]) == 20 and letters[0] == letters[1]


def test_the_same_command_finds_it_done(kept, tmp_path, recipe_of, monkeypatch, capsys):
    shutil.copytree(kept / "run", tmp_path / "run")
    monkeypatch.setattr(
        pipeline, "run_stage", lambda *_: pytest.fail("a finished phase is trained again")
    )
    pipeline.Run(recipe_of(tmp_path / "run")).all()
    said = capsys.readouterr().out
    assert said.count("done before") == 7 and "judged again" not in said


def test_a_stage_that_was_stopped_is_gone_on_with(kept, tmp_path, recipe_of, capsys):
    run = tmp_path / "run"
    shutil.copytree(kept / "run", run)
    for phase in ("phase5c", "phase5d"):
        shutil.rmtree(run / phase)
    shutil.copytree(kept / "stopped", run, dirs_exist_ok=True)
    phases = ("phase0", "phase1", "phase2", "phase3", "phase4b", "phase5c")
    pipeline.Run(recipe_of(run, f"--config.run={phases}")).all()
    assert "phase5c/train: 1 steps" in capsys.readouterr().out
    mesh = make_mesh(MeshShape())
    ours, theirs = (
        open_model(str(directory / "phase5c")).load(np.float32, mesh)
        for directory in (run, kept / "run")
    )
    for name in ("lora", "lang", "expand"):
        _assert_close(getattr(ours, name), getattr(theirs, name))


def test_it_is_exported(kept, tmp_path):
    assert export_hf(open_model(str(kept / "run")), tmp_path / "hf").text()
    assert (tmp_path / "hf" / "model.safetensors").is_file()


def _assert_close(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, atol=2e-5)
