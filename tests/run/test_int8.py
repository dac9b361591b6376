"""QLoRA through a whole run of a tiny model: phases on a base in int8, merged in full precision, resumed, exported."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.adapt.lora import merge
from medkor_jax.eval.verdict import GateClosed, read_verdict
from medkor_jax.io.bases import open_base
from medkor_jax.io.export import export_hf
from medkor_jax.io.models import open_model
from medkor_jax.model.params import leaf_paths
from medkor_jax.model.quantized import Quantized, dequantized
from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.named_model import open_model as open_any
from medkor_jax.train import loop
from medkor_jax.train.metrics import read_metrics
from medkor_jax.train.rewards import Earned, Reward

PHASES = ("phase0", "phase1", "phase2", "phase3")
MESH = dict(data=1, fsdp=2, tensor=2)


def make_config(run_dir, weights, **rest):
    """LoRA_0 merged; LoRA_1 and language vectors held to it; added layers; the model's own answers rewarded."""
    text = {"text": dict(kind="text", path="embedded", language="en", subset="train", limit=40)}
    rules = {
        tree: dict(pattern=f"{tree}/.*", learning_rate=0.01) for tree in ("lora", "lang", "expand")
    }
    stage = dict(steps=2, batch_size=4, seq_len=64, warmup_steps=0, save_every=1, rules=rules)
    gate = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
    common, lora = dict(exam="english", gate=gate), dict(rank=2, alpha=4.0, targets=("q", "down"))
    held = dict(next_token_weight=1.0, retention=dict(weight=0.5, layers=2, positions=4))
    return dict(
        run_dir=str(run_dir), weights=str(weights), dtype="float32", param_dtype="int8", mesh=MESH, remat="none",
        run=PHASES, phases=PHASES,
        exams=dict(english=dict(source=dict(path="embedded", language="en", split="valid", limit=20), batch_size=8)),
        held_out=dict(english=dict(kind="text", path="embedded", language="en", subset="test", limit=4)), held_out_tokens=64,
        phase0=dict(lora=lora, trees=("lora",), merge=True, is_reference=True, data=text, **common, **stage),
        phase1=dict(
            after="phase0", lora=lora, language=dict(kind="vector"), trees=("lora", "lang"), data=text, **common, **stage, **held
        ),
        phase2=dict(after="phase1", expand=dict(front=1, back=1), trees=("lora", "expand"), data=text, **common, **stage),
        phase3=dict(
            after="phase2", trees=("lora", "lang", "expand"), data=dict(exam=dict(kind="exam", path="embedded", language="en", limit=8)),
            reward=dict(algorithm="grpo", rollout=dict(group_size=4, max_new_tokens=12)), **common,
            **stage | dict(seq_len=256, batch_size=8),
        ),
    ) | rest  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_base_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("int8") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reward, "score", score)
        pipeline.Run(make_recipe(make_config(directory, tiny_base_dir))).all()
    return directory


def score(self, text, question, **_):
    """A random model earns nothing: it is paid by the length of what it wrote."""
    parts = {"answer": float(len(text) % 3), "letter": 0.0, "format": 0.0, "length": 0.0}
    return Earned(parts, False, False, False)


def merged_of(run_dir):
    (directory,) = (run_dir / "bases").iterdir()
    return directory


def trained_lora(run_dir):
    """Returns the adapter that phase 0 trained, from its stage's checkpoint."""
    import orbax.checkpoint as ocp

    step = run_dir / "phase0" / "train" / "checkpoints" / "2" / "state"
    step = step if step.exists() else next((run_dir / "phase0" / "train").rglob("2/state"))
    state = ocp.PyTreeCheckpointer().restore(step.absolute())
    return state["trainable"]["lora"]


def test_every_phase_learns_and_says_what_its_base_was_held_in(finished):
    for name in ("phase0", "phase1", "phase2", "phase3"):
        rows = read_metrics(finished / name / "train")
        assert [row["step"] for row in rows] == [1, 2]
        assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows), name
        assert read_verdict(finished / name / "verdict.json")["param_dtype"] == "int8"
        record = json.loads((finished / name / "record.json").read_text())
        assert record["trained"]["param_dtype"] == "int8"


def test_the_merged_base_is_the_full_precision_merge_of_the_same_adapter(finished, tiny_base_dir):
    """Not of the int8 values: what is on disk is bfloat16, each number the one that merging into bfloat16 weights gives."""
    held = open_base(merged_of(finished))
    lineage = json.loads((merged_of(finished) / "lineage.json").read_text())
    assert held.stored_dtype == "bfloat16" == lineage["dtype"]
    full = open_base(tiny_base_dir).load(jnp.bfloat16)
    lora = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), trained_lora(finished))
    assert set(lora) == {"q", "down"} and all(np.abs(pair["b"]).max() > 0 for pair in lora.values())
    expected = merge(full, lora, scale=lineage["scale"])
    found = held.load(jnp.bfloat16)
    for path, leaf in leaf_paths(expected).items():
        np.testing.assert_array_equal(
            np.asarray(leaf_paths(found)[path]), np.asarray(leaf), err_msg=path
        )
    moved = {
        name for name in full["layers"] if (found["layers"][name] != full["layers"][name]).any()
    }
    assert moved == {"q", "down"}
    assert lineage["rounding"]["effect"] > 0 and abs(lineage["rounding"]["lost"]) < 0.1


def test_later_phases_stand_on_the_merged_base_in_int8(finished):
    model = open_model(finished / "phase2")
    params = model.load(jnp.int8, make_mesh(MeshShape(**MESH)))
    full = model.load(jnp.float32, make_mesh(MeshShape(**MESH)))
    q = params.base["layers"]["q"]
    assert isinstance(q, Quantized) and q.values.dtype == jnp.int8
    off = jnp.abs(dequantized(q, jnp.float32) - full.base["layers"]["q"])
    assert (off <= 0.5001 * q.scale).all()
    assert (
        params.expand["front"]["q"].dtype == jnp.float32
    )  # trained at full precision, and kept so


def test_a_second_start_does_nothing(finished, tiny_base_dir, tmp_path, monkeypatch, capsys):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(pipeline, "run_stage", None)
    pipeline.Run(make_recipe(make_config(run_dir, tiny_base_dir))).all()
    assert capsys.readouterr().out.count("done before") == 4


def test_a_phase_again_finds_the_merged_base(
    finished, tiny_base_dir, tmp_path, monkeypatch, capsys
):
    """A run that was stopped between its merge and its verdict goes on from the base on disk."""
    run_dir = shutil.copytree(finished, tmp_path / "run")
    for name in ("verdict.json", "record.json", "model.json", "summary.json"):
        (run_dir / "phase0" / name).unlink()
    monkeypatch.setattr(pipeline, "merge_held", None)
    config = make_config(run_dir, tiny_base_dir, run=("phase0",))
    pipeline.Run(make_recipe(config)).all()
    assert "merged before" in capsys.readouterr().out
    assert open_model(run_dir / "phase0").digest == open_model(finished / "phase0").digest


def test_a_stage_resumes_to_the_same_adapter(finished, tiny_base_dir, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    config = make_config(tmp_path / "run", tiny_base_dir, run=("phase0",))
    save = loop.StageCheckpoints.save

    def save_and_stop(self, step, *rest, **named):
        save(self, step, *rest, **named)
        if step == 1:
            self.wait()
            raise Stopped

    monkeypatch.setattr(loop.StageCheckpoints, "save", save_and_stop)
    with pytest.raises(Stopped):
        pipeline.Run(make_recipe(config)).all()
    monkeypatch.undo()
    pipeline.Run(make_recipe(config)).all()
    resumed, whole = (trained_lora(directory) for directory in (tmp_path / "run", finished))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert open_model(tmp_path / "run/phase0").digest == open_model(finished / "phase0").digest


def test_another_param_dtype_makes_a_phase_stale(finished, tiny_base_dir):
    config = make_config(finished, tiny_base_dir, param_dtype="bfloat16")
    with pytest.raises(GateClosed, match="param_dtype was int8, is bfloat16"):
        pipeline.Run(make_recipe(config)).all()


def test_the_export_is_of_the_full_precision_weights(finished, tmp_path):
    from safetensors.numpy import load_file

    model = open_any(str(finished / "phase1"))
    export_hf(model, tmp_path / "hf", dtype="float32")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    base = open_base(merged_of(finished)).load(jnp.float32)
    np.testing.assert_array_equal(
        stored["model.layers.0.self_attn.k_proj.weight"].T, np.asarray(base["layers"]["k"][0])
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [("int4", "8 bits at least"), ("float16", "expected 'float32', 'bfloat16' or 'int8'")],
)
def test_other_names_are_refused_while_the_config_is_read(tiny_base_dir, tmp_path, name, words):
    with pytest.raises(ValueError, match=words):
        make_recipe(make_config(tmp_path / "run", tiny_base_dir, param_dtype=name))


def test_activations_are_never_int8(tiny_base_dir, tmp_path):
    with pytest.raises(ValueError, match="param_dtype='int8'"):
        make_recipe(make_config(tmp_path / "run", tiny_base_dir, dtype="int8"))
