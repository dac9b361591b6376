import dataclasses

import jax
import jax.numpy as jnp
import pytest

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.model.config import GLOBAL, LOCAL, preset
from medkor_jax.model.params import (
    BACK,
    FRONT,
    Params,
    abstract_base,
    edge_blocks,
    layer_kinds,
    leaf_paths,
    make_plan,
    n_leaves_and_params,
)  # fmt: skip


def test_base_has_the_documented_shapes():
    c = preset("tiny")
    n, d, f, q, kv = 7, 32, 64, 4 * 16, 2 * 16
    assert {
        path: leaf.shape for path, leaf in leaf_paths(abstract_base(c, jnp.bfloat16)).items()
    } == {
        "embed": (512, d),
        "final_norm": (d,),
        **{
            f"layers/{name}_norm": (n, d)
            for name in ("pre_attn", "post_attn", "pre_ffw", "post_ffw")
        },
        "layers/q_norm": (n, 16),
        "layers/k_norm": (n, 16),
        "layers/q": (n, d, q),
        "layers/k": (n, d, kv),
        "layers/v": (n, d, kv),
        "layers/o": (n, q, d),
        "layers/gate": (n, d, f),
        "layers/up": (n, d, f),
        "layers/down": (n, f, d),
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_base(c, jnp.bfloat16))} == {
        jnp.dtype("bfloat16")
    }


def test_plan_marks_the_sixth_layer_global():
    assert make_plan(preset("tiny")).is_local.tolist() == [True] * 5 + [False, True]


def test_counts_leaves_and_parameters():
    assert n_leaves_and_params({"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(4)}}) == (2, 10)


def test_added_layers_have_the_kind_of_their_source_and_move_no_other():
    config = dataclasses.replace(preset("tiny"), layer_kinds=(GLOBAL, LOCAL, LOCAL))
    base = abstract_base(config, jnp.float32)

    def kinds(front, back):
        expand = jax.eval_shape(
            lambda: make_expansion(
                jax.tree.map(lambda x: jnp.zeros(x.shape), base), front=front, back=back
            )
        )
        return layer_kinds(Params(base, expand=expand), config)

    assert layer_kinds(Params(base), config) == (GLOBAL, LOCAL, LOCAL)
    assert kinds(2, 1) == (GLOBAL, GLOBAL, GLOBAL, LOCAL, LOCAL, LOCAL)
    assert kinds(0, 2) == (GLOBAL, LOCAL, LOCAL, LOCAL, LOCAL)
    assert kinds(1, 0) == (GLOBAL, GLOBAL, LOCAL, LOCAL)


def test_edge_blocks_come_unstacked_in_order():
    expand = {
        "back": {"q": jnp.arange(6.0).reshape(2, 3, 1), "q_norm": jnp.arange(2.0).reshape(2, 1)}
    }
    params = Params({}, expand=expand)
    assert edge_blocks(params, FRONT) == [] == edge_blocks(Params({}), BACK)
    first, second = edge_blocks(params, BACK)
    assert (first["q"].tolist(), second["q"].tolist()) == (
        [[0.0], [1.0], [2.0]],
        [[3.0], [4.0], [5.0]],
    )
    assert (first["q_norm"].tolist(), second["q_norm"].tolist()) == ([0.0], [1.0])


@pytest.mark.parametrize(
    ("expand", "side", "named"),
    [({"fornt": {}}, FRONT, "'fornt'.*'front' and 'back'"), ({}, "middle", "asked for 'middle'"),
     ({"back": {"q": jnp.zeros((2, 1)), "k": jnp.zeros((1, 1))}}, BACK, "disagree.*'q': 2, 'k': 1")],
)  # fmt: skip
def test_a_block_that_would_not_run_is_refused(expand, side, named):
    with pytest.raises(ValueError, match=named):
        edge_blocks(Params({}, expand=expand), side)
