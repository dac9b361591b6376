import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.model.config import preset
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params, abstract_base
from medkor_jax.parallel.mesh import MeshShape, make_mesh, place_batch, shard_tree
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.retention import Retention
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import (
    StepSpec,
    make_divergence,
    make_evaluation,
    make_state,
    make_step,
    step_spec,
)
from medkor_jax.train.trainable import OptimizerRule, Schedule, make_optimizer, split

C = preset("tiny")
SGD = optax.sgd(
    1.0
)  # its update is the gradient itself, so runs compare without Adam blowing up rounding
PLAIN = ComputeSettings("float32", "none", chunk=20)
TEXT = step_spec(Stage(), PLAIN)
BOTH = step_spec(
    Stage(next_token_weight=0.5, retention=Retention(weight=2.0, layers=3, positions=4)), PLAIN
)


@pytest.fixture(scope="module")
def params(make_base, make_adapters):
    base = make_base(C)
    lang = {"vector": np.random.default_rng(5).standard_normal((2, C.d_model)).astype(np.float32)}
    return Params(base, lora=make_adapters(base), lang=lang, lora_scale=0.5)


@pytest.fixture(scope="module")
def expanded(params, make_blocks):
    return params.replace(expand=make_blocks(params.base, front=2, back=1))


@pytest.fixture(scope="module")
def reference(params, make_adapters):
    return Params(
        params.base, lora=make_adapters(params.base, seed=1, rank=2, targets=("v",)), lora_scale=1.5
    )


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(C)


@pytest.fixture(scope="module")
def run(params, reference, batch):
    """run(spec, shape, n_devices, n_steps=1) -> (new trees, metrics of each step, the jitted step), all as NumPy.

    model: whose non-empty small trees learn, by default `params`.
    """

    steps = {}

    def run(
        spec,
        shape=MeshShape(),
        n_devices=1,
        n_steps=1,
        optimizer=SGD,
        first_step=0,
        model=params,
        of=batch,
    ):
        mesh = make_mesh(shape, jax.devices()[:n_devices])
        trainable, frozen = split(model, tuple(trees_of(model)))
        with jax.set_mesh(mesh), jax.numpy_dtype_promotion("strict"):
            state = make_state(optimizer, jax.tree.map(jnp.array, trainable)).replace(
                step=jnp.int32(first_step)
            )
            shardings = shard_tree(state, mesh)
            step = steps.setdefault(
                (spec, shape, optimizer, tuple(trainable)), make_step(C, spec, optimizer, shardings)
            )
            state, frozen = (
                jax.device_put(state, shardings),
                jax.device_put(frozen, shard_tree(frozen, mesh)),
            )
            held = (
                jax.device_put(reference, shard_tree(reference, mesh)) if spec.retention else None
            )
            if held:
                held = held.replace(base=frozen.base)
            metrics = []
            for _ in range(n_steps):
                state, m = step(state, frozen, held, place_batch(of, mesh))
                metrics.append(jax.tree.map(np.asarray, m))
        return jax.tree.map(np.asarray, state), metrics, step

    return run


def changed_to(spec, **changes):
    """`spec` with other fields, of its own or of how it is computed."""
    own = {name: changes.pop(name) for name in ("microbatches", "dropout") if name in changes}
    return dataclasses.replace(spec, compute=dataclasses.replace(spec.compute, **changes), **own)


def trees_of(params):
    return {
        name: getattr(params, name) for name in ("lora", "lang", "expand") if getattr(params, name)
    }


@pytest.fixture(scope="module")
def whole(run):
    return run(BOTH)


@pytest.fixture(scope="module")
def whole_expanded(run, expanded):
    return run(BOTH, model=expanded)


def assert_same(one, other, params):
    """Losses to 1e-5 and gradients to 1e-4 of the largest of each leaf: float32 sums in another order."""
    (state, metrics, _), (other_state, other_metrics, _) = one, other
    assert metrics[0].keys() == other_metrics[0].keys()
    for name in metrics[0]:
        np.testing.assert_allclose(
            metrics[0][name], other_metrics[0][name], rtol=2e-5, atol=1e-6, err_msg=name
        )
    before = trees_of(params)
    for x, y, start in zip(
        *map(jax.tree.leaves, (state.trainable, other_state.trainable, before)), strict=True
    ):
        gradient = np.abs(y - start).max()
        assert gradient > 1e-4
        np.testing.assert_allclose(x, y, atol=1e-4 * gradient + 2e-7)


@pytest.mark.parametrize(
    ("changed", "shape", "n_devices"),
    [
        (dict(microbatches=4), MeshShape(), 1),
        (dict(remat="gate_up"), MeshShape(), 1),
        (dict(), MeshShape(data=4), 4),
        (dict(microbatches=2, remat="full"), MeshShape(data=1, fsdp=2, tensor=2), 4),
    ],
    ids=["4 microbatches", "gate_up", "4 devices", "fsdp x tensor, 2 microbatches, full remat"],
)
def test_the_same_step_however_it_is_cut(run, whole, params, changed, shape, n_devices):
    assert_same(run(changed_to(BOTH, **changed), shape, n_devices), whole, params)


@pytest.mark.parametrize(
    ("changed", "shape", "n_devices"),
    [
        (dict(microbatches=4, remat="all_but_down"), MeshShape(), 1),
        (dict(microbatches=2), MeshShape(data=1, fsdp=2, tensor=2), 4),
    ],
    ids=["4 microbatches, all_but_down", "fsdp x tensor, 2 microbatches"],
)
def test_added_layers_learn_the_same_however_the_step_is_cut(
    run, whole_expanded, expanded, changed, shape, n_devices
):
    drawn = np.isfinite(whole_expanded[1][0]["layer_kl_nats"])
    assert drawn.shape == (C.n_layers + 1,) and drawn.sum() == BOTH.retention.layers
    assert_same(
        run(changed_to(BOTH, **changed), shape, n_devices, model=expanded), whole_expanded, expanded
    )


def test_loss_is_the_sum_over_loss_tokens_by_their_number(whole, params, batch):
    """Against whole logits in NumPy; rows carry 1 to 10 losses, so means of rows would differ."""
    hidden = jax.jit(functools.partial(forward, config=C, dtype=jnp.float32))(
        params, inputs=Inputs.of(batch)
    )
    logits = np.asarray(project_logits(params.base, hidden), np.float64)
    logits = np.take_along_axis(logits, batch["loss_positions"][..., None], axis=1)
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, batch["targets"][..., None], axis=2)[..., 0]
    expected = (nll * batch["loss_weights"]).sum() / batch["loss_weights"].sum()
    metrics = whole[1][0]
    assert metrics["next_token_nats"] == pytest.approx(expected, rel=1e-5)
    assert metrics["loss_tokens"] == batch["loss_weights"].sum()
    assert metrics["loss"] == pytest.approx(
        0.5 * metrics["next_token_nats"] + 2.0 * metrics["retention_nats"], rel=1e-5
    )
    each = np.asarray(make_evaluation(C, PLAIN)(params, batch))
    weights = batch["loss_weights"]
    np.testing.assert_allclose(each * weights, nll * weights, rtol=1e-4, atol=1e-5)


def test_divergence_is_the_kl_of_whole_distributions(params, reference, batch):
    found = np.asarray(make_divergence(C, PLAIN)(params, reference, batch))
    positions, weights = batch["loss_positions"][..., None], batch["loss_weights"]

    def log_p(model):
        hidden = forward(model, C, Inputs.of(batch), dtype=jnp.float32)
        every = jax.nn.log_softmax(project_logits(model.base, hidden))
        return np.take_along_axis(np.asarray(every, np.float64), positions, axis=1)

    kept, moved = log_p(reference), log_p(params)
    expected = (np.exp(kept) * (kept - moved)).sum(-1)
    assert (expected * weights).max() > 1e-3
    np.testing.assert_allclose(found * weights, expected * weights, rtol=1e-3, atol=2e-6)
    same = np.asarray(make_divergence(C, PLAIN)(params, params, batch))
    np.testing.assert_allclose(same * weights, 0.0, atol=2e-6)


def test_the_update_is_the_gradient_of_that_loss(run, params, batch):
    """Against automatic differentiation through whole logits."""
    state, metrics, _ = run(TEXT)

    def naive(trees):
        hidden = forward(params.replace(**trees), C, Inputs.of(batch), dtype=jnp.float32)
        log_p = jax.nn.log_softmax(project_logits(params.base, hidden))
        rows = jnp.arange(8)[:, None]
        log_p = log_p[rows, batch["loss_positions"], batch["targets"]]
        return -(log_p * batch["loss_weights"]).sum() / batch["loss_weights"].sum()

    before = {"lora": params.lora, "lang": params.lang}
    loss, gradient = jax.jit(jax.value_and_grad(naive))(before)
    assert metrics[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics[0]["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
    for old, new, expected in zip(
        *map(jax.tree.leaves, (before, state.trainable, gradient)), strict=True
    ):
        np.testing.assert_allclose(old - new, expected, atol=1e-4 * np.abs(expected).max() + 2e-7)


def test_some_documents_are_learnt_and_others_held(run, params, batch):
    """One step on both is the sum of a step that learns from the first and one that holds the second to the reference."""
    learnt, held = batch["loss_weights"].copy(), batch["loss_weights"].copy()
    learnt[1::2], held[::2] = 0.0, 0.0
    assert learnt.any() and held.any()
    retention = Retention(weight=2.0, layers=3, positions=4)
    alone = {
        "learnt": (step_spec(Stage(next_token_weight=0.5), PLAIN), learnt),
        "held": (step_spec(Stage(next_token_weight=0.0, retention=retention), PLAIN), held),
    }
    moved = {
        name: jax.tree.map(
            lambda new, old: new - old,
            run(spec, of=batch | {"loss_weights": weights})[0].trainable,
            trees_of(params),
        )
        for name, (spec, weights) in alone.items()
    }
    mixed = batch | {"loss_weights": learnt, "held_weights": held}
    for spec, shape, n_devices in (
        (BOTH, MeshShape(), 1),
        (changed_to(BOTH, microbatches=2), MeshShape(data=2, fsdp=2), 4),
    ):
        both = run(spec, shape, n_devices, of=mixed)[0].trainable
        for new, old, one, other in zip(
            *map(jax.tree.leaves, (both, trees_of(params), moved["learnt"], moved["held"])),
            strict=True,
        ):
            largest = max(np.abs(one).max(), np.abs(other).max())
            assert largest > 0
            np.testing.assert_allclose(new - old, one + other, atol=1e-4 * largest)


def test_randomness_follows_the_step_and_nothing_else(run):
    """Nothing learns here (rate 0), so a loss that moves is dropout and the drawn layers and positions."""
    still = optax.sgd(0.0)
    spec = dataclasses.replace(BOTH, dropout=0.3)
    _, (first, second), _ = run(spec, n_steps=2, optimizer=still)
    assert abs(first["next_token_nats"] - second["next_token_nats"]) > 1e-4  # dropout
    drawn = [np.isfinite(m["layer_kl_nats"]) for m in (first, second)]
    assert drawn[0].sum() == drawn[1].sum() == 3 and (drawn[0] != drawn[1]).any()
    _, (again,), _ = run(spec, optimizer=still, first_step=1)  # as after a resume
    for name in second:
        np.testing.assert_array_equal(again[name], second[name])


@pytest.fixture(scope="module")
def adam(params):
    return make_adam(params)


def make_adam(params):
    groups = tuple(OptimizerRule(name, rf"{name}/.*", 1e-2) for name in trees_of(params))
    optimizer = make_optimizer(groups, Schedule(10, 2, 0.1, 1.0), trees_of(params))

    def update(*args):
        with jax.numpy_dtype_promotion(
            "standard"
        ):  # optax's Adam raises a float to an int32; the rest stays strict
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


@pytest.mark.parametrize("is_expanded", [False, True])
def test_training_learns_compiles_once_and_leaves_the_base_alone(run, params, adam, is_expanded):
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params.base)]
    model = params.replace(expand=make_expansion(params.base)) if is_expanded else params
    state, metrics, step = run(
        TEXT, MeshShape(data=1, fsdp=2, tensor=2), 4, n_steps=3,
        optimizer=make_adam(model) if is_expanded else adam, model=model,
    )  # fmt: skip
    for old, new in zip(
        *map(jax.tree.leaves, (model.expand, state.trainable.get("expand", {}))), strict=True
    ):
        assert (
            np.abs(new - old).max() > 1e-5
        )  # the norms in the first step, the rest as soon as those have moved
    assert step._cache_size() == 1
    assert metrics[2]["loss"] < metrics[0]["loss"] - 0.1 and state.step == 3
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params.base)] == before


def test_a_step_lowers_from_shapes_alone_and_returns_what_learns_in_place(params):
    """Outputs are the state and a few numbers; every byte of the state lies where the donated one lay."""
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    abstract = jax.eval_shape(lambda: params.replace(base={}))
    base = abstract_base(C, jnp.bfloat16)
    abstract = abstract.replace(
        base=base, expand=jax.eval_shape(functools.partial(make_expansion, front=2), base)
    )
    trainable, frozen = split(abstract, ("lora", "lang", "expand"))
    adam = make_adam(abstract)
    i32, f32 = (
        functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.int32, jnp.float32)
    )
    batch = {name: i32((8, 24)) for name in ("tokens", "positions", "segment_ids", "langs")}
    batch |= {"loss_positions": i32((8, 5)), "targets": i32((8, 5)), "loss_weights": f32((8, 5))}
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("strict"):
        state = jax.eval_shape(functools.partial(make_state, adam), trainable)
        spec = step_spec(
            Stage(retention=Retention(weight=1.0), microbatches=2, dropout=0.1), ComputeSettings()
        )
        lowered = make_step(C, spec, adam, shard_tree(state, mesh)).lower(
            state, frozen, Params(frozen.base), batch
        )
        out_state, metrics = lowered.out_info
    as_shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert as_shapes(out_state) == as_shapes(state)
    assert {leaf.dtype for leaf in jax.tree.leaves((out_state.trainable, metrics))} == {
        jnp.dtype("float32")
    }
    memory = lowered.compile().memory_analysis()
    n_bytes = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    state_bytes = n_bytes(state)
    assert memory.alias_size_in_bytes == state_bytes
    table = 16 * len(
        jax.tree.leaves(lowered.out_info)
    )  # a pointer an output, and the metrics themselves
    assert state_bytes <= memory.output_size_in_bytes < state_bytes + table
    given = (
        state_bytes + n_bytes(frozen) + n_bytes(batch)
    )  # the base once, though the reference stands on it too
    assert (
        given
        <= memory.argument_size_in_bytes
        < given + 64 * len(jax.tree.leaves((state, frozen, batch)))
    )


def test_a_donated_state_is_gone(params):
    trainable, frozen = split(params, ("lang",))
    optimizer = optax.sgd(1.0)
    state = make_state(optimizer, jax.tree.map(jnp.array, trainable))
    batch = {
        name: np.zeros((2, 4), np.int32) for name in ("tokens", "positions", "segment_ids", "langs")
    }
    batch |= {"loss_positions": np.zeros((2, 1), np.int32), "targets": np.ones((2, 1), np.int32)}
    batch["loss_weights"] = np.ones((2, 1), np.float32)
    make_step(C, TEXT, optimizer)(state, frozen, None, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))
    assert not any(
        leaf.is_deleted() for leaf in jax.tree.leaves(frozen) if isinstance(leaf, jax.Array)
    )


@pytest.mark.parametrize(
    ("kind", "wrong", "named"),
    [
        (ComputeSettings, {"dtype": "float16"}, "float16 overflows"), (ComputeSettings, {"remat": True}, 'use "full"'),
        (StepSpec, {"terms": (), "compute": PLAIN}, "nothing would be learnt"),
    ],
)  # fmt: skip
def test_impossible_steps_are_refused(kind, wrong, named):
    with pytest.raises(ValueError, match=named):
        kind(**wrong)
