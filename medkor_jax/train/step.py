"""One jitted training step for every phase: it differentiates, accumulates and updates.

    step = make_step(config, spec, optimizer, shard_tree(state, mesh))
    state, metrics = step(state, frozen, reference, batch)      # `state` is donated

The loss is a sum of terms (`terms`), all of which read one forward pass. Sums are divided by the
loss weight of the whole global batch, so K microbatches equal one batch and padding counts for
nothing. Only the trainable trees are differentiated, updated and returned; the frozen ones go in
and stay. What the terms are is decided in `stage.terms_of`.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.forward import Inputs, forward
from medkor_jax.model.params import Params, Tree, head_table
from medkor_jax.parallel.mesh import replicate
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.each_layer import Comparison, each_layer, n_compared
from medkor_jax.train.losses import gather_positions, token_losses
from medkor_jax.train.new_rows import NewRows
from medkor_jax.train.next_token import NextToken
from medkor_jax.train.policy import Policy
from medkor_jax.train.retention import Retention, retained_weights, with_drawn_positions
from medkor_jax.train.stage import Stage, terms_of
from medkor_jax.train.terms import Batch, Norms, Seen, Term
from medkor_jax.train.trainable import join


@struct.dataclass
class State:
    """What learns and what the optimizer remembers of it; all of it is saved, nothing else is."""

    trainable: dict[str, Tree]
    opt_state: Any
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """All that a compiled step depends on besides shapes and the optimizer; equal ones share a
    program. See `step_spec`.
    """

    terms: tuple[Term, ...]
    compute: ComputeSettings
    microbatches: int = Stage.microbatches
    dropout: float = Stage.dropout
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("both loss weights are 0: nothing would be learnt")
        has_next_token = any(isinstance(term, NextToken) for term in self.terms)
        if self.policy is not None and (has_next_token or self.dropout > 0):
            raise ValueError(
                f"with a policy loss, there is {'a' if has_next_token else 'no'} next-token loss "
                f"and dropout {self.dropout}; both must "
                "be 0: wrong samples are not to be imitated, and dropout would be a policy that "
                "did not sample them"
            )

    @property
    def policy(self) -> Policy | None:
        return next((term for term in self.terms if isinstance(term, Policy)), None)

    @property
    def retention(self) -> Retention | None:
        return next((term for term in self.terms if isinstance(term, Retention)), None)


def step_spec(stage: Stage, compute: ComputeSettings, seed: int = 0) -> StepSpec:
    """Returns what a step of the stage computes."""
    return StepSpec(terms_of(stage), compute, stage.microbatches, stage.dropout, seed)


def make_state(optimizer: optax.GradientTransformation, trainable: dict[str, Tree]) -> State:
    return State(trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32))


def make_step(
    config: ModelConfig,
    spec: StepSpec,
    optimizer: optax.GradientTransformation,
    state_shardings: State | None = None,
) -> jax.stages.Wrapped:
    """Returns the jitted step(state, frozen, reference, batch) -> (state, metrics). It can be lowered from ShapeDtypeStructs alone.

    `reference` is the model retention holds to (None without it), on the same base: its own is not
    read, since a compiler counts an argument given twice as twice the memory and refuses what would
    fit. Metrics are float32: loss, loss_tokens, grad_norm, and what each term says of itself
    (layer_kl_nats is [L], one more where a model has layers added behind, NaN where not drawn).
    """

    def step(state: State, frozen: Params, reference: Params | None, batch: Batch):
        key = jax.random.fold_in(jax.random.key(spec.seed), state.step)
        reference = None if reference is None else reference.replace(base=frozen.base)
        layer_weights = None
        if (held := spec.retention) is not None:
            may_draw = retained_weights(join(state.trainable, frozen), reference, batch)
            batch = with_drawn_positions(
                jax.random.fold_in(key, 0), batch, held.positions, may_draw
            )
            n_places = n_compared(config, join(state.trainable, frozen), reference)
            layer_weights = held.places(jax.random.fold_in(key, 1), n_places)
        norms = _normalisers(batch)

        def loss_of(trainable: dict[str, Tree], part: Batch, key: jax.Array):
            seen = _look(join(trainable, frozen), reference, config, spec, part, layer_weights, key)
            sums = tuple(term.sums(seen, part, chunk=spec.compute.chunk) for term in spec.terms)
            return _loss(spec.terms, sums, norms), sums

        gradient, sums = _over_microbatches(
            jax.grad(loss_of, has_aux=True),
            state.trainable,
            batch,
            jax.random.fold_in(key, 2),
            spec.microbatches,
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
            trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": _loss(spec.terms, sums, norms), "loss_tokens": norms["loss_tokens"]}
        for term, own in zip(spec.terms, sums, strict=True):
            metrics |= term.metrics(own, norms)
        return State(trainable, opt_state, state.step + 1), metrics | {
            "grad_norm": optax.tree.norm(gradient)
        }

    out_shardings = None if state_shardings is None else (state_shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def _over_microbatches(
    gradient_of: Callable, trainable: dict[str, Tree], batch: Batch, key: jax.Array, k: int
):
    """Returns (gradient, sums) over the whole batch, a k-th of its rows at a time."""
    keys = jax.random.split(key, k)
    if k == 1:
        return gradient_of(trainable, batch, keys[0])

    def accumulate(total, part_and_key):
        (gradient, sums), (more, added) = total, gradient_of(trainable, *part_and_key)
        return (jax.tree.map(jnp.add, gradient, more), tuple(map(operator.add, sums, added))), None

    # rows are dealt round-robin, so each device's rows are spread over all microbatches
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, k, *x.shape[1:]), 0, 1), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient_of, trainable, first, keys[0]))
    return jax.lax.scan(accumulate, zeros, (parts, keys))[0]


def make_evaluation(
    config: ModelConfig, compute: ComputeSettings
) -> Callable[[Params, Batch], jax.Array]:
    """Returns the jitted next-token cross entropy of a batch, without dropout: nats [B, M] of each target."""

    @jax.jit
    def evaluate(params: Params, batch: Batch) -> jax.Array:
        seen = _read(params, config, compute, batch)
        hidden = gather_positions(seen.hidden, batch["loss_positions"])
        losses = token_losses(
            hidden, seen.table, batch["targets"], chunk=compute.chunk, new=seen.new_rows
        )
        return replicate(losses.nats)

    return evaluate


def make_divergence(
    config: ModelConfig, compute: ComputeSettings
) -> Callable[[Params, Params, Batch], jax.Array]:
    """Returns the jitted KL(reference || model), nats [B, M], at the positions of a batch; called with (params of the model, of the
    reference, batch). Both have one head: that of the model.
    """

    @jax.jit
    def diverge(params: Params, reference: Params, batch: Batch) -> jax.Array:
        seen, kept = (_read(one, config, compute, batch) for one in (params, reference))
        hidden, teacher = (
            gather_positions(one.hidden, batch["loss_positions"]) for one in (seen, kept)
        )
        losses = token_losses(hidden, seen.table, teacher, chunk=compute.chunk)
        return replicate(losses.nats - losses.entropy)

    return diverge


def make_scoring(config: ModelConfig, spec: StepSpec) -> Callable[[Params, Batch], jax.Array]:
    """Returns the jitted nats [B, M] of each target of a batch, computed as the step with
    `spec.policy` does.
    """

    @jax.jit
    def score(params: Params, batch: Batch) -> jax.Array:
        seen = _read(params, config, spec.compute, batch)
        return replicate(spec.policy.nats(seen, batch, chunk=spec.compute.chunk))

    return score


def _read(params: Params, config: ModelConfig, compute: ComputeSettings, batch: Batch) -> Seen:
    """Returns what a forward pass without a gradient leaves."""
    hidden = forward(
        params,
        config,
        Inputs.of(batch),
        dtype=jnp.dtype(compute.dtype),
        attention=compute.attention,
    )
    return Seen(hidden, head_table(params.base), new_rows=NewRows.of(params))


def _look(
    params: Params,
    reference: Params | None,
    config: ModelConfig,
    spec: StepSpec,
    batch: Batch,
    layer_weights: jax.Array | None,
    key: jax.Array,
) -> Seen:
    """Returns what the one forward pass of a step leaves; with "each layer" training, both models
    run through it together.
    """
    compute, held = spec.compute, spec.retention
    table, new_rows = head_table(params.base), NewRows.of(params)
    dropout: dict[str, Any] = dict(
        dropout=spec.dropout, dropout_key=key if spec.dropout > 0 else None
    )
    inputs = Inputs.of(batch)
    if held is None:
        how: dict[str, Any] = dict(
            dtype=jnp.dtype(compute.dtype), remat=compute.remat, attention=compute.attention
        )
        return Seen(forward(params, config, inputs, **how, **dropout), table, new_rows=new_rows)
    compared = Comparison(
        batch["retain_positions"],
        batch["retain_weights"],
        layer_weights,
        held.most_places,
        held.temperature,
    )
    hidden, layers = each_layer(params, reference, config, inputs, compared, compute, **dropout)
    return Seen(hidden, table, layers, new_rows)


def _normalisers(batch: Batch) -> Norms:
    norms = {"loss_tokens": jnp.sum(batch["loss_weights"].astype(jnp.float32))}
    if "retain_weights" in batch:
        norms["retained"] = jnp.sum(batch["retain_weights"])
    return jax.tree.map(lambda n: jnp.maximum(n, 1e-9), norms)


def _loss(terms: tuple[Term, ...], sums: tuple[Any, ...], norms: Norms) -> jax.Array:
    return sum(
        (term.loss(own, norms) for term, own in zip(terms, sums, strict=True)),
        jnp.zeros((), jnp.float32),
    )
