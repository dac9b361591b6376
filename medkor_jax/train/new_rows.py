"""Cross entropy over a head that has rows behind its frozen table: those of new tokens, which learn.

    new = NewRows.of(params, reference)
    token_losses(hidden, table, targets, new=new)       # targets may be new tokens: ids from V on

The frozen table is walked as without them (`losses`), and gives each position's log sum z over the V tokens; the N new logits
give theirs, plainly differentiated. Of a target of the table's that is  nats + softplus(z_new - z),  of a new one
logaddexp(z, z_new) - its logit.  A teacher without new rows gives new tokens no probability; one that has them has the same.
N is a few thousand: its logits exist for `chunk` positions at a time, and again in the backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from medkor_jax.model.params import Params, new_head_rows
from medkor_jax.parallel.mesh import replicate


@struct.dataclass
class NewRows:
    """Rows of the head behind its table, [N, D]: the model's, which get a gradient, and the teacher's. None: there are none."""

    model: jax.Array | None = None
    teacher: jax.Array | None = None

    @classmethod
    def of(cls, params: Params, reference: Params | None = None) -> NewRows:
        held = None if reference is None else new_head_rows(reference)
        return cls(new_head_rows(params), held)


NO_NEW_ROWS = NewRows()


@dataclasses.dataclass(frozen=True)
class Walk:
    """How losses over the frozen table come about: of_table(hidden, targets) gives nats, entropy, correct and highest [B, M].

    positions: of the whole batch whose new logits may exist at once.
    """

    of_table: Callable[[jax.Array, jax.Array], Any]
    table: jax.Array
    positions: int
    temperature: float

    def log_sum(self, hidden: jax.Array, ids: jax.Array) -> tuple[jax.Array, Any]:
        """Returns (log sum of exponentials over the table [B, M], losses of `ids`); differentiable in hidden."""
        each = self.of_table(hidden, ids)
        rows = jax.lax.stop_gradient(self.table[ids]).astype(hidden.dtype)
        logit = jnp.einsum("bmd,bmd->bm", hidden, rows, preferred_element_type=jnp.float32)
        return each.nats + logit / self.temperature, each

    def over_new(self, function: Callable[..., Any], rows: Any, *of: jax.Array) -> Any:
        """Returns function(rows, *of), arrays [B, M], some positions of `of` [B, M, ..] at a time."""
        b, m = of[0].shape[:2]
        size = max(1, min(m, self.positions // b))
        pad = -m % size
        fold = lambda x: jnp.moveaxis(
            jnp.pad(x, ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2))).reshape(
                b, -1, size, *x.shape[2:]
            ),
            1,
            0,
        )
        rows = jax.tree.map(replicate, rows)
        found = jax.lax.map(
            jax.checkpoint(lambda part: function(rows, *part)), tuple(map(fold, of))
        )
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(b, m + pad)[:, :m], found)

    def logits(self, hidden: jax.Array, rows: jax.Array) -> jax.Array:
        logits = jnp.einsum(
            "bmd,nd->bmn", hidden, rows.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        return logits / self.temperature


def tokens_with_rows(
    walk: Walk, hidden: jax.Array, targets: jax.Array, new: NewRows
) -> tuple[jax.Array, ...]:
    """Returns (nats, entropy, correct, highest) [B, M] against token ids, of V + N."""
    first = walk.table.shape[0]
    is_new = targets >= first
    z, old = walk.log_sum(hidden, jnp.minimum(targets, first - 1))

    def part(rows: jax.Array, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        logits = walk.logits(hidden, rows)
        at = jnp.maximum(targets - first, 0)[..., None]
        logit = jnp.take_along_axis(logits, at, axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1), logit, jnp.max(logits, axis=-1)

    z_new, logit, highest_new = walk.over_new(part, new.model, hidden, targets)
    nats = jnp.where(is_new, jnp.logaddexp(z, z_new) - logit, old.nats + jax.nn.softplus(z_new - z))
    highest = jnp.maximum(old.highest, highest_new)
    correct = jnp.where(is_new, logit == highest, (old.correct > 0) & (old.highest == highest))
    return nats, jnp.zeros_like(nats), correct.astype(jnp.float32), highest


def teacher_with_rows(
    walk: Walk, hidden: jax.Array, teacher: jax.Array, new: NewRows
) -> tuple[jax.Array, ...]:
    """Returns the same against the distributions of a teacher's hidden states [B, M, D]."""
    old = walk.of_table(hidden, teacher)
    first_token = jnp.zeros(hidden.shape[:2], jnp.int32)
    z, _ = walk.log_sum(hidden, first_token)
    expected = z - old.nats  # the model's mean logit under the teacher, of the table's tokens
    if new.teacher is None:
        z_new, highest_new = walk.over_new(
            lambda rows, hidden: _sum_and_highest(walk.logits(hidden, rows)), new.model, hidden
        )
        is_correct = (old.correct > 0) & (highest_new < old.highest)
        nats = old.nats + jax.nn.softplus(z_new - z)
        return (
            nats,
            old.entropy,
            is_correct.astype(jnp.float32),
            jnp.maximum(old.highest, highest_new),
        )
    z_teacher, theirs = jax.lax.stop_gradient(walk.log_sum(teacher, first_token))
    return _both_new(walk, hidden, teacher, new, (old, z, expected, z_teacher, theirs.highest))


def _both_new(
    walk: Walk, hidden: jax.Array, teacher: jax.Array, new: NewRows, of_table: tuple[Any, ...]
) -> tuple[jax.Array, ...]:
    """Returns the same where both have new rows. of_table: what the table alone gave of both."""
    old, z, expected, z_teacher, highest_teacher = of_table

    def part(rows: NewRows, hidden: jax.Array, teacher: jax.Array, z_teacher: jax.Array):
        logits = walk.logits(hidden, rows.model)
        theirs = jax.lax.stop_gradient(walk.logits(teacher, rows.teacher))
        all_theirs = jnp.logaddexp(z_teacher, jax.nn.logsumexp(theirs, axis=-1))
        log_p = theirs - all_theirs[..., None]
        p, favourite = jnp.exp(log_p), jnp.max(theirs, axis=-1)
        z_new, highest = _sum_and_highest(logits)
        is_same = jnp.any((theirs == favourite[..., None]) & (logits == highest[..., None]), -1)
        return (
            z_new,
            highest,
            all_theirs,
            jnp.sum(p * logits, -1),
            -jnp.sum(p * log_p, -1),
            favourite,
            is_same,
        )

    z_new, highest_new, all_theirs, expected_new, entropy_new, favourite, is_same = walk.over_new(
        part, new, hidden, teacher, z_teacher
    )
    log_share = z_teacher - all_theirs  # of the teacher's probability, what the table's tokens have
    share = jnp.exp(log_share)
    nats = jnp.logaddexp(z, z_new) - share * expected - expected_new
    entropy = share * (old.entropy - log_share) + entropy_new
    highest = jnp.maximum(old.highest, highest_new)
    correct = jnp.where(
        favourite > highest_teacher,
        is_same & (highest_new == highest),
        (old.correct > 0) & (old.highest == highest),
    )
    return nats, entropy, correct.astype(jnp.float32), highest


def _sum_and_highest(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.nn.logsumexp(logits, axis=-1), jnp.max(logits, axis=-1)
