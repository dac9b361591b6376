"""The policy loss against whole logits, and the step that carries it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medkor_jax.model.config import preset
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params, abstract_base
from medkor_jax.parallel.mesh import MeshShape, make_mesh, place_batch, shard_tree
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.next_token import NextToken
from medkor_jax.train.policy import Policy, PolicyLoss, policy_sums
from medkor_jax.train.retention import Retention
from medkor_jax.train.reward_settings import RolloutSettings
from medkor_jax.train.step import StepSpec, make_scoring, make_state, make_step
from medkor_jax.train.trainable import split

C = preset("tiny")
SGD = optax.sgd(1.0)  # its update is the gradient itself
POLICY = PolicyLoss(clip_low=0.2, clip_high=0.3, kl_weight=0.5)
TEMPERATURE = 1.3
PLAIN = ComputeSettings("float32", "none", chunk=20)
SPEC = StepSpec((Policy(POLICY, TEMPERATURE),), PLAIN)


@pytest.fixture(scope="module")
def params(make_base, make_adapters):
    base = make_base(C)
    return Params(base, lora=make_adapters(base, targets=("v", "down")), lora_scale=0.5)


@pytest.fixture(scope="module")
def batch(make_batch, params):
    """Advantages of both signs, and a behaviour near enough that some ratios are clipped and some are not."""
    batch, rng = make_batch(C), np.random.default_rng(1)
    is_real = batch["loss_weights"] > 0
    nats = np.asarray(make_scoring(C, SPEC)(params, batch))
    batch["advantages"] = (is_real * rng.standard_normal((8, 1))).astype(np.float32)
    batch["behaviour_nats"] = (is_real * (nats + 0.4 * rng.standard_normal(nats.shape))).astype(
        np.float32
    )
    batch["importance"] = np.ones_like(nats)
    batch["reference_nats"] = (is_real * (nats + rng.standard_normal(nats.shape))).astype(
        np.float32
    )
    return batch


@pytest.fixture(scope="module")
def run(params, batch):
    def run(spec, shape=MeshShape(), n_devices=1, batch=batch):
        mesh = make_mesh(shape, jax.devices()[:n_devices])
        trainable, frozen = split(params, ("lora",))
        with jax.set_mesh(mesh), jax.numpy_dtype_promotion("strict"):
            state = make_state(SGD, jax.tree.map(jnp.array, trainable))
            shardings = shard_tree(state, mesh)
            state, frozen = (
                jax.device_put(state, shardings),
                jax.device_put(frozen, shard_tree(frozen, mesh)),
            )
            reference = frozen.replace(lora={}) if spec.retention else None
            state, metrics = make_step(C, spec, SGD, shardings)(
                state, frozen, reference, place_batch(batch, mesh)
            )
        return jax.tree.map(np.asarray, (state.trainable, metrics))

    return run


@pytest.fixture(scope="module")
def whole(run):
    return run(SPEC)


def naive_log_p(lora, params, batch):
    hidden = forward(params.replace(lora=lora), C, Inputs.of(batch), dtype=jnp.float32)
    log_p = jax.nn.log_softmax(project_logits(params.base, hidden) / TEMPERATURE)
    return log_p[jnp.arange(8)[:, None], batch["loss_positions"], batch["targets"]]


def test_loss_gradient_and_what_is_watched_equal_those_of_whole_logits(whole, params, batch):
    trained, metrics = whole
    weights, old = batch["loss_weights"], -batch["behaviour_nats"]
    n = weights.sum()

    def naive(lora):
        log_p = naive_log_p(lora, params, batch)
        ratio, advantage = jnp.exp(log_p - old), batch["advantages"]
        surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.3) * advantage)
        log_reference = -batch["reference_nats"] - log_p
        k3 = jnp.exp(log_reference) - log_reference - 1
        is_clipped = jnp.where(advantage > 0, ratio > 1.3, ratio < 0.8)
        parts = {
            "clipped": is_clipped, "nats": -log_p, "kl_reference": k3, "kl_behaviour": ratio - 1 - (log_p - old),
        }  # fmt: skip
        parts = {name: (weights * x).sum() / n for name, x in parts.items()}
        return (weights * (-surrogate + 0.5 * k3)).sum() / n, parts | {
            "highest_ratio": (ratio * (weights > 0)).max()
        }

    (loss, parts), gradient = jax.jit(jax.value_and_grad(naive, has_aux=True))(params.lora)
    assert 0.05 < parts["clipped"] < 0.6  # both sides of the clip are there
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5) and metrics["loss_tokens"] == n
    for name, value in parts.items():
        assert metrics[f"policy/{name}"] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    for before, after, expected in zip(
        *map(jax.tree.leaves, (params.lora, trained["lora"], gradient)), strict=True
    ):
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(
            before - after, expected, atol=1e-4 * np.abs(expected).max() + 2e-7
        )


@pytest.mark.parametrize(
    ("changed", "shape", "n_devices"),
    [
        (dict(microbatches=4), MeshShape(), 1),
        (dict(compute=dataclasses.replace(PLAIN, remat="full")), MeshShape(data=4), 4),
        (dict(microbatches=2), MeshShape(data=1, fsdp=2, tensor=2), 4),
    ],
    ids=["4 microbatches", "4 devices, remat", "fsdp x tensor, 2 microbatches"],
)
def test_the_same_step_however_it_is_cut(run, whole, params, changed, shape, n_devices):
    trained, metrics = run(dataclasses.replace(SPEC, **changed), shape, n_devices)
    assert metrics.keys() == whole[1].keys()
    for name in metrics:
        np.testing.assert_allclose(
            metrics[name], whole[1][name], rtol=5e-5, atol=1e-6, err_msg=name
        )
    for x, y, start in zip(
        *map(jax.tree.leaves, (trained, whole[0], {"lora": params.lora})), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y - start).max() + 2e-7)


def test_the_behaviour_scored_apart_is_the_policy_at_its_first_update(run, params, batch):
    term = Policy(dataclasses.replace(POLICY, kl_weight=0.0), TEMPERATURE)
    spec = StepSpec((term,), dataclasses.replace(PLAIN, remat="full"))
    nats = np.asarray(make_scoring(C, spec)(params, batch))
    np.testing.assert_allclose(
        -nats, naive_log_p(params.lora, params, batch), atol=1e-5 * np.abs(nats).max()
    )
    _, metrics = run(spec, batch=batch | {"behaviour_nats": nats})
    assert metrics["policy/highest_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["policy/clipped"] == 0 and metrics["policy/kl_behaviour"] < 1e-8
    weighted = (batch["advantages"] * batch["loss_weights"]).sum() / batch["loss_weights"].sum()
    assert metrics["policy/loss"] == pytest.approx(-weighted, rel=1e-4)


def test_the_clip_stops_the_gradient_on_one_side_only():
    """ratio, advantage -> whether the token still pushes."""
    cases = {
        (1.5, 1.0): False,
        (1.5, -1.0): True,
        (0.5, 1.0): True,
        (0.5, -1.0): False,
        (1.25, 1.0): True,
        (1.1, -1.0): True,
    }
    ratios, advantages = np.array(list(cases), np.float32).T[:, None]
    batch = {
        "loss_weights": np.ones((1, 6), np.float32),
        "advantages": advantages,
        "behaviour_nats": np.log(ratios) + 2,
        "importance": np.ones((1, 6), np.float32),
    }

    def loss(nats):
        sums = policy_sums(nats, batch, PolicyLoss())
        return sums.loss, sums.clipped

    gradient, clipped = jax.grad(loss, has_aux=True)(jnp.full((1, 6), 2.0))
    np.testing.assert_array_equal(np.asarray(gradient)[0] != 0, list(cases.values()))
    np.testing.assert_allclose(
        gradient[0], np.where(list(cases.values()), ratios * advantages, 0)[0], rtol=1e-5
    )
    assert clipped == 2


def test_positions_without_weight_leave_no_trace(batch, params):
    weights = batch["loss_weights"]
    wild = {
        name: np.where(weights > 0, batch[name], 1e4).astype(np.float32)
        for name in ("advantages", "behaviour_nats", "reference_nats")
    }
    nats = np.asarray(make_scoring(C, SPEC)(params, batch))
    of = lambda b: jax.tree.leaves(
        jax.value_and_grad(lambda n: policy_sums(n, b, POLICY).loss)(jnp.asarray(nats))
    )
    for one, other in zip(of(batch), of(batch | wild)):
        np.testing.assert_array_equal(one, other)


def test_retention_goes_with_a_policy(run, whole):
    _, metrics = run(
        dataclasses.replace(SPEC, terms=(*SPEC.terms, Retention(weight=2.0, layers=0, positions=0)))
    )
    assert metrics["policy/loss"] == pytest.approx(whole[1]["policy/loss"], rel=1e-5)
    assert metrics["loss"] == pytest.approx(
        metrics["policy/loss"] + 2.0 * metrics["retention_nats"], rel=1e-5
    )


def test_the_step_lowers_from_shapes_alone(params):
    trainable, frozen = split(
        jax.eval_shape(lambda: params.replace(base=abstract_base(C, jnp.bfloat16))), ("lora",)
    )
    i32, f32 = (
        functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.int32, jnp.float32)
    )
    batch = {name: i32((8, 24)) for name in ("tokens", "positions", "segment_ids", "langs")}
    batch |= {"loss_positions": i32((8, 5)), "targets": i32((8, 5))}
    batch |= {
        name: f32((8, 5))
        for name in ("loss_weights", "advantages", "behaviour_nats", "importance", "reference_nats")
    }
    with (
        jax.set_mesh(make_mesh(MeshShape(), jax.devices()[:1])),
        jax.numpy_dtype_promotion("strict"),
    ):
        state = jax.eval_shape(functools.partial(make_state, SGD), trainable)
        out, metrics = (
            make_step(C, dataclasses.replace(SPEC, compute=ComputeSettings(), microbatches=2), SGD)
            .lower(state, frozen, None, batch)
            .out_info
        )
    assert {leaf.dtype for leaf in jax.tree.leaves((out.trainable, metrics))} == {
        jnp.dtype("float32")
    }


@pytest.mark.parametrize(
    "kind, wrong, words",
    [
        (PolicyLoss, dict(clip_low=1.0), "clip_low"), (PolicyLoss, dict(clip_high=0.0), "clip_high"),
        (PolicyLoss, dict(kl_weight=-1.0), "kl_weight"), (RolloutSettings, dict(temperature=0.0), "temperature"),
        (StepSpec, dict(terms=(NextToken(1.0), *SPEC.terms), compute=PLAIN), "there is a next-token loss"),
        (StepSpec, dict(terms=SPEC.terms, compute=PLAIN, dropout=0.1), "dropout 0.1"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_refused(kind, wrong, words):
    with pytest.raises(ValueError, match=words):
        kind(**wrong)


def test_what_the_sampler_made_too_likely_counts_less(batch, params):
    """The gradient of each token is multiplied by its importance, and by nothing else."""
    nats = jnp.asarray(make_scoring(C, SPEC)(params, batch))
    of = lambda b: np.asarray(jax.grad(lambda n: policy_sums(n, b, PolicyLoss()).loss)(nats))
    weights = np.random.default_rng(0).uniform(0.5, 2.0, nats.shape).astype(np.float32)
    np.testing.assert_allclose(of(batch | {"importance": weights}), of(batch) * weights, rtol=1e-5)
