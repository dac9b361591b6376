"""A finished run with one file damaged, missing or of another kind: it goes on to the same result, or one sentence names the file."""

import json
import pathlib
import shutil

import pytest

from medkor_jax.eval.verdict import GateClosed
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe

from .test_pipeline import PHASES, make_config

DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\x00" + path.read_bytes()[3:]),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("7"),
    "null": lambda path: path.write_text("null"),
    "an empty object": lambda path: path.write_text("{}"),
    "of texts": lambda path: path.write_text('["x", "y"]'),
    "missing": lambda path: path.unlink(),
}
TOLD = (ValueError, OSError, RuntimeError)  # what becomes one sentence in cli, once it is in words
IN_TRAINING = (
    "stage.json",
    "metrics.jsonl",
)  # of stages that have ended: nothing reads them any more


def files_of(run_dir):
    """Returns every JSON file of a run, by its place in it."""
    found = (*run_dir.rglob("*.json"), *run_dir.rglob("*.jsonl"))
    kept = [path.relative_to(run_dir) for path in found if "/d/" not in str(path)]
    orbax = ("checkpoints", "adapters", "tree")
    alike = ("phase1", "phase2")  # as phase0 and phase3, which one stands on, and none
    return sorted(
        str(path)
        for path in kept
        if not set(orbax) & set(path.parts) and path.parts[0] not in alike
    )


def outcome(run_dir):
    """Returns each phase's model and scores."""
    verdicts = [json.loads((run_dir / name / "verdict.json").read_text()) for name in PHASES]
    return [(verdict["digests"]["weights"], verdict["report"]) for verdict in verdicts]


@pytest.fixture
def run_dir(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_or_made_again(damage, finished, run_dir, tiny_base_dir, capsys):
    recipe = make_recipe(make_config(run_dir, tiny_base_dir))
    wanted, faults = outcome(finished), []
    for file in files_of(finished):
        DAMAGES[damage](run_dir / file)
        try:
            pipeline.Run(recipe).all()
        except Exception as error:
            is_told = isinstance(error, (*TOLD, GateClosed)) and pathlib.Path(file).name in str(
                error
            )
            if not is_told:
                faults.append((file, repr(error)))
        else:
            if outcome(run_dir) != wanted:
                faults.append((file, "another result"))
        shutil.rmtree(run_dir)
        shutil.copytree(finished, run_dir)
    assert faults == []
    capsys.readouterr()
