"""A config is printed as one that loads, every key has its line, and who set it is told."""

import json
import pathlib

import pytest

from medkor_jax import cli
from medkor_jax.commands.config import config_file
from medkor_jax.run.config_document import document
from medkor_jax.run.config_file import load_layers, load_recipe
from medkor_jax.run.config_view import COMMAND_LINE, DEFAULT, leaves_of, schema_leaves

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
QUICKSTART, PIPELINE = str(CONFIGS / "quickstart.py"), str(CONFIGS / "pipeline.py")
RUNNABLE = sorted(
    p.name
    for p in CONFIGS.glob("*.py")
    if p.name not in ("__init__.py", "common.py", "phases.py", "public.py")
)


@pytest.mark.parametrize("path, leaf", schema_leaves().items(), ids=list(schema_leaves()))
def test_every_key_says_what_it_means(path, leaf):
    assert leaf.meaning, (
        f"config.{path}: write a text below {leaf.key.owner.__name__}.{leaf.key.name}"
    )


def test_the_page_of_all_keys_is_what_the_classes_say():
    assert (ROOT / "docs/CONFIG.md").read_text("utf-8") == document() + "\n", (
        "medkor config --markdown > docs/CONFIG.md"
    )


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("name", RUNNABLE)
def test_what_is_printed_is_a_config_that_says_the_same(name, changed, tmp_path):
    printed = tmp_path / "printed.py"
    printed.write_text(
        config_file(load_layers(str(CONFIGS / name)).config.to_dict(), name, changed=changed),
        "utf-8",
    )
    assert load_recipe(str(printed)) == load_recipe(str(CONFIGS / name))


def test_overrides_are_in_what_is_printed(tmp_path, capsys):
    assert cli.main(["config", "--config", QUICKSTART, "--config.phase3.steps=7", "--changed"]) == 0
    printed = capsys.readouterr().out
    assert "    config.phase3.steps = 7\n" in printed
    assert "attention" not in printed  # at its default
    (tmp_path / "printed.py").write_text(printed, "utf-8")
    assert load_recipe(str(tmp_path / "printed.py")) == load_recipe(
        QUICKSTART, ["--config.phase3.steps=7"]
    )
    assert cli.main(["config", "--config", QUICKSTART, "--config.phase3.steps=7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["phase3"]["steps"] == 7


def explain(capsys, *arguments):
    assert cli.main(["config", *arguments, "--json"]) == 0
    return {found["key"]: found for found in json.loads(capsys.readouterr().out)}


def test_who_set_a_key_is_told(capsys):
    asked = [
        "--explain",
        "phase3.steps",
        "--explain",
        "config.phase3.batch_size",
        "--explain",
        "phase3.clip_norm",
    ]
    found = explain(capsys, "--config", QUICKSTART, "--config.phase3.steps=16", *asked)
    steps, rows, clip = found.values()
    assert (steps["value"], steps["default"], steps["set_by"]) == (
        16,
        0,
        COMMAND_LINE,
    )  # although the file says the same
    assert (rows["value"], rows["default"]) == (4, 16) and rows["set_by"].startswith(QUICKSTART)
    assert (clip["value"], clip["default"], clip["set_by"], clip["bounds"]) == (
        1.0,
        1.0,
        DEFAULT,
        ["> 0"],
    )
    assert "global batch" in rows["meaning"]


def test_a_key_is_explained_in_words(capsys):
    assert cli.main(["config", "--config", QUICKSTART, "--explain", "phase3.batch_size"]) == 0
    key, words, facts = capsys.readouterr().out.splitlines()
    assert key == "config.phase3.batch_size = 4" and words.startswith(
        "    Rows of the global batch"
    )
    assert facts == f"    int, >= 1; default 16; set by {QUICKSTART} or what it imports"


def test_a_part_and_a_pattern_are_explained_key_by_key(capsys):
    gate = explain(capsys, "--config", PIPELINE, "--explain", "phase3.gate")
    assert {"phase3.gate.threshold", "phase3.gate.requires.korean-loss.rise_nats"} <= set(gate)
    assert all(key.startswith("phase3.gate.") for key in gate)
    lengths = explain(capsys, "--config", QUICKSTART, "--explain", "*.seq_len")
    assert {"phase0.seq_len", "phase3.remedy.seq_len"} <= set(lengths) and all(
        k.endswith(".seq_len") for k in lengths
    )


def test_without_a_config_the_classes_answer(capsys):
    (steps,) = explain(capsys, "--explain", "phase3.steps").values()
    assert steps["key"] == "PHASE.steps" and steps["default"] == 0 and "value" not in steps
    (weight,) = explain(capsys, "--explain", "phase3.data.korean-text.weight").values()
    assert weight["default"] == 1.0 and "drawn from this source" in weight["meaning"]
    (rank,) = explain(capsys, "--explain", "phase0.lora.rank").values()
    assert rank["default"] == 0  # a phase adds no adapter unless it says so, whatever the class has


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["--config", QUICKSTART, "--explain", "phase3.gate.treshold"],
            "config.phase3.gate.treshold is not a key; nearest: 'phase3.gate.threshold'",
        ),
        (
            ["--explain", "phase3.groups.lora"],
            "config.phase3.groups.lora is not a key; groups is rules now",
        ),
        (["--explain", "phase3.btch_size"], "nearest: 'phase3.batch_size'"),
        (["--config", QUICKSTART, "--explain", "fase3"], "nearest: 'phase3'"),
        ([], "give --config FILE"),
        (
            ["--config", QUICKSTART, "--config.phase3.stepz=3"],
            "config.phase3.stepz is not a key; nearest: 'steps'",
        ),
    ],
)
def test_what_is_not_there_is_bad_usage_with_the_nearest(arguments, words, capsys):
    assert cli.main(["config", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_two_configs_are_compared_key_by_key(capsys):
    assert cli.main(["config", "--diff", PIPELINE, QUICKSTART]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"--- {PIPELINE}", f"+++ {QUICKSTART}"]
    assert (
        "config.phase0.steps: 2000 -> 16" in lines
        and 'config.weights: "google/medgemma-4b-it" -> "embedded"' in lines
    )
    assert (
        'config.phase3.data.korean-text.path: "ChuGyouk/medical-o1-reasoning-SFT-Ko" -> -' in lines
    )
    assert cli.main(["config", "--diff", PIPELINE, PIPELINE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_every_key_of_a_shipped_config_has_a_place_in_the_page():
    for name in RUNNABLE:
        keys = {
            (leaf.key.owner, leaf.key.name)
            for leaf in leaves_of(load_layers(str(CONFIGS / name))).values()
        }
        assert keys <= {(leaf.key.owner, leaf.key.name) for leaf in schema_leaves().values()} | {
            (o, n) for o, n in keys if n == "name"
        }
