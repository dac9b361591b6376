"""A phase with language.kind "tokens", from the config to the export: learnt, trained, kept, found again, refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.data import embedded
from medkor_jax.io.models import open_model
from medkor_jax.parallel.mesh import host_mesh
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe

SIZE = 24
OPEN = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
STAGE = dict(steps=2, batch_size=4, seq_len=64, warmup_steps=0)
LORA = dict(rank=2, alpha=4.0, targets=("q",))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    for code in ("ko", "en"):
        rows = [{"text": text} for _, text in embedded.texts(code, "train")[:60]]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / f"{code}.jsonl").write_text(lines)
    return directory


def make_config(run_dir, weights, files):
    korean, english = (
        dict(kind="text", path=str(files / f"{code}.jsonl"), language=code) for code in ("ko", "en")
    )
    common = dict(exam="english", gate=OPEN, **STAGE)
    return dict(
        run_dir=str(run_dir), weights=str(weights), run=("phase1", "phase2", "phase3"), phases=("phase1", "phase2", "phase3"),
        dtype="float32", param_dtype="float32", remat="none",
        exams=dict(english=dict(source=dict(path="embedded", split="valid", language="en", limit=4), batch_size=8)),
        held_out=dict(korean=dict(kind="text", path="embedded", language="ko", subset="test", limit=4)), held_out_tokens=0,
        phase1=dict(exam="english", gate=OPEN, is_reference=True),
        phase2=dict(after="phase1", language=dict(kind="tokens", size=SIZE, least_seen=3), trees=("lang",),
                    data=dict(korean=korean, english=english), **common),
        phase3=dict(after="phase2", lora=LORA, trees=("lora", "lang"), retention=dict(weight=0.5, layers=2, positions=4),
                    data=dict(korean=korean, english=english), **common),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_base_dir, files, tmp_path_factory):
    """(its directory, its config): a run of three phases, the second of which adds tokens."""
    directory = tmp_path_factory.mktemp("tokens") / "run"
    config = make_config(directory, tiny_base_dir, files)
    pipeline.Run(make_recipe(config)).all()
    return directory, config


def test_every_phase_behind_has_the_tokens_and_trained_their_rows(finished):
    directory, _ = finished
    before, after = (open_model(directory / name) for name in ("phase2", "phase3"))
    assert open_model(directory / "phase1").new_tokens is None
    assert before.new_tokens == after.new_tokens and len(after.new_tokens.pieces) == SIZE
    rows = [model.load(jnp.float32, host_mesh()).lang for model in (before, after)]
    for name in ("vector", "input", "output"):
        assert not np.array_equal(rows[0][name], rows[1][name]), name
    losses = [
        json.loads((directory / name / "summary.json").read_text())["after"]["watch"]["korean"]
        for name in ("phase1", "phase2")
    ]
    # losses are said a token of the base, whose number the same text does not change
    assert losses[0]["tokens"] == losses[1]["tokens"]
