"""The dtype that users run: every phase of a tiny model in bfloat16, to an export that keeps what was trained."""

import json
import pathlib

import jax.numpy as jnp
import pytest

from medkor_jax.eval.verdict import read_verdict
from medkor_jax.io.export import export_hf
from medkor_jax.io.hf import EXPORT_RECORD
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import load_recipe, make_recipe
from medkor_jax.run.named_model import open_model
from medkor_jax.train.metrics import read_metrics
from medkor_jax.train.rewards import Earned, Reward

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def make_config(run_dir, weights):
    text = {
        code: {"text": dict(kind="text", path="embedded", language=code, subset="train", limit=40)}
        for code in ("en", "ko")
    }
    # two steps of less would leave language vectors and the merged LoRA within the rounding of bfloat16
    rates = dict(lora=2e-3, lang=5e-2, expand=1e-3)
    rules = {tree: dict(pattern=f"{tree}/.*", learning_rate=rate) for tree, rate in rates.items()}
    stage = dict(steps=2, batch_size=4, seq_len=64, warmup_steps=0, rules=rules)
    gate = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
    common, lora = dict(exam="english", gate=gate), dict(rank=2, alpha=4.0, targets=("q", "down"))
    all_trees = ("lora", "lang", "expand")
    held = dict(next_token_weight=1.0, retention=dict(weight=0.5, layers=2, positions=4))
    return dict(
        run_dir=str(run_dir), weights=str(weights), dtype="bfloat16", param_dtype="bfloat16",
        run=("phase0", "phase1", "phase2", "phase3", "phase4b", "phase5c", "phase5d"),
        exams=dict(english=dict(source=dict(path="embedded", language="en", split="valid", limit=20), batch_size=8)),
        held_out=dict(korean=dict(kind="text", path="embedded", language="ko", subset="test", limit=4)), held_out_tokens=64, max_translation_tokens=4,
        phase0=dict(lora=lora, trees=("lora",), merge=True, data=text["en"], **common, **stage),
        phase1=dict(after="phase0", lora=lora, trees=("lora",), is_reference=True, data=text["en"], **common, **stage),
        phase2=dict(after="phase1", language=dict(kind="vector"), trees=("lang",), data=text["ko"], **common, **stage),
        phase3=dict(after="phase2", trees=("lora", "lang"), data=text["ko"], **common, **stage, **held),
        phase4b=dict(
            after="phase3", expand=dict(front=1, back=1), trees=all_trees, **common, **stage | dict(seq_len=128),
            data=dict(pairs=dict(kind="translation", path="embedded", subset="train", limit=20)),
            translations=dict(held=dict(kind="translation", path="embedded", subset="test", limit=2)),
        ),
        phase5c=dict(
            after="phase4b", trees=all_trees, data=dict(s=dict(kind="reasoning", path="embedded", language="en", limit=20)), **common,
            **stage | dict(seq_len=384),
        ),
        phase5d=dict(
            after="phase5c", trees=all_trees, data=dict(exam=dict(kind="exam", path="embedded", language="en", limit=8)), **common,
            reward=dict(algorithm="grpo", rollout=dict(group_size=4, max_new_tokens=12)),
            **stage | dict(seq_len=256, batch_size=8),
        ),
    )  # fmt: skip


def test_all_phases_in_bfloat16_end_in_an_export_that_keeps_them(
    tiny_base_dir, tmp_path, monkeypatch
):
    def score(
        self, text, question, **_
    ):  # a random model earns nothing: pay it by the length of what it wrote
        return Earned(
            {"answer": float(len(text) % 3), "letter": 0.0, "format": 0.0, "length": 0.0},
            False,
            False,
            False,
        )

    monkeypatch.setattr(Reward, "score", score)
    recipe = make_recipe(make_config(tmp_path / "run", tiny_base_dir))
    pipeline.Run(recipe).all()
    for phase in recipe.phases:
        assert read_verdict(tmp_path / "run" / phase.name / "verdict.json")["waiver"]
        assert all(
            row["loss"] is not None for row in read_metrics(tmp_path / "run" / phase.name / "train")
        )
    model = open_model(tmp_path / "run")
    assert model.directory.name == "phase5d" and model.base.stored_dtype == "bfloat16"
    (base,) = (tmp_path / "run/bases").iterdir()
    merged = json.loads((base / "lineage.json").read_text())["rounding"]
    assert merged["effect"] > 0 and abs(merged["lost"]) < 0.1
    gap = [row["rollout/sampler_gap_nats"] for row in read_metrics(tmp_path / "run/phase5d/train")]
    assert len(gap) == 2 and max(gap) < 1.0
    for dtype in ("bfloat16", "float32"):
        export_hf(model, tmp_path / dtype, dtype=dtype)
    kept = json.loads((tmp_path / "bfloat16" / EXPORT_RECORD).read_text())["rounding"]
    assert list(kept) == ["LoRA", "language embeddings", "added layers", "everything"]
    assert all(
        one["effect"] > 0 and abs(one["lost"]) < 0.1
        for name, one in kept.items()
        if name != "everything"
    ), kept


@pytest.mark.slow
def test_the_quick_starts_phase_0_merges_on_the_real_model_in_bfloat16(tmp_path):
    changes = [
        "dtype=bfloat16",
        "param_dtype=bfloat16",
        f"run_dir={tmp_path / 'run'}",
        "phase0.steps=2",
    ]
    recipe = load_recipe(
        f"{CONFIGS / 'quickstart.py'}:phase0", [f"--config.{change}" for change in changes]
    )
    pipeline.Run(recipe).all()
    assert (
        open_model(tmp_path / "run/phase0")
        .load(jnp.bfloat16, pipeline.make_mesh(recipe.mesh))
        .base["embed"]
        .dtype
        == jnp.bfloat16
    )
