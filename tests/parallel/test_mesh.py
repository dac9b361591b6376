import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.adapt.language import KINDS, make_language
from medkor_jax.adapt.lora import make_lora
from medkor_jax.model.config import preset
from medkor_jax.model.params import ADAPTABLE, Params, abstract_base, leaf_paths
from medkor_jax.parallel.mesh import (
    RULES,
    MeshShape,
    batch_ways,
    check_batch,
    make_mesh,
    place_batch,
    shard_tree,
    spec_of,
    spread,
)
from medkor_jax.train.step import make_state
from medkor_jax.train.trainable import OptimizerRule, Schedule, make_optimizer, split

MESH = make_mesh(MeshShape(1, 2, 2), jax.devices())


@pytest.mark.parametrize(
    ("shape", "n_devices", "sizes"),
    [
        (MeshShape(), 4, (4, 1, 1)),
        (MeshShape(2, -1, 2), 8, (2, 2, 2)),
        (MeshShape(1, 2, 2), 4, (1, 2, 2)),
    ],
)
def test_one_axis_takes_the_devices_that_remain(shape, n_devices, sizes):
    assert shape.resolve(n_devices) == sizes


@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(-1, -1),
        MeshShape(0),
        MeshShape(3),
        MeshShape(-1, 3),
        MeshShape(2, 1, 1),
        MeshShape(-1, 8),
    ],
)
def test_a_mesh_that_does_not_use_every_device_is_refused(shape):
    with pytest.raises(ValueError, match="mesh"):
        make_mesh(shape, jax.devices())


def _every_leaf():
    """Returns the abstract parameters and optimizer state of a model that has everything, by path."""
    base = abstract_base(preset("tiny"), jnp.bfloat16)
    lora = jax.eval_shape(lambda: make_lora(base, jax.random.key(0), rank=4, targets=ADAPTABLE))
    lang = {}
    for kind in KINDS:
        lang |= jax.eval_shape(functools.partial(make_language, preset("tiny"), kind=kind))
    params = Params(base, lora=lora, lang=lang, expand=jax.eval_shape(make_expansion, base))
    trainable, frozen = split(params, ("lora", "lang", "expand"))
    optimizer = make_optimizer(
        (OptimizerRule("all", ".*", 1.0),), Schedule(10, 0, 0.1, 1.0), trainable
    )
    return leaf_paths((frozen, jax.eval_shape(functools.partial(make_state, optimizer), trainable)))


def test_every_leaf_has_exactly_one_rule_and_every_rule_a_leaf():
    leaves = {path: leaf for path, leaf in _every_leaf().items() if leaf.shape}
    assert len(leaves) == 15 + 3 * (14 + 4 + 26)  # the base; what learns, and its two moments
    in_int8 = leaf_paths({"base": abstract_base(preset("tiny"), jnp.int8)})
    assert len(in_int8) == 15 + 7  # of a matrix in int8 its values, and their scales
    leaves |= in_int8
    found = {path: [p for p, _ in RULES if re.search(rf"(^|/){p}$", path)] for path in leaves}
    assert {path: rules for path, rules in found.items() if len(rules) != 1} == {}
    assert {rules[0] for rules in found.values()} == {pattern for pattern, _ in RULES}


def test_moments_lie_where_their_parameters_lie():
    specs = {path: spec_of(path, leaf.shape, MESH) for path, leaf in _every_leaf().items()}
    moments = [path for path in specs if re.search(r"/(mu|nu)/", path)]
    assert len(moments) == 2 * (14 + 4 + 26)
    for path in moments:
        assert specs[path] == specs["1/trainable/" + re.split(r"/(?:mu|nu)/", path)[1]]


def test_added_layers_lie_as_the_layers_they_copy():
    specs = {path: spec_of(path, leaf.shape, MESH) for path, leaf in _every_leaf().items()}
    added = [path for path in specs if path.startswith("1/trainable/expand/")]
    assert len(added) == 26 and specs["1/trainable/expand/back/q"] == P(None, "fsdp", "tensor")
    for path in added:
        assert specs[path] == specs["0/base/layers/" + path.rsplit("/", 1)[1]], path


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("base/embed", (512, 32), P("tensor", "fsdp")),
        ("base/layers/q", (7, 32, 64), P(None, "fsdp", "tensor")),
        ("base/layers/down", (7, 64, 32), P(None, "tensor", "fsdp")),
        ("base/layers/down", (7, 64, 33), P(None, "tensor", None)),  # 33 is not split in two
        ("lora/o/a", (7, 64, 4), P(None, "tensor", None)),
        ("lora/gate/b", (7, 4, 64), P(None, None, "tensor")),
        ("base/final_norm", (32,), P()),
        ("step", (), P()),
    ],
)
def test_where_leaves_lie(path, shape, spec):
    assert spec_of(path, shape, MESH) == spec


@pytest.mark.parametrize(
    ("path", "shape"),
    [("lora/qq/a", (7, 32, 4)), ("base/layers/router", (7, 32, 4)), ("base/q", (32, 64))],
)
def test_a_leaf_without_a_decision_is_refused_by_name(path, shape):
    with pytest.raises(ValueError, match=path):
        spec_of(path, shape, MESH)


def test_batches_are_laid_over_data_and_fsdp_by_rows():
    mesh = make_mesh(MeshShape(2, 1, 2), jax.devices())
    rows = np.arange(24).reshape(8, 3)
    placed = place_batch({"tokens": rows}, mesh)["tokens"]
    np.testing.assert_array_equal(placed, rows)
    assert [shard.data.shape for shard in placed.addressable_shards] == [(4, 3)] * 4
    assert sorted({int(shard.data[0, 0]) for shard in placed.addressable_shards}) == [0, 12]


def test_activations_stay_on_the_batch_axes_of_the_mesh_in_force():
    with jax.set_mesh(make_mesh(MeshShape(2, 2, 1), jax.devices())):
        assert jax.jit(spread)(jnp.ones((8, 3))).sharding.spec == P(("data", "fsdp"))
        assert batch_ways() == 4
    assert batch_ways() == 1


def test_batch_size_must_divide_evenly():
    check_batch(16, 4, MESH)
    with pytest.raises(
        ValueError, match="batch_size 12 is not a multiple of 8 = data 1 x fsdp 2 x microbatches 4"
    ):
        check_batch(12, 4, MESH)


def test_a_tree_is_placed_leaf_by_leaf():
    tree = {"layers": {"q": jnp.ones((1, 4, 4))}}
    placed = jax.device_put(tree, shard_tree(tree, MESH))
    assert {s.data.shape for s in placed["layers"]["q"].addressable_shards} == {(1, 2, 2)}
