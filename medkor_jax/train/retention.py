""" "Each layer" training: at every layer, the adapted model's prediction is held to the frozen one's.

    chosen = choose_layers(key, n_compared(config, params, reference), per_step=4)
    hidden, sums = each_layer(params, reference, config, inputs, positions, weights, chosen, ...)

At a layer, both models' residual streams go through the final norm and the head (a "logit lens"), and
the loss is the cross entropy between the two distributions. Both models are scanned together; of the drawn layers
what the head will read, a few positions, is put aside on the way, and all of it meets the head at once: its table
is read (where it is sharded, gathered) once a step, and no layer's hidden states are kept whole. The reference is
the model that phase 1 accepted: the same base, with its own small adapter tree.

Layers that were added in front run first, so each layer of the base meets its own counterpart in the longer
model. Where one of the two models has layers added behind, their outputs after those are compared too, as one
entry more: else nothing would hold what the new last layer does.

Source: the lens is nostalgebraist 2020; distillation loss, Hinton et al. 2015 (arXiv:1503.02531).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.forward import Inputs, LayerInputs, edge_inputs, embed, layer_inputs, make_view, run_layer
from medkor_jax.model.layers import rms_norm
from medkor_jax.model.params import BACK, FRONT, Params, head_table, n_edge_blocks
from medkor_jax.parallel.mesh import BATCH_AXES, lay
from medkor_jax.train.losses import LossSums, gather_positions, token_losses


@dataclasses.dataclass(frozen=True)
class Retention:
    """"Each layer" training beside, or in place of, the other losses."""

    weight: Annotated[float, ">= 0"] = 0.0
    """Weight in the loss. 0: no "each layer" training, and nothing else here is read."""
    layers: Annotated[int, ">= 0"] = 4
    """Layers drawn a step, of which the two models' predictions are compared. 0: all."""
    positions: Annotated[int, ">= 0"] = 32
    """Positions drawn a row, among those that carry loss. 0: all."""
    temperature: Annotated[float, "> 0"] = 1.0
    """By which the logits of both models are divided before they are compared."""

    def __post_init__(self) -> None:
        if self.layers < 0 or self.positions < 0 or self.weight < 0 or self.temperature <= 0:
            raise ValueError(f"retention needs layers, positions, weight >= 0 and temperature > 0; got {self}")

    @property
    def is_on(self) -> bool:
        return self.weight > 0


def n_compared(config: ModelConfig, *models: Params | None) -> int:
    """Returns at how many places `models` are compared: after each of L layers, and once more at the end if one
    of them has layers behind those."""
    return config.n_layers + any(model is not None and n_edge_blocks(model, BACK) > 0 for model in models)


def choose_layers(key: jax.Array, n_layers: int, per_step: int) -> jax.Array:
    """Returns [L] float32 weights: 1/k on k layers drawn without replacement, 0 elsewhere.

    Their sum over layer losses has the mean over all layers as its expectation. per_step 0, or at
    least L, takes all.
    """
    k = n_layers if per_step == 0 else min(per_step, n_layers)
    ranks = jax.random.permutation(key, n_layers)
    return jnp.where(ranks < k, 1.0 / k, 0.0).astype(jnp.float32)


def choose_positions(key: jax.Array, weights: jax.Array, per_row: int) -> tuple[jax.Array, jax.Array]:
    """Returns (indices [B, P] into M, weights [B, P]) of up to `per_row` weighted positions of each row.

    weights: [B, M]; positions of weight 0 are taken last and keep weight 0. Each of the p chosen of a row's
    n counts n / p, so a weighted sum has the sum over all n as its expectation, whatever n is in other rows.
    """
    b, m = weights.shape
    p = m if per_row == 0 else min(per_row, m)
    if p == m:
        return jnp.broadcast_to(jnp.arange(m), (b, m)), (weights > 0).astype(jnp.float32)
    priority = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), -1.0)
    highest, indices = jax.lax.top_k(priority, p)
    n = jnp.sum(weights > 0, axis=1, keepdims=True).astype(jnp.float32)
    return indices, jnp.where(highest >= 0, n / jnp.clip(n, 1.0, p), 0.0)


def each_layer(
    params: Params,
    reference: Params,
    config: ModelConfig,
    inputs: Inputs,
    positions: jax.Array,
    weights: jax.Array,
    layer_weights: jax.Array,
    *,
    dtype: Any,
    n_drawn: int = 0,
    remat: str = "none",
    attention: str = "auto",
    chunk: int = 256,
    temperature: float = 1.0,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, LossSums, LossSums]:
    """Returns (final hidden states [B, T, D], sums over chosen layers, sums of each layer [n_compared]).

    positions, weights: [B, P], where in T the distributions are compared. layer_weights: [n_compared] from
    `choose_layers`, and n_drawn, how many of them are not 0 at most (0: all): the head is computed for so many.
    params.base and reference.base are the same arrays.
    """
    n = n_compared(config, params, reference)
    if layer_weights.shape != (n,):
        raise ValueError(f"layer_weights has shape {layer_weights.shape}; these models are compared at {n} places")
    student = embed(params, config, inputs.tokens, inputs.langs, dtype)
    teacher = embed(reference, config, inputs.tokens, inputs.langs, dtype)
    view = make_view(config, inputs.seen, attention)
    final_norm = params.base["final_norm"]
    k = min(n_drawn or n, n)
    is_drawn = layer_weights > 0
    slots = jnp.where(is_drawn, jnp.cumsum(is_drawn) - 1, k)  # where in `kept` a place stands; k: thrown away

    def keep(kept: jax.Array, x: jax.Array, slot: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(kept, gather_positions(x, positions), slot, 0)

    def run_student(x: jax.Array, layer: LayerInputs) -> jax.Array:
        return run_layer(config, view, layer, x, params.lora_scale, dropout, remat)

    def run_teacher(x: jax.Array, layer: LayerInputs) -> jax.Array:
        return jax.lax.stop_gradient(run_layer(config, view, layer, x, reference.lora_scale))

    def body(carry, layer):
        (student, teacher, of_students, of_teachers), (for_student, for_teacher, slot) = carry, layer
        student, teacher = run_student(student, for_student), run_teacher(teacher, for_teacher)
        return (student, teacher, keep(of_students, student, slot), keep(of_teachers, teacher, slot)), None

    def run_edges(student: jax.Array, teacher: jax.Array, side: str) -> tuple[jax.Array, jax.Array]:
        for stack in edge_inputs(params, config, side):
            student, _ = jax.lax.scan(lambda x, layer: (run_student(x, layer), None), student, stack)
        for stack in edge_inputs(reference, config, side):
            teacher, _ = jax.lax.scan(lambda x, layer: (run_teacher(x, layer), None), teacher, stack)
        return student, teacher

    student, teacher = run_edges(student, teacher, FRONT)
    nothing = lay(jnp.zeros((k + 1, *positions.shape, config.d_model), dtype), None, BATCH_AXES, None, None)
    layers = (layer_inputs(params, config, dropout_key), layer_inputs(reference, config, None), slots[: config.n_layers])
    (student, teacher, of_students, of_teachers), _ = jax.lax.scan(body, (student, teacher, nothing, nothing), layers)
    student, teacher = run_edges(student, teacher, BACK)
    if n > config.n_layers:
        of_students, of_teachers = keep(of_students, student, slots[-1]), keep(of_teachers, teacher, slots[-1])

    def lens(kept: jax.Array) -> jax.Array:
        """[k + 1, B, P, D] -> [B, k P, D]: what the head reads, of all drawn places at once."""
        kept = jnp.moveaxis(kept[:k], 0, 1)
        return rms_norm(kept.reshape(kept.shape[0], -1, config.d_model), final_norm, config.rms_eps)

    each = token_losses(lens(of_students), head_table(params.base), lens(of_teachers), chunk=chunk, temperature=temperature)
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))

    def of_places(x: jax.Array) -> jax.Array:
        """[B, k P] -> [n]: the weighted sum at each place, 0 where it was not drawn."""
        sums = jnp.sum(x.reshape(x.shape[0], k, -1) * weights[:, None], axis=(0, 2))
        return jnp.append(sums, 0.0)[slots]

    sums = map(of_places, (each.nats, each.entropy, each.correct))
    per_place = LossSums(*sums, jnp.where(is_drawn, jnp.sum(weights), 0.0))
    total = jax.tree.map(lambda x: jnp.sum(x * layer_weights), per_place)
    return rms_norm(student, final_norm, config.rms_eps), total, per_place
