import jax
import jax.numpy as jnp

from medkor_jax.model.config import preset
from medkor_jax.model.params import abstract_base, leaf_paths, make_plan, n_leaves_and_params


def test_base_has_the_documented_shapes():
    c = preset("tiny")
    n, d, f, q, kv = 7, 32, 64, 4 * 16, 2 * 16
    assert {path: leaf.shape for path, leaf in leaf_paths(abstract_base(c, jnp.bfloat16)).items()} == {
        "embed": (512, d),
        "final_norm": (d,),
        **{f"layers/{name}_norm": (n, d) for name in ("pre_attn", "post_attn", "pre_ffw", "post_ffw")},
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
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_base(c, jnp.bfloat16))} == {jnp.dtype("bfloat16")}


def test_plan_marks_the_sixth_layer_global():
    assert make_plan(preset("tiny")).is_local.tolist() == [True] * 5 + [False, True]


def test_counts_leaves_and_parameters():
    assert n_leaves_and_params({"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(4)}}) == (2, 10)
