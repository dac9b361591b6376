""" "Each layer" training: at every layer, the adapted model's prediction is held to the frozen
one's.

    chosen = choose_layers(key, n_compared(config, params, reference), per_step=4)
    batch = with_drawn_positions(key, batch, per_row=32)      # of documents whose source carries this loss
    Retention(weight=1.0).loss(sums, norms)

The reference is the model that phase 1 accepted: the same base, with its own small adapter tree. A
few layers and positions are drawn a step, weighted so that the loss has that of all of them as its
expectation. How the two models run and are compared is in `each_layer`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp

from medkor_jax.train.each_layer import LayerSums
from medkor_jax.train.terms import Batch, Norms, Seen

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Retention:
    """The "each layer" term, beside the others or in their place. It compares on the way through
    the layers, so with it the forward pass is `each_layer`, and its sums are what that leaves."""

    weight: Annotated[float, ">= 0"] = 0.0
    """Weight in the loss. 0: no "each layer" training, and nothing else here is read."""
    at: str = "each"
    """"each": at every layer, as the mission has it; "last": at the last alone, the distillation
    that others do; `layers` is then not read."""
    layers: Annotated[int, ">= 0"] = 4
    """Layers drawn a step, of which the two models' predictions are compared. 0: all."""
    positions: Annotated[int, ">= 0"] = 32
    """Positions drawn a row, among those that carry loss. 0: all."""
    temperature: Annotated[float, "> 0"] = 1.0
    """By which the logits of both models are divided before they are compared."""

    def __post_init__(self) -> None:
        if self.layers < 0 or self.positions < 0 or self.weight < 0 or self.temperature <= 0:
            raise ValueError(
                f"retention needs layers, positions, weight >= 0 and temperature > 0; got {self}"
            )
        if self.at not in ("each", "last"):
            raise ValueError(f"retention.at is {self.at!r}; expected 'each' or 'last'")

    @property
    def is_on(self) -> bool:
        return self.weight > 0

    def facts(self) -> dict[str, Any]:
        """Returns what a record keeps: `at` only where it is not what it was before it could be chosen."""
        said = dataclasses.asdict(self)
        return {name: value for name, value in said.items() if (name, value) != ("at", "each")}

    @property
    def most_places(self) -> int:
        """At how many layers a step compares at most. 0: at all."""
        return 1 if self.at == "last" else self.layers

    def places(self, key: jax.Array, n_places: int) -> Float[jax.Array, " L"]:
        """Returns [L] float32: what each layer weighs in this step, 0 where it is not compared."""
        if self.at == "last":
            return jax.nn.one_hot(n_places - 1, n_places, dtype=jnp.float32)
        return choose_layers(key, n_places, self.layers)

    def sums(self, seen: Seen, batch: Batch, *, chunk: int) -> LayerSums:
        return seen.layers

    def loss(self, sums: LayerSums, norms: Norms) -> jax.Array:
        return self.weight * sums.total.loss / norms["retained"]

    def metrics(self, sums: LayerSums, norms: Norms) -> dict[str, jax.Array]:
        total, each = sums.total, sums.per_place
        kl = (each.loss - each.entropy) / jnp.maximum(each.weight, 1e-9)
        return {
            "retention_nats": total.loss / norms["retained"],
            "retention_kl_nats": (total.loss - total.entropy) / norms["retained"],
            "layer_kl_nats": jnp.where(each.weight > 0, kl, jnp.nan),
        }


def choose_layers(key: jax.Array, n_layers: int, per_step: int) -> Float[jax.Array, " L"]:
    """Returns [L] float32 weights: 1/k on k layers drawn without replacement, 0 elsewhere.

    Their sum over layer losses has the mean over all layers as its expectation. per_step 0, or at
    least L, takes all.
    """
    k = n_layers if per_step == 0 else min(per_step, n_layers)
    ranks = jax.random.permutation(key, n_layers)
    return jnp.where(ranks < k, 1.0 / k, 0.0).astype(jnp.float32)


def choose_positions(
    key: jax.Array, weights: jax.Array, per_row: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (indices [B, P] into M, weights [B, P]) of up to `per_row` weighted positions of each
    row.

    weights: [B, M]; positions of weight 0 are taken last and keep weight 0. Each of the p chosen of
    a row's n counts n / p, so a weighted sum has the sum over all n as its expectation, whatever n
    is in other rows.
    """
    b, m = weights.shape
    p = m if per_row == 0 else min(per_row, m)
    if p == m:
        return jnp.broadcast_to(jnp.arange(m), (b, m)), (weights > 0).astype(jnp.float32)
    priority = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), -1.0)
    highest, indices = jax.lax.top_k(priority, p)
    n = jnp.sum(weights > 0, axis=1, keepdims=True).astype(jnp.float32)
    return indices, jnp.where(highest >= 0, n / jnp.clip(n, 1.0, p), 0.0)


def with_drawn_positions(key: jax.Array, batch: Batch, per_row: int) -> Batch:
    """Returns the batch with `retain_positions` and `retain_weights` [B, P] beside the rest: where
    the models are compared.
    """
    counted = batch.get("held_weights", batch["loss_weights"])
    indices, weights = choose_positions(key, counted, per_row)
    positions = jnp.take_along_axis(batch["loss_positions"], indices, axis=1)
    return batch | {"retain_positions": positions, "retain_weights": weights}
