"""One jitted training step for every phase.

    step = make_step(config, spec, optimizer, shard_tree(state, mesh))
    state, metrics = step(state, frozen, reference, batch)      # `state` is donated

The loss is next-token cross entropy or the policy loss of GRPO, and / or "each layer" retention, by weight.
Sums are divided by the loss weight of the whole global batch, so K microbatches equal one batch and padding
counts for nothing. Only the trainable trees are differentiated, updated and returned; the frozen ones go in
and stay.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.dtypes import check_dtype
from medkor_jax.model.forward import Inputs, forward
from medkor_jax.model.kernel import check_attention
from medkor_jax.model.params import Params, Tree, head_table
from medkor_jax.model.remat import check_remat
from medkor_jax.parallel.mesh import replicate
from medkor_jax.train.losses import LossSums, cross_entropy, gather_positions, token_losses
from medkor_jax.train.policy import PolicyLoss, PolicySums, policy_sums
from medkor_jax.train.retention import Retention, choose_layers, choose_positions, each_layer, n_compared
from medkor_jax.train.stage import Stage
from medkor_jax.train.trainable import join

Batch = dict[str, jax.Array]


@struct.dataclass
class State:
    """What learns and what the optimizer remembers of it; all of it is saved, nothing else is."""

    trainable: dict[str, Tree]
    opt_state: Any
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class ComputeSettings:
    """How a step is computed: but for dtype, none of it changes a result by more than rounding."""

    dtype: str = "bfloat16"
    """Of activations: "bfloat16" or "float32"; losses, norms and the optimizer are float32 either way."""
    remat: Annotated[str, check_remat] = "gate_up"
    """What the backward pass makes again to save memory, see `model.remat`."""
    attention: Annotated[str, check_attention] = "auto"
    """Which attention kernel, see `model.kernel`; "auto": by length and device."""
    chunk: Annotated[int, ">= 1"] = 256
    """Positions whose logits exist at once on one part of the batch axes."""


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a step computes. dtype: of activations; chunk: positions whose logits exist at once
    on one part of the batch axes. remat: what the backward pass makes again, see `model.remat`;
    attention: which kernel, see `model.kernel`. policy: the loss of
    sampled answers, in place of next-token loss."""

    dtype: str = "float32"
    next_token_weight: float = 1.0
    policy: PolicyLoss | None = None
    temperature: float = 1.0  # by which the policy loss divides logits: that of the sampling
    retention: Retention = Retention()
    microbatches: int = 1
    remat: str = "none"
    attention: str = "auto"
    dropout: float = 0.0
    chunk: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_remat(self.remat)
        check_attention(self.attention)
        check_dtype(self.dtype)
        if self.policy is not None and (self.next_token_weight > 0 or self.dropout > 0):
            raise ValueError(
                f"with a policy loss, next_token_weight is {self.next_token_weight} and dropout {self.dropout}; both must be "
                "0: wrong samples are not to be imitated, and dropout would be a policy that did not sample them"
            )
        if self.policy is None and self.next_token_weight <= 0 and self.retention.weight <= 0:
            raise ValueError("both loss weights are 0: nothing would be learnt")


def step_spec(stage: Stage, compute: ComputeSettings, seed: int) -> StepSpec:
    """Returns what a step of the stage computes."""
    reward = stage.reward
    policy = reward.policy if reward.has_policy_loss else None
    return StepSpec(
        next_token_weight=stage.next_token_weight if policy is None else 0.0, policy=policy, retention=stage.retention,
        temperature=reward.rollout.temperature if policy is not None else 1.0, microbatches=stage.microbatches,
        dropout=stage.dropout, seed=seed, **dataclasses.asdict(compute),
    )  # fmt: skip


def make_state(optimizer: optax.GradientTransformation, trainable: dict[str, Tree]) -> State:
    return State(trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32))


def make_step(
    config: ModelConfig,
    spec: StepSpec,
    optimizer: optax.GradientTransformation,
    state_shardings: State | None = None,
) -> Callable[[State, Params, Params | None, Batch], tuple[State, dict[str, jax.Array]]]:
    """Returns the jitted step. It can be lowered from ShapeDtypeStructs alone.

    `reference` is the model retention holds to (None when its weight is 0), on the same base: its own is not read, since
    a compiler counts an argument given twice as twice the memory and refuses what would fit. Metrics are float32:
    loss and, by name, its parts in nats, grad_norm, loss_tokens, and layer_kl_nats [L], one more where a model
    has layers added behind (NaN where not drawn).
    """

    def step(state: State, frozen: Params, reference: Params | None, batch: Batch):
        key = jax.random.fold_in(jax.random.key(spec.seed), state.step)
        reference = None if reference is None else reference.replace(base=frozen.base)
        if spec.retention.weight > 0:
            batch = _with_retained_positions(jax.random.fold_in(key, 0), batch, spec.retention.positions)
        n_layers = n_compared(config, join(state.trainable, frozen), reference)
        layer_weights = choose_layers(jax.random.fold_in(key, 1), n_layers, spec.retention.layers)
        norms = _normalisers(batch)

        def loss_of(trainable: dict[str, Tree], part: Batch, key: jax.Array):
            sums = _sums(join(trainable, frozen), reference, config, spec, part, layer_weights, key)
            return _weighted(sums, norms, spec), sums

        gradient_of = jax.grad(loss_of, has_aux=True)

        def accumulate(total, part_and_key):
            (gradient, sums), (more, added) = total, gradient_of(state.trainable, *part_and_key)
            return (jax.tree.map(jnp.add, gradient, more), sums + added), None

        k = spec.microbatches
        keys = jax.random.split(jax.random.fold_in(key, 2), k)
        if k == 1:
            gradient, sums = gradient_of(state.trainable, batch, keys[0])
        else:
            # rows are dealt round-robin, so each device's rows are spread over all microbatches
            parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, k, *x.shape[1:]), 0, 1), batch)
            first = jax.tree.map(lambda x: x[0], parts)
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient_of, state.trainable, first, keys[0]))
            (gradient, sums), _ = jax.lax.scan(accumulate, zeros, (parts, keys))

        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
            trainable = optax.apply_updates(state.trainable, updates)
        metrics = _metrics(sums, norms, spec) | {"grad_norm": optax.tree.norm(gradient)}
        return State(trainable, opt_state, state.step + 1), metrics

    out_shardings = None if state_shardings is None else (state_shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def make_evaluation(config: ModelConfig, spec: StepSpec) -> Callable[[Params, Batch], LossSums]:
    """Returns the jitted sums of next-token cross entropy of a batch, without dropout."""

    @jax.jit
    def evaluate(params: Params, batch: Batch) -> LossSums:
        hidden = forward(params, config, Inputs.of(batch), dtype=jnp.dtype(spec.dtype), attention=spec.attention)
        return _next_token(hidden, params, batch, spec)

    return evaluate


def make_scoring(config: ModelConfig, spec: StepSpec) -> Callable[[Params, Batch], jax.Array]:
    """Returns the jitted nats [B, M] of each target of a batch, computed as the step with `spec.policy` does."""

    @jax.jit
    def score(params: Params, batch: Batch) -> jax.Array:
        hidden = forward(params, config, Inputs.of(batch), dtype=jnp.dtype(spec.dtype), attention=spec.attention)
        return replicate(_token_nats(hidden, params, batch, spec))

    return score


@struct.dataclass
class _Sums:
    next_token: LossSums | None
    policy: PolicySums | None
    retained: LossSums | None
    per_layer: LossSums | None

    def __add__(self, other: _Sums) -> _Sums:
        both = jax.tree.map(jnp.add, self, other)
        return both if self.policy is None else both.replace(policy=self.policy + other.policy)


def _next_token(hidden: jax.Array, params: Params, batch: Batch, spec: StepSpec) -> LossSums:
    hidden = gather_positions(hidden, batch["loss_positions"])
    return cross_entropy(hidden, head_table(params.base), batch["targets"], batch["loss_weights"], chunk=spec.chunk)


def _token_nats(hidden: jax.Array, params: Params, batch: Batch, spec: StepSpec) -> jax.Array:
    hidden = gather_positions(hidden, batch["loss_positions"])
    return token_losses(hidden, head_table(params.base), batch["targets"], chunk=spec.chunk, temperature=spec.temperature).nats


def _sums(params, reference, config, spec, batch, layer_weights, key) -> _Sums:
    common = dict(dtype=jnp.dtype(spec.dtype), remat=spec.remat, attention=spec.attention, dropout=spec.dropout)
    common["dropout_key"] = key if spec.dropout > 0 else None
    retained = per_layer = next_token = policy = None
    if spec.retention.weight > 0:
        hidden, retained, per_layer = each_layer(
            params, reference, config, Inputs.of(batch), batch["retain_positions"], batch["retain_weights"],
            layer_weights, n_drawn=spec.retention.layers, chunk=spec.chunk, temperature=spec.retention.temperature, **common,
        )  # fmt: skip
    else:
        hidden = forward(params, config, Inputs.of(batch), **common)
    if spec.next_token_weight > 0:
        next_token = _next_token(hidden, params, batch, spec)
    if spec.policy is not None:
        policy = policy_sums(_token_nats(hidden, params, batch, spec), batch, spec.policy)
    return _Sums(next_token, policy, retained, per_layer)


def _with_retained_positions(key: jax.Array, batch: Batch, per_row: int) -> Batch:
    indices, weights = choose_positions(key, batch["loss_weights"], per_row)
    positions = jnp.take_along_axis(batch["loss_positions"], indices, axis=1)
    return batch | {"retain_positions": positions, "retain_weights": weights}


def _normalisers(batch: Batch) -> dict[str, jax.Array]:
    norms = {"loss_tokens": jnp.sum(batch["loss_weights"].astype(jnp.float32))}
    if "retain_weights" in batch:
        norms["retained"] = jnp.sum(batch["retain_weights"])
    return jax.tree.map(lambda n: jnp.maximum(n, 1e-9), norms)


def _weighted(sums: _Sums, norms: dict[str, jax.Array], spec: StepSpec) -> jax.Array:
    loss = jnp.zeros((), jnp.float32)
    if sums.next_token is not None:
        loss += spec.next_token_weight * sums.next_token.loss / norms["loss_tokens"]
    if sums.policy is not None:
        loss += sums.policy.loss / norms["loss_tokens"]
    if sums.retained is not None:
        loss += spec.retention.weight * sums.retained.loss / norms["retained"]
    return loss


def _metrics(sums: _Sums, norms: dict[str, jax.Array], spec: StepSpec) -> dict[str, jax.Array]:
    metrics = {"loss": _weighted(sums, norms, spec), "loss_tokens": norms["loss_tokens"]}
    if sums.next_token is not None:
        metrics["next_token_nats"] = sums.next_token.loss / norms["loss_tokens"]
        metrics["next_token_correct"] = sums.next_token.correct / norms["loss_tokens"]
    if sums.policy is not None:
        for name in ("loss", "clipped", "nats", "kl_behaviour", "kl_reference"):
            metrics[f"policy/{name}"] = getattr(sums.policy, name) / norms["loss_tokens"]
        metrics["policy/highest_ratio"] = sums.policy.highest_ratio
    if sums.retained is not None:
        metrics["retention_nats"] = sums.retained.loss / norms["retained"]
        metrics["retention_kl_nats"] = (sums.retained.loss - sums.retained.entropy) / norms["retained"]
        drawn = sums.per_layer.weight > 0
        kl = (sums.per_layer.loss - sums.per_layer.entropy) / jnp.maximum(sums.per_layer.weight, 1e-9)
        metrics["layer_kl_nats"] = jnp.where(drawn, kl, jnp.nan)
    return metrics
