"""What is stored comes back bit for bit, and only what was asked for comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.io.checkpoint import (
    abstract_like,
    digest_tree,
    restore_tree,
    save_tree,
    stored_shapes,
)


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    values = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return {
        "lora": {"q": {"a": values(3, 4), "b": values(4, 2).astype(jnp.bfloat16)}},
        "count": jnp.array(7, jnp.int32),
    }


def test_a_tree_of_mixed_types_comes_back_bit_for_bit(tmp_path, tree):
    save_tree(tmp_path / "tree", tree)
    back = restore_tree(tmp_path / "tree", abstract_like(tree))
    assert digest_tree(back) == digest_tree(tree)
    assert back["lora"]["q"]["b"].dtype == jnp.bfloat16
    shapes = stored_shapes(tmp_path / "tree")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tree
    )


def test_saving_again_replaces(tmp_path, tree):
    save_tree(tmp_path / "tree", tree)
    doubled = jax.tree.map(lambda x: x * 2, tree)
    save_tree(tmp_path / "tree", doubled)
    assert digest_tree(restore_tree(tmp_path / "tree", abstract_like(tree))) == digest_tree(doubled)


def test_other_names_and_shapes_are_refused_by_name(tmp_path, tree):
    save_tree(tmp_path / "tree", tree)
    abstract = abstract_like(tree)
    with pytest.raises(ValueError, match=r"lacks \['extra'\]"):
        restore_tree(tmp_path / "tree", abstract | {"extra": abstract["count"]})
    with pytest.raises(ValueError, match=r"unknown \['count'\]"):
        restore_tree(tmp_path / "tree", {"lora": abstract["lora"]})
    q = abstract["lora"]["q"]
    wrong = jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=q["a"].sharding)
    with pytest.raises(ValueError, match=r"lora/q/a is \(3, 4\), expected \(4, 3\)"):
        restore_tree(tmp_path / "tree", abstract | {"lora": {"q": {"a": wrong, "b": q["b"]}}})


def test_a_digest_depends_on_names_shapes_types_and_every_value(tree):
    a = jnp.arange(4.0)
    different = [
        {"x": a},
        {"y": a},
        {"x": a.reshape(2, 2)},
        {"x": a.astype(jnp.int32)},
        {"x": a.at[3].set(3.0000002)},
        {},
    ]
    assert len({digest_tree(t) for t in different}) == len(different)
    assert digest_tree({"x": a, "y": 2 * a}) == digest_tree(
        {"y": np.asarray(2 * a), "x": np.asarray(a)}
    )
