"""The stages of a recipe as programs: the shapes are those that a real run would give its jitted functions."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.model.config import preset
from medkor_jax.model.params import ADAPTABLE
from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.plan.arithmetic import estimate
from medkor_jax.plan.compiling import sharded_bytes
from medkor_jax.plan.lowering import _batch, abstract_params
from medkor_jax.plan.stages import READ, SCORE, STEP, WRITE, Program, Trees, planned_stages
from medkor_jax.plan.topology import parse_topology
from medkor_jax.run.config_file import load_recipe
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.policy import PolicyLoss
from medkor_jax.train.reward_settings import RewardSettings
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import step_spec

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CONFIG = preset("tiny")


@pytest.fixture(scope="module")
def stages():
    return {
        stage.name: stage
        for stage in planned_stages(load_recipe(str(CONFIGS / "pipeline.py")), CONFIG)
    }


def test_every_training_stage_and_every_remedy_is_planned(stages):
    trained = ("phase0", "phase2", "phase3", "phase4a_text", "phase4b_translation")
    trained += ("phase5a_text", "phase5b_translation", "phase5c_reasoning", "phase5d_exam")
    remedied = ("phase1", *trained[1:])
    assert sorted(stages) == sorted(
        [f"{name}/train" for name in trained] + [f"{name}/remedy" for name in remedied]
    )


def test_stages_that_differ_in_steps_alone_share_their_program(stages):
    assert stages["phase0/train"].runs == stages["phase1/remedy"].runs
    assert stages["phase4b_translation/train"].runs == stages["phase5b_translation/train"].runs
    assert len({run.program for stage in stages.values() for run in stage.runs}) == 13


def test_trees_are_added_as_the_phases_add_them_and_a_merge_takes_lora_away(stages):
    trees = {name: stage.runs[0].program.trees for name, stage in stages.items()}
    assert trees["phase0/train"] == Trees(LoraSettings())
    assert trees["phase2/train"].lang == "vector" and not any(trees["phase2/train"].expand)
    assert trees["phase5d_exam/train"] == Trees(LoraSettings(), "vector", (1, 1))
    assert stages["phase3/remedy"].runs[0].program.reference == Trees(
        LoraSettings()
    )  # phase1's model, remedied
    assert stages["phase3/train"].runs[0].program.reference is None


def test_an_update_of_grpo_reads_writes_and_scores(stages):
    runs = {run.program.kind: run for run in stages["phase5d_exam/train"].runs}
    assert {kind: run.per_update for kind, run in runs.items()} == {
        STEP: 1.0,
        SCORE: 1.0,
        READ: 1.0,
        WRITE: 512.0,
    }
    assert (
        runs[STEP].program.positions == 512
        and runs[READ].program.length == 512
        and runs[WRITE].program.room == 1024
    )


def test_an_unknown_stage_shape_is_said_to_be_assumed(stages):
    assert "loss at every token" in stages["phase0/train"].notes[0]
    assert "512 tokens" in stages["phase5d_exam/train"].notes[0]


def test_abstract_parameters_have_the_shapes_of_real_ones(make_base):
    from medkor_jax.adapt.expansion import make_expansion
    from medkor_jax.adapt.language import make_language
    from medkor_jax.adapt.lora import make_lora
    from medkor_jax.model.params import Params

    base, recipe = make_base(CONFIG), LoraSettings(rank=4)
    lora = make_lora(base, jax.random.key(0), rank=4, targets=recipe.targets)
    real = Params(
        base,
        lora,
        make_language(CONFIG, kind="vector"),
        make_expansion(base, front=1, back=2),
        recipe.scale,
    )
    planned = abstract_params(CONFIG, Trees(recipe, "vector", (1, 2)), "float32")
    assert jax.tree.structure(real) == jax.tree.structure(planned)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), real, planned)
    assert all(jax.tree.leaves(same))


def test_an_abstract_batch_has_what_a_packed_one_has(make_batch):
    program = Program(
        STEP,
        Trees(LoraSettings()),
        ("lora",),
        step_spec(Stage(), ComputeSettings("float32", "none")),
        8,
        24,
        10,
        "float32",
    )
    real = {name: (rows.shape, jnp.dtype(rows.dtype)) for name, rows in make_batch(CONFIG).items()}
    assert {name: (rows.shape, rows.dtype) for name, rows in _batch(program).items()} == real
    sampled = Stage(reward=RewardSettings("grpo", policy=PolicyLoss(kl_weight=0.1)))
    grpo = dataclasses.replace(
        program, spec=step_spec(sampled, ComputeSettings()), with_reference_nats=True
    )
    assert set(_batch(grpo)) == {
        *real,
        "advantages",
        "behaviour_nats",
        "importance",
        "reference_nats",
    }


def test_a_decoder_hands_on_the_state_that_is_planned(make_base):
    """The state that `write a token` is compiled for is the one that reading prompts leaves, laid as it is left."""
    from medkor_jax.model import decode
    from medkor_jax.model.params import Params
    from medkor_jax.model.prompts import Routing, pad_prompts
    from medkor_jax.model.sampling import Sampling
    from medkor_jax.parallel.mesh import MeshShape, make_mesh
    from medkor_jax.plan.lowering import lay_state

    settings = decode.Settings(CONFIG, jnp.dtype("float32"), Sampling(1.0), (1,), 8, True)
    with jax.set_mesh(make_mesh(MeshShape(data=1, fsdp=2, tensor=2))):
        routing = Routing.constant(CONFIG.vocab_size)
        prompt = pad_prompts([[2, 5, 6]] * 4, routing, seeds=np.arange(4))
        state, *_ = decode._start(
            Params(make_base(CONFIG)), prompt, routing, settings=settings, size=64
        )
        planned = lay_state(jax.eval_shape(lambda: state), jax.sharding.get_mesh())
    for (path, real), wanted in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(planned)
    ):
        assert (real.shape, real.dtype) == (wanted.shape, wanted.dtype), path
        assert real.sharding.shard_shape(real.shape) == wanted.sharding.shard_shape(wanted.shape), (
            path
        )


def test_an_int8_base_is_planned_in_its_own_bytes():
    """Matrices at a byte a number and their scales, tables and norms in bfloat16; what trains is what it was."""
    trees = Trees(LoraSettings(rank=2), "vector", (1, 1))
    int8, floats = (abstract_params(CONFIG, trees, dtype) for dtype in ("int8", "bfloat16"))
    matrices = [floats.base["layers"][name] for name in ADAPTABLE]
    channels = sum(leaf.shape[0] * leaf.shape[-1] for leaf in matrices)
    saved = sum(leaf.size for leaf in matrices) - 4 * channels
    assert saved > 0
    assert sharded_bytes(floats.base) - sharded_bytes(int8.base) == saved
    for name in ("lora", "lang", "expand"):
        assert getattr(int8, name) == getattr(floats, name)


@pytest.mark.parametrize("kind", [STEP, SCORE, READ, WRITE])
def test_an_int8_program_does_the_same_products_and_needs_less_memory(kind):
    mesh = make_mesh(MeshShape(data=1), jax.devices()[:1])
    topology = parse_topology("gpu:1x80GB")
    compute = ComputeSettings("bfloat16", "gate_up", chunk=16)
    program = Program(
        kind, Trees(LoraSettings(rank=2)), ("lora",), step_spec(Stage(), compute), 4, 32, 32, "bfloat16", room=64
    )  # fmt: skip
    if kind == SCORE:
        reward = RewardSettings(algorithm="grpo", policy=PolicyLoss(kl_weight=0.0))
        stage = Stage(next_token_weight=0.0, reward=reward)
        program = dataclasses.replace(program, spec=step_spec(stage, compute))
    with jax.set_mesh(mesh):
        floats, int8 = (
            estimate(dataclasses.replace(program, param_dtype=dtype), CONFIG, mesh, topology)
            for dtype in ("bfloat16", "int8")
        )
    assert int8.cost.flops == floats.cost.flops and int8.hand == floats.hand
    assert int8.memory["weights"] < floats.memory["weights"]
    assert int8.memory["temporary"] >= floats.memory["temporary"]  # one matrix at a time, widened
    layers = abstract_params(CONFIG, Trees(), "bfloat16").base["layers"]
    largest = max(2 * layers[name].size / CONFIG.n_layers for name in ADAPTABLE)
    widened = int8.memory["temporary"] - floats.memory["temporary"]
    assert widened <= 2 * 7 * largest, "no stack of matrices is widened"
