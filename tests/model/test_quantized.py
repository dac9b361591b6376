"""Matrices in int8: how far off they are, and that everything that reads them computes what their dequantised form gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.adapt.lora import merge, merge_in_place
from medkor_jax.model.config import preset
from medkor_jax.model.decode import Decoder
from medkor_jax.model.dtypes import check_dtype, check_param_dtype, float_of
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import (
    ADAPTABLE,
    Params,
    abstract_base,
    leaf_paths,
    matrix_paths,
)
from medkor_jax.model.quantized import Quantized, dequantized, product, quantize, rounded
from medkor_jax.parallel.mesh import MeshShape, make_mesh, shard_tree

C = preset("tiny")


def in_int8(base):
    layers = base["layers"]
    return {**base, "layers": layers | {name: quantize(layers[name]) for name in ADAPTABLE}}


def in_float(base):
    layers = {name: dequantized(leaf, jnp.float32) for name, leaf in base["layers"].items()}
    return {**base, "layers": layers}


@pytest.fixture(scope="module")
def base(make_base):
    return in_int8(make_base(C))


@pytest.fixture(scope="module")
def both(base, make_adapters, make_blocks):
    """The same model on int8 and on the float matrices that int8 stands for, with every tree beside it."""
    lang = {"vector": np.random.default_rng(5).standard_normal((2, C.d_model)).astype(np.float32)}
    params = Params(base, lora=make_adapters(base), lang=lang, lora_scale=0.5)
    params = params.replace(expand=make_blocks(in_float(base), front=1, back=1))
    return params, params.replace(base=in_float(base))


def test_a_channel_is_off_by_half_a_step_of_its_own_at_most():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 40, 24)).astype(np.float32) * np.exp(rng.normal(size=(3, 1, 24)))
    w = w.astype(np.float32)
    w[1, :, 5] = 0
    held = quantize(jnp.asarray(w))
    assert held.values.dtype == jnp.int8 and held.scale.dtype == jnp.float32
    assert held.shape == (3, 40, 24) and held.scale.shape == (3, 1, 24)
    largest = np.abs(w).max(axis=1, keepdims=True)
    np.testing.assert_allclose(held.scale, largest / 127, rtol=1e-6)
    error = np.abs(np.asarray(dequantized(held, jnp.float32)) - w)
    assert (error <= largest / 254 * (1 + 1e-5)).all()
    assert error.max() > 0.9 * (largest / 254).max(), "the bound is no looser than it has to be"
    assert (
        np.abs(np.asarray(held.values)).max(axis=1).min(where=largest[:, 0] > 0, initial=127) == 127
    )
    assert (np.asarray(held.values)[1, :, 5] == 0).all() and held.scale[1, 0, 5] == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numpy_and_jax_round_alike(dtype):
    w = np.random.default_rng(1).standard_normal((16, 50)).astype(dtype)
    for ours, theirs in zip(rounded(w, axis=-1), rounded(jnp.asarray(w), axis=-1), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_scales_are_float32_whatever_the_weights_are():
    held = quantize(jnp.full((4, 2), 0.1, jnp.bfloat16))
    assert held.scale.dtype == jnp.float32
    np.testing.assert_array_equal(
        dequantized(held, jnp.bfloat16), np.full((4, 2), 0.1, jnp.bfloat16)
    )


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 2**-18), (jnp.bfloat16, 2**-8)])
def test_a_product_is_rounded_once(dtype, bound):
    """In bfloat16 the values are exact and the scale stands behind the sum: one rounding, of the result."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((2, 5, 64)), dtype)
    held = quantize(jnp.asarray(rng.standard_normal((64, 48)), jnp.float32))
    exact = np.asarray(x, np.float64) @ (
        np.asarray(held.values, np.float64) * np.asarray(held.scale, np.float64)
    )
    found = product(x, held)
    assert found.dtype == dtype
    off = np.abs(np.asarray(found, np.float64) - exact)
    assert (off <= bound * np.abs(exact) + 1e-6 * np.abs(exact).max()).all()


def test_the_gradient_is_that_of_the_dequantised_matrix_and_of_x_alone():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((2, 5, 64)), jnp.float32)
    held = quantize(jnp.asarray(rng.standard_normal((64, 48)), jnp.float32))
    loss = lambda w, x: jnp.sum(jnp.sin(product(x, w)))
    ours, theirs = (jax.grad(loss, argnums=1)(w, x) for w in (held, dequantized(held, jnp.float32)))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_the_abstract_base_has_int8_matrices_and_bfloat16_beside_them():
    base = abstract_base(C, jnp.int8)
    found = matrix_paths(base)
    for path, leaf in matrix_paths(abstract_base(C, jnp.bfloat16)).items():
        if path.removeprefix("layers/") in ADAPTABLE:
            assert isinstance(found[path], Quantized) and found[path].shape == leaf.shape
            assert found[path].values.dtype == jnp.int8 and found[path].scale.dtype == jnp.float32
        else:
            assert found[path] == leaf
    assert found.keys() == matrix_paths(abstract_base(C, jnp.bfloat16)).keys()


def test_values_and_scales_are_cut_alike():
    mesh = make_mesh(MeshShape(data=1, fsdp=2, tensor=2))
    for path, place in matrix_paths(shard_tree(abstract_base(C, jnp.int8), mesh)).items():
        if isinstance(place, Quantized):
            assert place.values.spec[-1] == place.scale.spec[-1] is not None, path
            assert place.scale.spec[-2] is None, path


def inputs_of(batch):
    return Inputs.of(jax.tree.map(jnp.asarray, batch))


def test_the_forward_pass_is_that_of_the_dequantised_model(both, make_batch):
    read = jax.jit(functools.partial(forward, config=C, dtype=jnp.float32))
    inputs = inputs_of(make_batch(C))
    ours, theirs = (read(params, inputs=inputs) for params in both)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())
    logits = [project_logits(p.base, h) for p, h in zip(both, (ours, theirs), strict=True)]
    np.testing.assert_allclose(*logits, atol=2e-4 * np.abs(logits[1]).max())


def test_decoding_with_the_cache_writes_what_full_passes_would(both):
    """Greedy text of int8 weights: each token is the best of a full pass of the dequantised model, but for rounding."""
    prompts = [[3, 14, 15, 92, 65], [35, 89, 79]]
    written = Decoder(C, dtype=jnp.float32).generate(both[0], prompts, max_new_tokens=24)
    for prompt, completion in zip(prompts, written, strict=True):
        row = jnp.asarray([[*prompt, *completion.tokens]])
        ones, at = jnp.ones_like(row), jnp.arange(row.shape[1])[None]
        hidden = forward(both[1], C, Inputs(row, at, ones, 0 * row), dtype=jnp.float32)
        logits = np.asarray(project_logits(both[1].base, hidden))[0, len(prompt) - 1 : -1]
        regret = logits.max(-1) - logits[np.arange(len(completion.tokens)), list(completion.tokens)]
        assert len(completion.tokens) == 24 and regret.max() < 1e-3 * np.abs(logits).max()


def test_it_is_the_dequantised_model_and_not_the_one_before(both, make_base, make_batch):
    """Against the unquantised weights it is off by int8's steps, which is more: what is compared above is not nothing."""
    read = jax.jit(functools.partial(forward, config=C, dtype=jnp.float32))
    inputs = inputs_of(make_batch(C))
    exact, dequantised = read(both[0], inputs=inputs), read(both[1], inputs=inputs)
    before = read(both[1].replace(base=make_base(C)), inputs=inputs)
    off = lambda a, b: float(jnp.sqrt(jnp.mean((a - b) ** 2)))
    assert off(exact, dequantised) < 0.01 * off(exact, before)


def test_added_layers_are_what_the_int8_layer_computes_with(base):
    """A plain duplicate of a layer in int8 is its dequantised form, in the dtype that trains."""
    copies = make_expansion(base, front=2, back=1, init="copy")
    floats = in_float(base)["layers"]
    for side, at in (("front", 0), ("back", -1)):
        for name, leaf in copies[side].items():
            assert leaf.dtype == jnp.float32 and isinstance(leaf, jax.Array)
            for one in leaf:
                np.testing.assert_array_equal(one, floats[name][at], err_msg=name)
    abstract = jax.eval_shape(functools.partial(make_expansion, front=2, back=1, init="copy"), base)
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, copies)


def test_an_adapter_is_not_merged_into_int8(base, make_adapters):
    with pytest.raises(ValueError, match="'q' is in int8.*full-precision"):
        merge(base, make_adapters(base, targets=("q",)), scale=0.5)


def test_merging_in_place_is_merging(make_base, make_adapters):
    plain = make_base(C)
    adapters = jax.tree.map(jnp.asarray, make_adapters(plain))
    kept = merge(plain, adapters, scale=0.5)
    copied = jax.tree.map(jnp.copy, plain)
    used_up = merge_in_place(copied, adapters, scale=0.5)
    jax.tree.map(np.testing.assert_array_equal, kept, used_up)
    assert copied["layers"]["q"].is_deleted() and not plain["layers"]["q"].is_deleted()
    assert not copied["embed"].is_deleted()


def widened(jaxpr, shapes):
    """Yields the float arrays of `shapes` that a jaxpr makes, in calls and loops too."""
    plain = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in plain.eqns:
        for v in equation.outvars:
            if v.aval.shape in shapes and jnp.issubdtype(v.aval.dtype, jnp.floating):
                yield equation.primitive.name, v.aval
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if isinstance(getattr(inner, "jaxpr", inner), core.Jaxpr):
                    yield from widened(inner, shapes)


@pytest.mark.parametrize("remat", ["none", "gate_up", "full"])
def test_no_stack_of_matrices_is_ever_widened(both, make_batch, remat):
    """Forward and backward: a float array of a whole stack's shape is made nowhere, as it is once one is asked for."""
    params, inputs = both[0], inputs_of(make_batch(C))
    shapes = {params.base["layers"][name].shape for name in ADAPTABLE}

    def loss(lora, params):
        params = params.replace(lora=lora)
        hidden = forward(params, C, inputs, dtype=jnp.bfloat16, remat=remat)
        return jnp.sum(hidden.astype(jnp.float32))

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params.lora, params)
    assert not list(widened(jaxpr, shapes))
    compiled = jax.jit(jax.grad(loss)).lower(params.lora, params).compile()
    hlo = compiled.as_text()
    for shape in shapes:
        sizes = ",".join(map(str, shape))
        assert f"s8[{sizes}]" in hlo
        assert f"bf16[{sizes}]" not in hlo and f"f32[{sizes}]" not in hlo
    asked = jax.make_jaxpr(lambda p: dequantized(p.base["layers"]["q"], jnp.bfloat16))(params)
    assert list(widened(asked, shapes))


@pytest.mark.parametrize("name", ["int4", "nf4"])
def test_four_bits_are_refused_with_a_sentence(name):
    with pytest.raises(
        ValueError, match=f"param_dtype is '{name}'; weights are held in 8 bits.*'int8'"
    ):
        check_param_dtype(name)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="'float16'; expected 'float32', 'bfloat16' or 'int8'"):
        check_param_dtype("float16")
    with pytest.raises(
        ValueError, match="dtype is 'int8'.*frozen weights alone: param_dtype='int8'"
    ):
        check_dtype("int8")
    check_param_dtype(jnp.dtype("int8"))
    assert [float_of(one) for one in ("int8", jnp.dtype("int8"), "float32")] == [
        "bfloat16",
        "bfloat16",
        "float32",
    ]


def test_paths_name_both_parts_of_a_matrix(base):
    assert {"layers/q/values", "layers/q/scale"} <= leaf_paths(base).keys()
    assert "layers/q" in matrix_paths(base)
