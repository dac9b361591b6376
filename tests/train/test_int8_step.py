"""A training step on a base in int8: the gradients of the dequantised one, on any mesh, and the base itself untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medkor_jax.model.config import preset
from medkor_jax.model.params import ADAPTABLE, Params, leaf_paths
from medkor_jax.model.quantized import dequantized, quantize
from medkor_jax.parallel.mesh import MeshShape, make_mesh, place_batch, shard_tree
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.retention import Retention
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import make_state, make_step, step_spec
from medkor_jax.train.trainable import split

C = preset("tiny")
SGD = optax.sgd(1.0)  # its update is the gradient itself
PLAIN = ComputeSettings("float32", "gate_up", chunk=20)
SPECS = {
    "text": step_spec(Stage(), PLAIN),
    "each layer": step_spec(
        Stage(next_token_weight=0.5, retention=Retention(weight=2.0, layers=3, positions=4)), PLAIN
    ),
    "microbatches": step_spec(Stage(microbatches=2), PLAIN),
}


@pytest.fixture(scope="module")
def int8(make_base, make_adapters, make_blocks):
    base = make_base(C)
    layers = base["layers"] | {name: quantize(base["layers"][name]) for name in ADAPTABLE}
    lang = {"vector": np.random.default_rng(5).standard_normal((2, C.d_model)).astype(np.float32)}
    params = Params({**base, "layers": layers}, lora=make_adapters(base), lang=lang, lora_scale=0.5)
    return params.replace(expand=make_blocks(base, front=1, back=1))


def on_floats(params):
    layers = {name: dequantized(leaf, jnp.float32) for name, leaf in params.base["layers"].items()}
    return params.replace(base={**params.base, "layers": layers})


def gradient_of(params, spec, batch, mesh, trees=("lora", "lang", "expand")):
    """Returns ({path: gradient}, metrics, the frozen base after the step)."""
    with jax.set_mesh(mesh):
        params = jax.device_put(params, shard_tree(params, mesh))
        reference = None
        if spec.retention is not None:
            reference = params.replace(lora={}, lang={}, expand={})
        trainable, frozen = split(params, trees)
        before = jax.tree.map(np.asarray, trainable)
        state = make_state(SGD, trainable)
        step = make_step(C, spec, SGD, shard_tree(state, mesh))
        state, metrics = step(state, frozen, reference, place_batch(batch, mesh))
        change = jax.tree.map(lambda a, b: a - np.asarray(b), before, state.trainable)
        return leaf_paths(change), jax.tree.map(np.asarray, metrics), frozen.base


@pytest.mark.parametrize("name", SPECS)
def test_gradients_are_those_of_the_dequantised_base(int8, make_batch, name):
    mesh = make_mesh(MeshShape(data=1), jax.devices()[:1])
    ours, said, base = gradient_of(int8, SPECS[name], make_batch(C), mesh)
    theirs, expected, _ = gradient_of(on_floats(int8), SPECS[name], make_batch(C), mesh)
    np.testing.assert_allclose(said["loss"], expected["loss"], rtol=1e-5)
    assert ours.keys() == theirs.keys() and any(path.startswith("lora/q") for path in ours)
    for path, gradient in theirs.items():
        assert np.abs(gradient).max() > 0, path
        np.testing.assert_allclose(
            ours[path], gradient, atol=1e-3 * np.abs(gradient).max(), err_msg=path
        )
    jax.tree.map(np.testing.assert_array_equal, base, int8.base)


@pytest.mark.parametrize(
    "shape", [MeshShape(data=1, fsdp=2, tensor=2), MeshShape(data=2, fsdp=2)], ids=str
)
def test_four_devices_take_the_step_of_one(int8, make_batch, shape):
    one = gradient_of(
        int8, SPECS["text"], make_batch(C), make_mesh(MeshShape(1), jax.devices()[:1])
    )
    four = gradient_of(int8, SPECS["text"], make_batch(C), make_mesh(shape))
    held = four[2]["layers"]["gate"]
    assert held.values.sharding.shard_shape(held.values.shape)[1] == C.d_model // 2
    for path, gradient in one[0].items():
        np.testing.assert_allclose(
            four[0][path], gradient, atol=2e-3 * np.abs(gradient).max(), err_msg=path
        )


def test_a_step_in_bfloat16_runs_in_it(int8, make_batch):
    """What is multiplied is bfloat16 on both ways through a layer: no product has a float32 and an int8 factor."""
    compute = ComputeSettings("bfloat16", "gate_up", chunk=20)
    mesh = make_mesh(MeshShape(data=1), jax.devices()[:1])
    ours, said, _ = gradient_of(int8, step_spec(Stage(), compute), make_batch(C), mesh)
    assert np.isfinite(said["loss"]) and all(np.isfinite(g).all() for g in ours.values())
    trainable, frozen = split(int8, ("lora",))
    state = make_state(SGD, trainable)
    step = make_step(C, step_spec(Stage(), compute), SGD)
    jaxpr = jax.make_jaxpr(step)(state, frozen, None, make_batch(C))
    widths = {(C.d_model, C.d_ff), (C.d_ff, C.d_model)}
    seen = [
        {str(v.aval.dtype) for v in equation.invars}
        for equation in products(jaxpr.jaxpr)
        if {v.aval.shape for v in equation.invars} & widths
    ]
    assert len(seen) >= 6 and all(dtypes == {"bfloat16"} for dtypes in seen), seen


def products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                    yield from products(inner)
