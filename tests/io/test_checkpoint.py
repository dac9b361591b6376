"""What is stored comes back bit for bit, and only what was asked for comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.io.checkpoint import (
    StageCheckpoints,
    abstract_like,
    digest_tree,
    restore_tree,
    save_tree,
    stored_shapes,
)
from medkor_jax.model.config import preset
from medkor_jax.train.step import make_state
from medkor_jax.train.trainable import OptimizerRule, Schedule, make_optimizer


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


def state_at(step):
    return {"w": jnp.full((2,), float(step)), "step": jnp.array(step, jnp.int32)}


def test_the_last_checkpoints_and_the_best_are_kept_with_their_cursors(tmp_path):
    with StageCheckpoints(tmp_path / "c", keep_last=2) as checkpoints:
        assert checkpoints.restore(abstract_like(state_at(0))) is None
        assert checkpoints.latest_step is checkpoints.best_step is None
        for step, nats in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None)):
            checkpoints.save(step, state_at(step), {"next": step * 10}, nats)
    with StageCheckpoints(tmp_path / "c", keep_last=2) as checkpoints:
        assert sorted(int(p.name) for p in (tmp_path / "c").iterdir()) == [2, 4, 5]
        assert (checkpoints.latest_step, checkpoints.best_step) == (5, 2)
        for step, expected in ((None, 5), (2, 2)):
            state, cursor = checkpoints.restore(abstract_like(state_at(0)), step)
            assert digest_tree(state) == digest_tree(state_at(expected))
            assert cursor == {"next": expected * 10}


def test_an_unfinished_checkpoint_is_not_taken(tmp_path):
    with StageCheckpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state_at(1), {"next": 1})
    (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
    with StageCheckpoints(tmp_path / "c") as checkpoints:
        state, cursor = checkpoints.restore(abstract_like(state_at(0)))
    assert int(state["step"]) == 1 and cursor == {"next": 1}


def test_added_layers_and_their_moments_are_resumed_bit_for_bit(tmp_path, make_base):
    trainable = {"expand": make_expansion(make_base(preset("tiny")), front=2, back=1)}
    optimizer = make_optimizer(
        (OptimizerRule("expand", r"expand/.*", 1e-4, weight_decay=0.1),),
        Schedule(10, 0, 0.1, 1.0),
        trainable,
    )
    state = make_state(optimizer, trainable)
    noise = iter(range(1000))
    state = jax.tree.map(lambda x: x + jnp.asarray(next(noise) / 7, x.dtype), state)
    with StageCheckpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, state, {"next": 24})
        checkpoints.wait()
        back, cursor = checkpoints.restore(abstract_like(make_state(optimizer, trainable)))
    assert digest_tree(back) == digest_tree(state) != digest_tree(make_state(optimizer, trainable))
    assert len(jax.tree.leaves(back.opt_state)) == 2 * 26 + 2 and cursor == {"next": 24}
