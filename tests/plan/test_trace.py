"""The compiled program and the jaxpr agree on FLOPs, for everything a phase runs; so does the hand count where nothing is made again."""

import dataclasses

import jax
import pytest

from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.model.config import preset
from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.plan.compiling import compile_program
from medkor_jax.plan.handcount import costly_share, hand_flops, visible_scores
from medkor_jax.plan.lowering import traceable
from medkor_jax.plan.stages import READ, SCORE, STEP, Program, Trees
from medkor_jax.plan.topology import parse_topology
from medkor_jax.plan.trace import jaxpr_work
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.retention import Retention
from medkor_jax.train.reward_settings import RewardSettings
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import step_spec

CONFIG = preset("tiny")
ADAPTED, ALL = Trees(LoraSettings(rank=2), "vector"), Trees(LoraSettings(rank=2), "vector", (1, 1))
LONGER = Trees(LoraSettings(rank=2), "tokens", n_new=96)
COMPUTE = ComputeSettings("bfloat16", "none", chunk=16)
TEXT = Program(STEP, ADAPTED, ("lora", "lang"), step_spec(Stage(), COMPUTE), 8, 64, 32, "bfloat16")
GRPO = step_spec(Stage(reward=RewardSettings("grpo")), COMPUTE)
EACH_LAYER = step_spec(
    Stage(next_token_weight=0.0, retention=Retention(1.0, layers=2, positions=16)), COMPUTE
)
MADE_AGAIN = dataclasses.replace(TEXT.spec, compute=dataclasses.replace(COMPUTE, remat="full"))
PROGRAMS = {
    "text": dataclasses.replace(TEXT, trees=ALL, trained=("lora", "lang", "expand"), length=256),
    "text, all made again": dataclasses.replace(TEXT, spec=MADE_AGAIN),
    "text, two microbatches": dataclasses.replace(
        TEXT, spec=dataclasses.replace(TEXT.spec, microbatches=2)
    ),
    "each layer": dataclasses.replace(TEXT, spec=EACH_LAYER, reference=Trees(LoraSettings(rank=2))),
    "each layer, layers added": dataclasses.replace(
        TEXT, trees=ALL, trained=("expand",), spec=EACH_LAYER, reference=Trees()
    ),
    "grpo": dataclasses.replace(TEXT, spec=GRPO),
    "score": dataclasses.replace(TEXT, kind=SCORE, spec=GRPO, trained=()),
    "read": dataclasses.replace(TEXT, kind=READ, spec=GRPO, trained=(), room=96),
    "text, new tokens": dataclasses.replace(TEXT, trees=LONGER),
    "read, new tokens": dataclasses.replace(
        TEXT, kind=READ, trees=LONGER, spec=GRPO, trained=(), room=96
    ),
}
SLOW = (
    "text, new tokens",
    "read, new tokens",
    "text",
    "text, two microbatches",
    "each layer, layers added",
    "grpo",
)


@pytest.fixture(scope="module")
def machine():
    mesh = make_mesh(MeshShape(data=1, fsdp=-1))
    with jax.set_mesh(mesh):
        yield mesh, parse_topology(f"cpu:{mesh.size}")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PROGRAMS],
)
def test_the_compiled_program_has_the_flops_of_the_jaxpr(name, machine, monkeypatch, tmp_path):
    mesh, topology = machine
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path))
    program = PROGRAMS[name]
    found = compile_program(program, CONFIG, mesh, topology)
    traced = (
        jaxpr_work(
            traceable(program, CONFIG, mesh).jaxpr(), costly_share=costly_share(program, CONFIG)
        ).flops
        / mesh.size
    )
    assert found.cost.flops == pytest.approx(traced, rel=0.01)
    assert hand_flops(program, CONFIG) / mesh.size <= 1.01 * found.cost.flops


@pytest.mark.parametrize("name", ["score", "read", "read, new tokens"])
def test_without_a_backward_pass_all_above_the_hand_count_are_hidden_scores(name, machine):
    mesh, _ = machine
    program = PROGRAMS[name]
    t, kinds = program.length, CONFIG.layer_kinds
    seen = sum(
        visible_scores(t, CONFIG.sliding_window if kind == "local" else None) for kind in kinds
    )
    hidden = 4 * program.rows * (len(kinds) * t * t - seen) * CONFIG.n_heads * CONFIG.head_dim
    assert (
        jaxpr_work(traceable(program, CONFIG, mesh).jaxpr()).flops
        == hand_flops(program, CONFIG) + hidden
    )


def test_a_query_sees_itself_what_is_before_it_and_no_further_than_the_window():
    for length, window in ((7, None), (7, 3), (3, 7), (1, 1)):
        seen = sum(
            1 for t in range(length) for s in range(t + 1) if window is None or t - s < window
        )
        assert visible_scores(length, window) == seen


def test_what_is_asked_for_twice_counts_once_and_what_nothing_needs_not_at_all():
    import jax.numpy as jnp

    a = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    b = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    inner = jax.jit(lambda a, b: jnp.tanh(a @ b))
    jaxpr = jax.make_jaxpr(lambda a, b: (inner(a, b) + jnp.tanh(a @ b), b @ b)[0])(a, b)
    assert jaxpr_work(jaxpr).flops == 2 * 4 * 8 * 8
