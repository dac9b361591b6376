"""The whole command on a tiny model, in a process of its own: a trace may meet a libtpu that this process has loaded."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from medkor_jax.profiling import command
from medkor_jax.run import config_file
from medkor_jax.run.phases import ConfigError
from medkor_jax.train.rewards import Reward

ROOT = pathlib.Path(__file__).parents[2]


def profile(tiny_base_dir, tmp_path, *arguments):
    environment = dict(os.environ, OWN_PROCESS="1", RUN_DIR=str(tmp_path / "run"), WEIGHTS=str(tiny_base_dir), PYTHONPATH=str(ROOT))
    environment.pop("XLA_FLAGS", None)  # what takes the time is asked: this is compiled as a user's is
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    command_line = [sys.executable, "-m", "medkor_jax.cli", "profile", "--config", "tests/parallel/tiny_phases.py"]
    done = subprocess.run([*command_line, "--out", str(tmp_path / "out"), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shares = {m[1].strip(): float(m[2]) for m in re.finditer(r"^(.+?)\s+[\d,.]+\s+([\d.]+)%$", done.stdout, re.MULTILINE)}
    return done.stdout, shares


def test_a_step_is_traced_and_the_kinds_add_up_to_it(tiny_base_dir, tmp_path):
    wide = ["--config.phase0.batch_size=8", "--config.phase0.seq_len=256"]
    said, shares = profile(tiny_base_dir, tmp_path, "--steps", "3", *wide)
    assert said.startswith("phase0/train on 1 x cpu") and "3 steps of 8 x 256 tokens" in said
    whole = shares.pop("all of it")
    assert sum(shares.values()) == pytest.approx(whole, abs=1)
    assert 97 <= whole <= 110  # of the clock: more, only if the device was busy with what came before
    known = {kind: share for kind, share in shares.items() if "idle" not in kind}
    assert {"attention", "head and loss", "matrix products", "optimizer"} <= set(known)
    # 1,024 words and heads of 16 on a width of 32: scores of 256 x 256 are most of what there is to do
    assert known["attention"] > known["matrix products"] > 0
    (trace,) = (tmp_path / "out").rglob("*.xplane.pb")
    assert trace.stat().st_size > 10_000
    assert not (tmp_path / "run").exists()


def test_of_a_rewarded_phase_the_sampling_is_seen(tiny_base_dir, tmp_path):
    said, shares = profile(tiny_base_dir, tmp_path, "--phase", "phase5d", "--steps", "1")
    assert said.startswith("phase5d/train")
    assert "sampling" in shares and "by program: " in said and "jit__continue" in said and "jit_score" in said


def recipe(monkeypatch, tmp_path):
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    monkeypatch.setenv("WEIGHTS", "random:tiny")
    return config_file.load_recipe("tests/parallel/tiny_phases.py")


def test_the_stage_that_is_asked_for(monkeypatch, tmp_path):
    score = Reward.score
    found = recipe(monkeypatch, tmp_path)
    assert Reward.score is score  # the config changes a process that is its own, not this one
    assert command.choose_stage(found, "")[0].name == "phase0"
    phase, stage, name = command.choose_stage(found, "phase3")
    assert (phase.name, name, stage.trees) == ("phase3", "train", ("lora", "lang"))
    with pytest.raises(ConfigError, match="'phase9' trains nothing; those that train: phase0, phase1"):
        command.choose_stage(found, "phase9")


def test_a_libtpu_of_another_version_is_kept_out(monkeypatch):
    updates = {}
    monkeypatch.setattr(command, "foreign_libtpu", lambda: ("0.0.52", "0.0.42"))
    monkeypatch.setattr(command, "_is_loaded", lambda library: False)
    monkeypatch.setattr(command, "_has_tpu", lambda: False)
    monkeypatch.setattr(command.jax, "config", type("Config", (), {"jax_platforms": "", "update": lambda self, k, v: updates.update({k: v})})())
    command.keep_out_foreign_profilers()
    assert updates["jax_platforms"].endswith("cpu")
    monkeypatch.setattr(command, "_has_tpu", lambda: True)
    with pytest.raises(RuntimeError, match=r"libtpu 0.0.52 is installed and this jax traces with 0.0.42: .*jax\[tpu\]"):
        command.keep_out_foreign_profilers()
    monkeypatch.setattr(command, "_is_loaded", lambda library: True)
    with pytest.raises(RuntimeError, match="loaded already.*JAX_PLATFORMS=cpu"):
        command.keep_out_foreign_profilers()


def test_which_libtpu_is_foreign(monkeypatch):
    monkeypatch.setattr(command.importlib.metadata, "requires", lambda name: ["numpy", 'libtpu==0.0.42.*; extra == "tpu"'])
    for installed, foreign in (("0.0.42", None), ("0.0.42.1", None), ("0.0.421", ("0.0.421", "0.0.42")), ("0.0.52", ("0.0.52", "0.0.42"))):
        monkeypatch.setattr(command.importlib.metadata, "version", lambda name, installed=installed: installed)
        assert command.foreign_libtpu() == foreign
