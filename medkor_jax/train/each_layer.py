"""Two models run through their layers together, and what their predictions at each layer differ by.

    hidden, sums = each_layer(params, reference, config, inputs, compared, compute)

At a layer, both models' residual streams go through the final norm and the head (a "logit lens"),
and the loss is the cross entropy between the two distributions. Both models are scanned together;
of the drawn layers what the head will read, a few positions, is put aside on the way, and all of it
meets the head at once: its table is read (where it is sharded, gathered) once a step, and no
layer's hidden states are kept whole.

Layers that were added in front run first, so each layer of the base meets its own counterpart in
the longer model. Where one of the two models has layers added behind, their outputs after those are
compared too, as one entry more: else nothing would hold what the new last layer does. What is
drawn, and what it weighs, is decided in `retention`.

Source: the lens is nostalgebraist 2020; distillation loss, Hinton et al. 2015 (arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.forward import (
    Inputs,
    LayerInputs,
    edge_inputs,
    embed,
    layer_inputs,
    make_view,
    run_layer,
)
from medkor_jax.model.layers import rms_norm
from medkor_jax.model.params import (
    BACK,
    FRONT,
    Params,
    Tree,
    head_table,
    n_edge_blocks,
    n_new_tokens,
)
from medkor_jax.parallel.mesh import BATCH_AXES, lay
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.losses import LossSums, gather_positions, token_losses
from medkor_jax.train.new_rows import NewRows

Kept = tuple[jax.Array, jax.Array]
"""Of student and teacher: hidden states [n_kept + 1, B, P, D], the last place thrown away."""


@struct.dataclass
class Comparison:
    """Where two models are compared. positions, weights: [B, P], where in T, and what counts there;
    places: [n_compared], the weight of each place, 0 where it is not drawn; most: how many are
    drawn at most (0: all), which is what the head is computed for; temperature: by which both
    models' logits are divided.
    """

    positions: jax.Array
    weights: jax.Array
    places: jax.Array
    most: int = struct.field(pytree_node=False, default=0)
    temperature: float = struct.field(pytree_node=False, default=1.0)

    @property
    def n_kept(self) -> int:
        return min(self.most or len(self.places), len(self.places))

    @property
    def slots(self) -> jax.Array:
        """[n_compared]: where a place stands among what is kept; n_kept: thrown away."""
        is_drawn = self.places > 0
        return jnp.where(is_drawn, jnp.cumsum(is_drawn) - 1, self.n_kept)


@struct.dataclass
class LayerSums:
    """total: over the drawn places, each by its weight; per_place: [n_compared] of every field."""

    total: LossSums
    per_place: LossSums

    def __add__(self, other: LayerSums) -> LayerSums:
        return LayerSums(self.total + other.total, self.per_place + other.per_place)


def n_compared(config: ModelConfig, *models: Params | None) -> int:
    """Returns at how many places `models` are compared: after each of L layers, and once more at
    the end if one of them has layers behind those."""
    return config.n_layers + any(
        model is not None and n_edge_blocks(model, BACK) > 0 for model in models
    )


def each_layer(
    params: Params,
    reference: Params,
    config: ModelConfig,
    inputs: Inputs,
    compared: Comparison,
    compute: ComputeSettings,
    *,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, LayerSums]:
    """Returns (final hidden states [B, T, D], the sums). params.base and reference.base are the
    same arrays.

    Raises: ValueError if `compared` was drawn for models of another depth.
    """
    n = n_compared(config, params, reference)
    if compared.places.shape != (n,):
        raise ValueError(
            f"layer_weights has shape {compared.places.shape}; these models are compared at {n} "
            "places"
        )
    hidden, kept = _run_both(
        params,
        reference,
        config,
        inputs,
        compared,
        compute,
        dropout=dropout,
        dropout_key=dropout_key,
    )
    new = NewRows.of(params, reference)
    return hidden, _compare(kept, params.base, config, compared, compute.chunk, new)


def _run_both(
    params: Params,
    reference: Params,
    config: ModelConfig,
    inputs: Inputs,
    compared: Comparison,
    compute: ComputeSettings,
    *,
    dropout: float,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, Kept]:
    """Returns (final hidden states of the student [B, T, D], what of both models the head reads)."""
    dtype, slots = jnp.dtype(compute.dtype), compared.slots
    student = embed(params, config, inputs.tokens, inputs.langs, dtype)
    # documents with new tokens, which the reference may not have, weigh nothing: see `retention`
    known = params.base["embed"].shape[0] + n_new_tokens(reference)
    tokens = jnp.minimum(inputs.tokens, known - 1) if n_new_tokens(params) else inputs.tokens
    teacher = embed(reference, config, tokens, inputs.langs, dtype)
    view = make_view(config, inputs.seen, compute.attention)

    def keep(kept: Kept, both: Kept, slot: jax.Array) -> Kept:
        """Puts aside what the head will read of both models."""
        read = (gather_positions(x, compared.positions) for x in both)
        put = jax.lax.dynamic_update_index_in_dim
        return tuple(put(of, x, slot, 0) for of, x in zip(kept, read, strict=True))

    def run_student(x: jax.Array, layer: LayerInputs) -> jax.Array:
        return run_layer(config, view, layer, x, params.lora_scale, dropout, compute.remat)

    def run_teacher(x: jax.Array, layer: LayerInputs) -> jax.Array:
        return jax.lax.stop_gradient(run_layer(config, view, layer, x, reference.lora_scale))

    def body(carry, layer):
        (student, teacher, kept), (for_student, for_teacher, slot) = carry, layer
        both = run_student(student, for_student), run_teacher(teacher, for_teacher)
        return (*both, keep(kept, both, slot)), None

    student = _through(edge_inputs(params, config, FRONT), student, run_student)
    teacher = _through(edge_inputs(reference, config, FRONT), teacher, run_teacher)
    room = (compared.n_kept + 1, *compared.positions.shape, config.d_model)
    nothing = lay(jnp.zeros(room, dtype), None, BATCH_AXES, None, None)
    layers = (
        layer_inputs(params, config, dropout_key),
        layer_inputs(reference, config, None),
        slots[: config.n_layers],
    )
    carry = (student, teacher, (nothing, nothing))
    (student, teacher, kept), _ = jax.lax.scan(body, carry, layers)
    student = _through(edge_inputs(params, config, BACK), student, run_student)
    teacher = _through(edge_inputs(reference, config, BACK), teacher, run_teacher)
    if len(slots) > config.n_layers:
        kept = keep(kept, (student, teacher), slots[-1])
    return rms_norm(student, params.base["final_norm"], config.rms_eps), kept


def _through(
    stacks: Sequence[LayerInputs], x: jax.Array, run: Callable[[jax.Array, LayerInputs], jax.Array]
) -> jax.Array:
    """Returns the residual stream after all layers of `stacks`."""
    for stack in stacks:
        x, _ = jax.lax.scan(lambda x, layer: (run(x, layer), None), x, stack)
    return x


def _compare(
    kept: Kept,
    base: Tree,
    config: ModelConfig,
    compared: Comparison,
    chunk: int,
    new: NewRows,
) -> LayerSums:
    """Returns the sums of what was kept of both models."""
    k, is_drawn, slots = compared.n_kept, compared.places > 0, compared.slots

    def lens(of: jax.Array) -> jax.Array:
        """[k + 1, B, P, D] -> [B, k P, D]: what the head reads, of all drawn places at once."""
        of = jnp.moveaxis(of[:k], 0, 1)
        return rms_norm(
            of.reshape(of.shape[0], -1, config.d_model), base["final_norm"], config.rms_eps
        )

    each = token_losses(
        lens(kept[0]),
        head_table(base),
        lens(kept[1]),
        chunk=chunk,
        temperature=compared.temperature,
        new=new,
    )
    weights = jax.lax.stop_gradient(compared.weights.astype(jnp.float32))

    def of_places(x: jax.Array) -> jax.Array:
        """[B, k P] -> [n]: the weighted sum at each place, 0 where it was not drawn."""
        sums = jnp.sum(x.reshape(x.shape[0], k, -1) * weights[:, None], axis=(0, 2))
        return jnp.append(sums, 0.0)[slots]

    nats, entropy, correct = map(of_places, (each.nats, each.entropy, each.correct))
    per_place = LossSums(nats, entropy, correct, jnp.where(is_drawn, jnp.sum(weights), 0.0))
    total = jax.tree.map(lambda x: jnp.sum(x * compared.places), per_place)
    return LayerSums(total, per_place)
