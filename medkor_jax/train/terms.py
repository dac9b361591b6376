"""What a loss is made of: terms, each a file with its settings, sums, loss and metrics.

    terms = terms_of(stage)                                 # those in force, a plain tuple
    sums = tuple(term.sums(seen, batch, chunk=256) for term in terms)

To add one: a frozen dataclass that does what `Term` says in a file of its own (`next_token` is the
shortest), a field of it in `stage.Stage` (its settings are then keys of every config) and its place
in `stage.terms_of`. The step divides, differentiates, adds up and updates, whatever the terms; all
of them read one forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import struct

from medkor_jax.train.new_rows import NO_NEW_ROWS, NewRows

Batch = dict[str, jax.Array]
Norms = Mapping[str, jax.Array]
"""Float32 scalars of the whole global batch: "loss_tokens", and with "each layer" training
"retained".
"""


@struct.dataclass
class Seen:
    """What the forward pass of a part of the batch leaves. hidden: [B, T, D], after the final norm;
    table: the head, [V, D], frozen; new_rows: what stands behind it; layers: what "each layer" training compared on the way
    (`each_layer.LayerSums`), None without it."""

    hidden: jax.Array
    table: jax.Array
    layers: Any = None
    new_rows: NewRows = NO_NEW_ROWS


class Term(Protocol):
    """A part of the loss."""

    @property
    def is_on(self) -> bool:
        """Whether it is in force; what is not costs nothing."""

    def sums(self, seen: Seen, batch: Batch, *, chunk: int) -> Any:
        """Returns sums over a part of the batch, with `+`. chunk: positions whose logits may exist
        at once.
        """

    def loss(self, sums: Any, norms: Norms) -> jax.Array:
        """Returns the term's share of the loss, a float32 scalar, weighted and divided."""

    def metrics(self, sums: Any, norms: Norms) -> dict[str, jax.Array]:
        """Returns what is logged of it."""
