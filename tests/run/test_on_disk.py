"""What `medkor runs`, `show` and `gc` say of runs on disk, and what each phase keeps of how it was made."""

import dataclasses
import json
import os
import pathlib
import platform
import shutil

import jax
import pytest

from medkor_jax import cli
from medkor_jax.bar import in_words
from medkor_jax.commands.tables import in_bytes
from medkor_jax.eval.verdict import read_verdict
from medkor_jax.io.files import write_json, write_sealed
from medkor_jax.run import pipeline
from medkor_jax.run.board import scalars
from medkor_jax.run.config_file import load_recipe, make_recipe
from medkor_jax.run.defaults import plain
from medkor_jax.run.on_disk import disposable, find_runs, look_at, remove_unfinished
from medkor_jax.run.pace import heading, pace_before
from medkor_jax.run.provenance import note_start, read_provenance
from medkor_jax.run.restart import restart

from .test_pipeline import PHASES, make_config, stages  # noqa: F401


@pytest.fixture
def run_dir(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished, tmp_path / "runs/one"))


def test_a_phase_keeps_what_defends_its_numbers(finished, tiny_base_dir, tmp_path):
    for name in PHASES:
        found = read_provenance(finished / name)
        assert found["run"] == list(PHASES)
        (start,) = found["starts"]
        assert start["packages"]["jax"] == jax.__version__
        assert start["python"] == platform.python_version() and start["processes"] == 1
        assert start["seed"] == 0 and start["mesh"]["data"] == jax.device_count()
        assert len(start["code"]) == 64 and start["git"]["commit"]
    # The config is a file that runs the same again.
    (tmp_path / "again.py").write_text(found["config"])
    kept = load_recipe(str(tmp_path / "again.py"))
    ran = make_recipe(make_config(finished, tiny_base_dir) | {"style": kept.style})
    assert plain(kept) == plain(ran)  # a config file has its rules by name, in no order


def test_a_start_with_another_config_keeps_both(tiny_base_dir, tmp_path):
    first, second = (
        make_recipe(make_config(tmp_path, tiny_base_dir) | {"seed": seed}) for seed in (1, 2)
    )
    for recipe in (first, first, second):
        note_start(tmp_path / "phase0", recipe)
    found = read_provenance(tmp_path / "phase0")
    assert "config.seed = 2" in found["config"]
    kept = [start.get("config", "") for start in found["starts"]]
    assert [("config.seed = 1" in text, bool(text)) for text in kept] == [
        (False, False),
        (True, True),
        (False, False),
    ]


def test_environment_variables_are_not_kept(tiny_base_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_of_mine")
    note_start(tmp_path / "phase0", make_recipe(make_config(tmp_path, tiny_base_dir)))
    assert "hf_a_secret" not in (tmp_path / "phase0/provenance.json").read_text()


def close(directory):
    verdict = read_verdict(directory / "verdict.json")
    gate = verdict["gate"] | {"on_failure": "stop"}
    write_sealed(directory / "verdict.json", verdict | {"waiver": None, "gate": gate})


def under_way(directory):
    for name in ("verdict.json", "record.json", "summary.json"):
        (directory / name).unlink()


def stop(run_dir):
    under_way(run_dir / "phase3")
    long_ago = 1_700_000_000
    for path in run_dir.rglob("*"):
        os.utime(path, (long_ago, long_ago))


STATES = {
    "finished": (lambda run: None, "phase3", "recorded"),
    "closed": (lambda run: close(run / "phase3"), "phase3", "closed"),
    "stopped": (stop, "phase3", "under way"),
    "damaged": (lambda run: (run / "phase1/verdict.json").write_text("{"), "phase1", "damaged"),
    "empty": (
        lambda run: [shutil.rmtree(run / name) for name in PHASES] and write_json(run / "ledger.json", []),
        None,
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_what_a_run_is_at(state, run_dir):
    change, phase, of_phase = STATES[state]
    change(run_dir)
    (run,) = find_runs(run_dir.parent)
    assert run.state == state and run == look_at(run_dir)
    assert {one.name: one.state for one in run.phases}.get(phase) == of_phase
    if phase:
        assert run.planned == PHASES
    if of_phase == "under way":
        assert run.phases[-1].said == "train: step 2 of 2"


def test_runs_and_show_say_it(run_dir, capsys):
    close(run_dir / "phase3")
    assert cli.main(["runs", str(run_dir.parent)]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "run" and line.startswith("one ")
    assert "closed" in line and "phase3 (4 of 4)" in line
    assert cli.main(["show", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{run_dir}: closed, ") and "The gate stays closed" in said
    assert f"jax {jax.__version__}" in said and "commit " in said
    shutil.rmtree(run_dir / "phase3")
    assert cli.main(["show", str(run_dir)]) == 0
    assert "phase3  not begun" in capsys.readouterr().out
    assert cli.main(["runs", str(run_dir.parent), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert [phase["state"] for phase in one["phases"]] == ["recorded"] * 3


@pytest.mark.parametrize("verb", ["show", "gc"])
def test_what_is_no_run_is_said(verb, tmp_path, capsys):
    assert cli.main([verb, str(tmp_path)]) == 1
    assert f"{tmp_path} is no run" in capsys.readouterr().err
    assert cli.main(["runs", str(tmp_path / "none")]) == 1
    assert "is no directory" in capsys.readouterr().err


def test_what_can_go_changes_nothing(run_dir, tiny_base_dir, stages, capsys):  # noqa: F811
    config = make_recipe(make_config(run_dir, tiny_base_dir))
    restart(config, ["phase3"])
    pipeline.Run(config).all()
    (run_dir / "phase2/.verdict.json.123.tmp").write_text("half")
    stop_clock = 1_700_000_000
    os.utime(run_dir / "phase2/.verdict.json.123.tmp", (stop_clock, stop_clock))
    shutil.copytree(next((run_dir / "bases").iterdir()), run_dir / "bases/of-another")
    listed = {str(one.path.relative_to(run_dir)) for one in disposable(run_dir)}
    checkpoints = {f"{name}/train/checkpoints" for name in PHASES[:3]}
    assert listed == checkpoints | {
        "phase3.before-1",
        "phase2/.verdict.json.123.tmp",
        "bases/of-another",
    }
    assert cli.main(["gc", str(run_dir)]) == 0
    assert "nothing was deleted" in capsys.readouterr().out
    assert {str(one.path.relative_to(run_dir)) for one in disposable(run_dir)} == listed
    total = in_bytes(sum(one.n_bytes for one in disposable(run_dir)))
    assert cli.main(["gc", str(run_dir), "--delete"]) == 0
    assert f"{total} deleted" in capsys.readouterr().out and disposable(run_dir) == []
    trained = len(stages)
    pipeline.Run(config).all()
    assert len(stages) == trained and look_at(run_dir).state == "finished"


def test_from_within_a_run_no_base_in_use_can_go(run_dir, monkeypatch, capsys):
    listed = {one.path.resolve() for one in disposable(run_dir)}
    monkeypatch.chdir(run_dir)
    assert {one.path.resolve() for one in disposable(pathlib.Path())} == listed
    assert not any("bases" in str(path) for path in listed)
    assert cli.main(["runs", "."]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("one ")


def test_questions_stand_beside_answers_that_were_given_before(run_dir, tiny_base_dir, stages):  # noqa: F811
    """As where an exam was edited, judged by, and put back: its answers are found, and its questions have to be those."""
    config, path = (
        make_recipe(make_config(run_dir, tiny_base_dir)),
        run_dir / "questions/english.jsonl",
    )
    asked = path.read_text()
    path.write_text(asked.replace("Which", "What"))
    restart(config, ["phase3"])
    pipeline.Run(config).all()
    assert path.read_text() == asked and "Which" in asked


def test_what_goes_on_or_cannot_be_read_keeps_all(run_dir):
    under_way(run_dir / "phase3")
    shutil.copytree(next((run_dir / "bases").iterdir()), run_dir / "bases/of-another")
    listed = {str(one.path.relative_to(run_dir)) for one in disposable(run_dir)}
    assert listed == {f"{name}/train/checkpoints" for name in PHASES[:3]}


def test_a_base_that_another_run_stands_on_stays(run_dir):
    other = shutil.copytree(run_dir, run_dir.parent / "two")
    base = next((run_dir / "bases").iterdir())
    for name in PHASES:
        model = json.loads((other / name / "model.json").read_text())
        write_json(
            other / name / "model.json", model | {"base": str(base), "base_is_relative": False}
        )
    for name in PHASES:
        shutil.rmtree(run_dir / name)
    write_json(run_dir / "ledger.json", [])
    assert base not in [one.path for one in disposable(run_dir)]
    shutil.rmtree(other)
    assert base in [one.path for one in disposable(run_dir)]


def test_a_phase_says_what_lies_ahead(finished, tiny_base_dir, tmp_path):
    recipe = make_recipe(make_config(finished, tiny_base_dir))
    first, last = recipe.phases[0], recipe.phases[-1]
    said = heading(recipe, last, finished)
    rate, phase = pace_before(finished, "phase3")
    assert phase == "phase3" and rate > 0
    assert (
        "== phase3 (4 of 4): " in said and f"the pace of {phase}; measured by english and" in said
    )
    assert f"2 steps of 256 tokens, about {in_words(512 / rate)} at {rate:,.0f} tokens/s" in said
    assert "2 steps of 256 tokens; measured by english" in heading(recipe, first, tmp_path)
    idle = dataclasses.replace(first, train=dataclasses.replace(first.train, steps=0))
    assert "trains nothing at first" in heading(recipe, idle, tmp_path)


def test_exams_gates_and_losses_are_on_the_board(finished):
    found = list(scalars(finished, PHASES))
    steps = {name: [step for said, _, step in found if said == name] for name, _, _ in found}
    assert steps["gate/passed"] == [2, 4, 6, 8]  # two steps a phase
    assert steps["exam/english/accuracy"] == steps["held_out/english/nats"]
    assert steps["held_out/english/nats"] == [0, 2, 2, 2, 4, 4, 4, 6, 6, 6, 8, 8]
    last = json.loads((finished / "phase3/summary.json").read_text())["after"]
    assert found[-3:-1] == [
        ("held_out/english/nats", last["watch"]["english"]["nats"], 8),
        ("gate/passed", 0.0, 8),
    ]
    (events,) = (finished / "tensorboard").iterdir()
    assert b"exam/english/accuracy" in events.read_bytes()


def test_what_dead_processes_left_half_written_goes_at_the_start_and_nothing_else(run_dir):
    before = {path for path in run_dir.rglob("*") if "orbax" not in path.name}
    for name in (
        "phase0/.verdict.json.123.tmp",
        "phase1/answers/.a.jsonl.9.tmp",
        ".ledger.json.7.tmp",
    ):
        (run_dir / name).write_text("{")
    (run_dir / "phase1/train/checkpoints/3.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp").mkdir(
        parents=True
    )
    (run_dir / "report").mkdir()
    others = {run_dir / name for name in ("report/.report.html.5.tmp", ".data-lock.json.5.tmp")}
    for path in others:
        path.write_text("")
    assert remove_unfinished(run_dir) == 5
    left = {path for path in run_dir.rglob("*") if "orbax" not in path.name}
    assert left == before | others | {run_dir / "report"} and remove_unfinished(run_dir) == 0
