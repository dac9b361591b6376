import dataclasses

import jax
import jax.numpy as jnp
import pytest

from medkor_jax.bench import counts
from medkor_jax.bench.ours import compile_step
from medkor_jax.model import attention
from medkor_jax.model.config import periodic_kinds, preset
from medkor_jax.model.params import leaf_paths, matrix_sizes
from medkor_jax.plan.program import read_program

RANK, BATCH, LENGTH = 4, 2, 64


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(preset("tiny"), d_model=64, d_ff=128, vocab_size=1024)


def test_compiled_step_holds_the_work_of_the_hand_count(config):
    config = dataclasses.replace(config, layer_kinds=periodic_kinds(5))
    compiled, trainable = compile_step(config, "float32", BATCH, LENGTH, RANK)
    leaves = leaf_paths(trainable)
    assert len(leaves) == 14
    assert sum(leaf.size for leaf in leaves.values()) == counts.lora_parameters(config, RANK)

    found = read_program(compiled.as_text()).flops
    hand, without = (counts.step_flops(config, BATCH, LENGTH, LENGTH, rank) for rank in (RANK, 0))
    assert hand <= found <= (1 + counts.RECOMPUTED_SHARE) * hand
    assert (
        found - (hand - without) < hand
    )  # a step that compiled no adapters would fall below the hand count


def test_a_loop_counts_as_often_as_it_runs_where_the_compiler_counts_once():
    x, w = (
        jax.ShapeDtypeStruct((32, 48), jnp.float32),
        jax.ShapeDtypeStruct((7, 48, 48), jnp.float32),
    )
    looped = (
        jax.jit(lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])
        .lower(x, w)
        .compile()
    )

    def unrolled(x, w):
        for i in range(7):
            x = jnp.tanh(x @ w[i])
        return x

    flat = jax.jit(unrolled).lower(x, w).compile()
    once = 2 * 32 * 48 * 48
    assert read_program(looped.as_text()).flops == read_program(flat.as_text()).flops == 7 * once
    assert flat.cost_analysis()["flops"] >= 7 * once > looped.cost_analysis()["flops"]


def test_hand_count_is_the_compilers_count_of_an_unrolled_forward_pass(config):
    """Matrices alone, forward: a third way to the same number, without our own reading of the program."""
    sizes = matrix_sizes(config)
    shapes = [jax.ShapeDtypeStruct((config.n_layers, *size), jnp.float32) for size in sizes]
    inputs = [jax.ShapeDtypeStruct((BATCH * LENGTH, size[0]), jnp.float32) for size in sizes]

    def forward(inputs, weights):
        return [[x @ w[layer] for layer in range(config.n_layers)] for x, w in zip(inputs, weights)]

    lowered = jax.jit(forward).lower(inputs, shapes).cost_analysis()["flops"]
    attention = 12 * BATCH * LENGTH**2 * config.n_heads * config.head_dim * config.n_layers
    assert counts.step_flops(config, BATCH, LENGTH, 0, rank=0) - attention == 2 * lowered


def test_of_a_conditional_the_costliest_branch_counts():
    x = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    chosen = jax.jit(lambda c, x: jax.lax.cond(c > 0, lambda x: x @ x @ x, lambda x: x @ x, x))
    hlo = chosen.lower(jax.ShapeDtypeStruct((), jnp.int32), x).compile().as_text()
    assert read_program(hlo).flops == 2 * 2 * 16**3


def test_a_loop_of_unknown_length_is_refused():
    f = jax.jit(
        lambda n, x: jax.lax.while_loop(
            lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x)
        )[1]
    )
    compiled = f.lower(
        jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
    ).compile()
    with pytest.raises(ValueError, match="does not say how often"):
        read_program(compiled.as_text()).flops


@pytest.mark.parametrize("t", [40, 256, 512, 768, 1536, 2048])
def test_scores_are_counted_as_attend_computes_them(t):
    """Short, in causal blocks, and long, where all are computed: two products of [T, H] with as many scores."""
    heads, size = 4, 16
    q, mask = (
        jax.ShapeDtypeStruct((2, t, heads, size), jnp.float32),
        jax.ShapeDtypeStruct((2, t, t), bool),
    )
    compiled = jax.jit(attention.attend).lower(q, q, q, mask).compile()
    assert (
        read_program(compiled.as_text()).flops
        == 2 * 2 * 2 * attention.causal_scores(t) * heads * size
    )
