import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.adapt.language import make_language
from medkor_jax.adapt.lora import make_lora
from medkor_jax.model.config import LOCAL, preset
from medkor_jax.model.forward import (
    Inputs,
    LayerInputs,
    embed,
    forward,
    layer_inputs,
    make_view,
    project_logits,
    run_layer,
)
from medkor_jax.model.layers import rms_norm
from medkor_jax.model.params import ADAPTABLE, LayerPlan, Params, abstract_base
from medkor_jax.model.remat import KEPT

C = preset("tiny")
hidden_of = jax.jit(forward, static_argnames=("config", "dtype", "remat", "dropout"))
run = functools.partial(hidden_of, config=C, dtype=jnp.float32)


@pytest.fixture(scope="module")
def base(make_base):
    return make_base(C)


@pytest.fixture(scope="module")
def params(base, make_adapters):
    lang = {"vector": np.random.default_rng(5).standard_normal((2, C.d_model)).astype(np.float32)}
    return Params(base, lora=make_adapters(base), lang=lang, lora_scale=0.5)


@pytest.fixture(scope="module")
def inputs(make_batch):
    return Inputs.of(make_batch(C, rows=2, length=40))


def test_scan_equals_a_loop_over_layers(params, inputs):
    """The loop asks the config, not the plan, which layers are local, so a wrong plan shows."""
    view = make_view(C, inputs.seen)
    layers = layer_inputs(params, C, None)
    one = jax.jit(lambda layer, x: run_layer(C, view, layer, x, params.lora_scale))
    x = embed(params, C, inputs.tokens, inputs.langs, jnp.float32)
    for i, kind in enumerate(C.layer_kinds):
        layer = jax.tree.map(lambda leaf: leaf[i], layers)
        x = one(layer.replace(plan=LayerPlan(jnp.asarray(kind == LOCAL))), x)
    expected = rms_norm(x, params.base["final_norm"], C.rms_eps)
    np.testing.assert_allclose(run(params, inputs=inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("front", "back"), [(2, 1), (0, 2)])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_scan_equals_a_loop_with_layers_added_at_both_ends(
    params, inputs, make_blocks, front, back, remat
):
    """Dropout and adapters fall on the base's layers alone, with the keys they have in the model without the others."""
    expand = make_blocks(params.base, front, back)
    view = make_view(C, inputs.seen)
    key = jax.random.key(3)
    own = layer_inputs(params, C, key)
    one = jax.jit(lambda layer, x: run_layer(C, view, layer, x, params.lora_scale, 0.3))

    def added(side, i, kind):
        return LayerInputs(
            LayerPlan(jnp.asarray(kind == LOCAL)),
            jax.tree.map(lambda leaf: leaf[i], expand[side]),
            {},
            None,
        )

    layers = [added("front", i, C.layer_kinds[0]) for i in range(front)]
    layers += [jax.tree.map(lambda leaf: leaf[i], own) for i in range(7)]
    layers += [added("back", i, C.layer_kinds[-1]) for i in range(back)]
    x = embed(params, C, inputs.tokens, inputs.langs, jnp.float32)
    for layer in layers:
        x = one(layer, x)
    expected = rms_norm(x, params.base["final_norm"], C.rms_eps)
    found = run(
        params.replace(expand=expand), inputs=inputs, remat=remat, dropout=0.3, dropout_key=key
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - run(params, inputs=inputs, dropout=0.3, dropout_key=key)).max() > 0.3


def test_fresh_adapters_and_language_embeddings_change_no_bit(base, inputs):
    lora = make_lora(base, jax.random.key(0), rank=4, targets=ADAPTABLE)
    plain = run(Params(base), inputs=inputs)
    for trees in (
        {"lora": lora, "lang": make_language(C, kind="vector")},
        {"lang": make_language(C, kind="table")},
    ):
        np.testing.assert_array_equal(
            run(Params(base, **trees, lora_scale=2.0), inputs=inputs), plain
        )


@pytest.mark.parametrize("tree", ["lora", "lang", "expand"])
def test_what_would_never_be_applied_is_refused(params, inputs, tree):
    with pytest.raises(ValueError, match=rf"{tree} holds .*'q_proj'"):
        run(
            params.replace(**{tree: getattr(params, tree) | {"q_proj": params.base["layers"]}}),
            inputs=inputs,
        )


def test_language_embeddings_go_to_the_tokens_of_their_language(base, inputs):
    rng = np.random.default_rng(0)
    vector, table = rng.standard_normal((2, 32)), rng.standard_normal((2, C.vocab_size, 32))
    plain = embed(Params(base), C, inputs.tokens, inputs.langs, jnp.float32)
    np.testing.assert_allclose(plain, np.asarray(base["embed"])[inputs.tokens] * 32**0.5, rtol=1e-6)
    by_vector = embed(
        Params(base, lang={"vector": vector}), C, inputs.tokens, inputs.langs, jnp.float32
    )
    np.testing.assert_allclose(by_vector - plain, vector[inputs.langs], atol=1e-5)
    by_table = embed(
        Params(base, lang={"table": table}), C, inputs.tokens, inputs.langs, jnp.float32
    )
    np.testing.assert_allclose(by_table - plain, table[inputs.langs, inputs.tokens], atol=1e-5)
    assert set(np.unique(inputs.langs)) == {0, 1}


def test_packed_documents_equal_each_alone(params, inputs):
    packed = np.asarray(run(params, inputs=inputs))
    for row, segment in ((0, 1), (0, 2), (1, 2)):
        at = np.flatnonzero(inputs.segments[row] == segment)
        alone = Inputs(*(np.asarray(x)[row : row + 1, at] for x in (inputs.tokens, inputs.positions)),
                       np.ones((1, at.size), np.int32), np.asarray(inputs.langs)[row : row + 1, at])  # fmt: skip
        padded = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 40 - at.size))), alone)
        np.testing.assert_allclose(
            run(params, inputs=padded)[0, : at.size], packed[row, at], rtol=1e-4, atol=1e-4
        )
        assert at.size > 2


def test_later_tokens_change_nothing_before_them(params, inputs):
    changed = inputs.replace(tokens=inputs.tokens.copy())
    changed.tokens[:, 30:] = 7
    before, after = (np.asarray(run(params, inputs=x)) for x in (inputs, changed))
    np.testing.assert_array_equal(after[:, :30], before[:, :30])
    assert np.abs(after[:, 30:] - before[:, 30:]).max() > 0.1


@pytest.mark.parametrize("is_expanded", [False, True])
def test_every_remat_policy_gives_the_same_value_and_gradient_in_less_memory(
    params, inputs, make_blocks, is_expanded
):
    trees = {"lora": params.lora} | ({"expand": make_blocks(params.base)} if is_expanded else {})

    def loss(trees, remat):
        hidden = forward(params.replace(**trees), C, inputs, dtype=jnp.float32, remat=remat)
        return jnp.sum(jnp.sin(hidden))

    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    compiled = {remat: value_and_grad.lower(trees, remat).compile() for remat in KEPT}
    plain, plain_gradient = compiled["none"](trees)
    for remat in KEPT:
        again, gradient = compiled[remat](trees)
        np.testing.assert_allclose(again, plain, rtol=1e-6, err_msg=remat)
        for one, other in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max(), err_msg=remat)
    used = [c.memory_analysis().temp_size_in_bytes for c in compiled.values()]
    flops = [c.cost_analysis()["flops"] for c in compiled.values()]
    assert used == sorted(used, reverse=True) and used[-1] < 0.6 * used[0]
    assert flops == sorted(flops) and len(set(flops)) == len(KEPT)


def test_an_unknown_remat_policy_is_refused_before_anything_is_compiled(params, inputs):
    with pytest.raises(
        ValueError, match=r"'gate'.* none, gate_up, all_but_down, full; nearest: 'gate_up'"
    ):
        forward(params, C, inputs, dtype=jnp.float32, remat="gate")


def test_an_added_layer_costs_the_memory_of_a_layer(make_blocks, make_batch):
    """Joining it to the stack would copy the stack, in the forward and in the backward pass."""
    config = dataclasses.replace(C, layer_kinds=C.layer_kinds[:1] * 30)
    inputs = Inputs.of(make_batch(config, rows=1, length=16))
    params = Params(abstract_base(config, jnp.float32))
    expand = jax.eval_shape(
        lambda: make_blocks(jax.tree.map(lambda x: jnp.zeros(x.shape), params.base))
    )
    stack = sum(leaf.size * 4 for leaf in jax.tree.leaves(params.base["layers"]))

    def loss(expand, params):
        return jnp.sum(
            forward(params.replace(expand=expand), config, inputs, dtype=jnp.float32, remat="full")
        )

    used = (
        jax.jit(jax.grad(loss)).lower(expand, params).compile().memory_analysis().temp_size_in_bytes
    )
    assert used < 0.3 * stack


def test_dropout_is_off_unless_asked_and_follows_its_key(params, inputs):
    key, other = jax.random.split(jax.random.key(0))
    dropped = functools.partial(run, params, inputs=inputs, dropout=0.5)
    np.testing.assert_array_equal(
        run(params, inputs=inputs, dropout_key=key), run(params, inputs=inputs)
    )
    np.testing.assert_array_equal(dropped(dropout_key=key), dropped(dropout_key=key))
    assert np.abs(dropped(dropout_key=key) - dropped(dropout_key=other)).max() > 0.01
    np.testing.assert_array_equal(  # it falls on adapters alone
        run(Params(params.base), inputs=inputs, dropout=0.5, dropout_key=key),
        run(Params(params.base), inputs=inputs),
    )


def test_bfloat16_stays_near_float32_and_never_promotes(params, inputs):
    with jax.numpy_dtype_promotion("strict"):
        half = jax.jit(functools.partial(forward, config=C, dtype=jnp.bfloat16))(
            params, inputs=inputs
        )
        logits = project_logits(params.base, half)
    assert half.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    full = np.asarray(run(params, inputs=inputs))
    error = np.asarray(half, np.float32) - full
    assert np.sqrt((error**2).mean() / (full**2).mean()) < 0.03


def test_logits_go_through_the_tied_head(base):
    hidden = np.random.default_rng(0).standard_normal((3, C.d_model)).astype(np.float32)
    np.testing.assert_allclose(
        project_logits(base, hidden), hidden @ np.asarray(base["embed"]).T, atol=1e-4
    )


def test_layers_are_compiled_once_however_deep():
    """The program of a deep model is that of a shallow one: its text does not grow with L."""

    def n_lines(depth):
        config = dataclasses.replace(C, layer_kinds=C.layer_kinds[:1] * depth)
        ints = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        lower = jax.jit(functools.partial(forward, config=config, dtype=jnp.float32)).lower
        lowered = lower(
            Params(abstract_base(config, jnp.float32)), inputs=Inputs(ints, ints, ints, ints)
        )
        return len(lowered.as_text().splitlines())

    assert abs(n_lines(48) - n_lines(3)) < 5
