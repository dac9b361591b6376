"""One chunked cross entropy over the tied head, for every loss of this project.

    sums = cross_entropy(hidden, table, targets, weights)              # targets [B, M]: token ids
    sums = cross_entropy(hidden, table, teacher_hidden, weights)       # teacher [B, M, D]: its distribution
    each = token_losses(hidden, table, targets)                        # each.nats [B, M]: for a reward

The vocabulary has 262k tokens, so [B, T, V] is never built: positions are taken a few at a time, and
because the head is frozen, the gradient in the hidden states is formed in the same pass that forms the
logits (no recomputation; the backward pass is one multiplication). Neither the table nor the teacher
gets a gradient: this is right only while the head is frozen, which it always is here. The rows of new tokens,
which learn, are no part of that table: `new_rows` adds them to what came of it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct

from medkor_jax.parallel.mesh import BATCH_AXES, batch_ways, lay, spread, ways
from medkor_jax.train.new_rows import (
    NO_NEW_ROWS,
    NewRows,
    Walk,
    teacher_with_rows,
    tokens_with_rows,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@struct.dataclass
class TokenLosses:
    """What is known of each position, float32 [B, M].

    nats: cross entropy; entropy: of the target distribution (0 for token ids); correct: 1 where the target's most
    likely token is the model's; highest: its logit under the model. Only nats is differentiable.
    """

    nats: jax.Array
    entropy: jax.Array
    correct: jax.Array
    highest: jax.Array


@struct.dataclass
class LossSums:
    """Sums over positions, each weighted by its loss weight; float32 scalars.

    loss: nats of cross entropy; entropy: nats of the target distribution (0 for token ids), so
    loss - entropy is the KL divergence; correct: weight of positions where the target's most likely
    token is the model's; weight: sum of the weights.
    """

    loss: jax.Array
    entropy: jax.Array
    correct: jax.Array
    weight: jax.Array

    def __add__(self, other: LossSums) -> LossSums:
        return jax.tree.map(jnp.add, self, other)


def cross_entropy(
    hidden: Float[jax.Array, "B M D"],
    table: Float[jax.Array, "V D"],
    targets: Int[jax.Array, "B M"] | Float[jax.Array, "B M D"],
    weights: Float[jax.Array, "B M"],
    *,
    chunk: int = 256,
    temperature: float = 1.0,
    new: NewRows = NO_NEW_ROWS,
) -> LossSums:
    """Returns the weighted sums of cross entropy of softmax(hidden @ table^T / temperature).

    hidden: [B, M, D]; table: [V, D]; weights: [B, M] float32. targets: [B, M] int32 token ids, or
    [B, M, D] hidden states of a teacher with the same head. `chunk` bounds the positions whose logits
    exist at once on one part of the batch axes. Logits and sums are float32. Differentiable in `hidden`, and in the rows of
    `new`: those of tokens that stand behind the table's, see `new_rows`.
    """
    each = token_losses(hidden, table, targets, chunk=chunk, temperature=temperature, new=new)
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    nats, entropy, correct = (jnp.sum(weights * x) for x in (each.nats, each.entropy, each.correct))
    return LossSums(nats, entropy, correct, jnp.sum(weights))


@jax.named_scope("head")
def token_losses(
    hidden: Float[jax.Array, "B M D"],
    table: Float[jax.Array, "V D"],
    targets: Int[jax.Array, "B M"] | Float[jax.Array, "B M D"],
    *,
    chunk: int = 256,
    temperature: float = 1.0,
    new: NewRows = NO_NEW_ROWS,
) -> TokenLosses:
    """Returns the cross entropy of every position by itself; arguments and bounds as `cross_entropy`."""

    def of_table(hidden: jax.Array, targets: jax.Array) -> TokenLosses:
        return TokenLosses(*_token_losses(hidden, table, targets, chunk, temperature))

    if new.model is None:
        return of_table(hidden, targets)
    walk = Walk(of_table, table, chunk * batch_ways(), temperature)
    with_rows = tokens_with_rows if targets.ndim == 2 else teacher_with_rows
    return TokenLosses(*with_rows(walk, hidden, targets, new))


def gather_positions(
    x: Float[jax.Array, "B T D"], positions: Int[jax.Array, "B M"]
) -> Float[jax.Array, "B M D"]:
    """Returns x [B, T, D] at positions [B, M]: [B, M, D]."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _token_losses(hidden, table, targets, chunk, temperature):
    losses, _ = _walk(hidden, table, targets, chunk, temperature, with_pull=False)
    return losses


def _forward(hidden, table, targets, chunk, temperature):
    return _walk(hidden, table, targets, chunk, temperature, with_pull=True)


def _backward(chunk, temperature, pull, cotangents):
    d_nats, *_ = cotangents
    # multiplied in float32: a bfloat16 d_nats would scale the whole gradient by up to 0.4 %
    return ((pull.astype(jnp.float32) * d_nats[..., None]).astype(pull.dtype), None, None)


_token_losses.defvjp(_forward, _backward)


def _walk(hidden, table, targets, chunk, temperature, *, with_pull):
    """Returns ((nats, entropy, correct, highest), pull = d nats / d hidden [B, M, D] or None), a chunk of M at a time."""
    b, m, _ = hidden.shape
    size = max(1, min(m, chunk * batch_ways() // b))
    pad = -m % size
    fold = lambda x: jnp.moveaxis(
        jnp.pad(x, ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2))).reshape(b, -1, size, *x.shape[2:]),
        1,
        0,
    )
    unfold = lambda x: jnp.moveaxis(x, 0, 1).reshape(b, m + pad, *x.shape[3:])[:, :m]
    walk = _against_tokens if targets.ndim == 2 else _against_teacher
    return jax.tree.map(unfold, walk(fold(hidden), fold(targets), table, temperature, with_pull))


def _against_tokens(hidden, targets, table, temperature, with_pull):
    """Against token ids: one walk over blocks of the vocabulary, the sum of exponentials rescaled as a larger logit
    turns up, so that a block's logits are used while they are in cache.

    hidden: [chunks, B, size, D]. Every block meets all chunks before the next one: a table that is sharded over D is
    gathered once, a block at a time. Each part of a table sharded over V (axis t) has its part of every block and sums
    for itself, up to the end: nothing else crosses the devices.
    Source: Milakov & Gimelshein 2018 (arXiv:1805.02867), online softmax.
    """
    parts = ways("tensor") if table.shape[0] % ways("tensor") == 0 else 1
    n_blocks = _n_blocks(table.shape[0] // parts)
    blocks = table.reshape(parts, n_blocks, -1, table.shape[1])
    rows = blocks.shape[2]
    part, block_of, row = targets // (n_blocks * rows), targets // rows % n_blocks, targets % rows
    over_v = "tensor" if parts > 1 else None

    def meet(block, i, hidden, state, part, block_of, row):
        """Returns the sums of one chunk [t, B, size] after block i [t, rows, D]."""
        highest, z, target_logit, expected = state
        logits = _logits("bmd,tvd->tbmv", hidden, block, temperature)
        before, highest = highest, jnp.maximum(highest, jnp.max(logits, axis=-1))
        shrink, e = jnp.exp(before - highest), jnp.exp(logits - highest[..., None])
        here = jnp.take_along_axis(logits, row[None, ..., None], axis=-1)[..., 0]
        is_here = (block_of == i) & (part == jnp.arange(parts)[:, None, None])
        if with_pull:
            expected = expected * shrink[..., None] + jnp.einsum(
                "tbmv,tvd->tbmd",
                e.astype(hidden.dtype),
                block.astype(hidden.dtype),
                preferred_element_type=jnp.float32,
            )
        return (
            highest,
            z * shrink + jnp.sum(e, axis=-1),
            jnp.where(is_here, here, target_logit),
            expected,
        )

    def over_blocks(i, state):
        block = lay(
            jax.lax.dynamic_index_in_dim(blocks, i, axis=1, keepdims=False), over_v, None, None
        )

        def over_chunks(c, state):
            at = lambda x: spread(jax.lax.dynamic_index_in_dim(x, c, keepdims=False))
            one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, c, keepdims=False), state)
            one = meet(block, i, at(hidden), one, at(part), at(block_of), at(row))
            return jax.tree.map(
                lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, c, 0), state, one
            )

        return jax.lax.fori_loop(0, hidden.shape[0], over_chunks, state)

    sums = lambda value, like: lay(
        jnp.full((like.shape[0], parts, *like.shape[1:]), value, jnp.float32),
        None,
        over_v,
        BATCH_AXES,
        *[None] * (like.ndim - 2),
    )
    expected = sums(0.0, hidden) if with_pull else None
    start = (
        sums(jnp.finfo(jnp.float32).min, targets),
        sums(0.0, targets),
        sums(0.0, targets),
        expected,
    )
    highest_of_parts, z, target_logit, expected = jax.lax.fori_loop(0, n_blocks, over_blocks, start)
    highest = jnp.max(highest_of_parts, axis=1)
    shrink = jnp.exp(highest_of_parts - highest[:, None])
    z, target_logit = jnp.sum(z * shrink, axis=1), jnp.sum(target_logit, axis=1)
    nll = highest + jnp.log(z) - target_logit
    losses = (nll, jnp.zeros_like(nll), (target_logit == highest).astype(jnp.float32), highest)
    if not with_pull:
        return losses, None
    # d nll / d hidden = (sum_v softmax(logits)_v table_v - table_target) / temperature
    pull = jnp.sum(expected * shrink[..., None], axis=1) / z[..., None] - table[targets].astype(
        jnp.float32
    )
    return losses, (pull / temperature).astype(hidden.dtype)


def _n_blocks(n_rows):
    """Returns how many blocks of a multiple of 64 rows a vocabulary is walked in, at most 64."""
    whole = n_rows // 64 if n_rows % 64 == 0 else 1
    return max(n for n in range(1, 65) if whole % n == 0)


def _against_teacher(hidden, targets, table, temperature, with_pull):
    """Against the distributions of a teacher's hidden states: the difference of two of them is what pulls, so both are
    needed whole and chunks come first; a table sharded over D is gathered before, once for all chunks."""
    parts = ways("tensor") if table.shape[0] % ways("tensor") == 0 else 1
    table = lay(table, "tensor" if parts > 1 else None, None)

    def body(_, chunks):
        student, teacher = map(spread, chunks)
        return None, _teacher_chunk(student, teacher, table, temperature, with_pull)

    return jax.lax.scan(body, None, (hidden, targets))[1]


def _teacher_chunk(hidden, targets, table, temperature, with_pull):
    """Returns (losses, pull) of one chunk [B, size, D] against the hidden states `targets`."""
    logits = _logits("bmd,vd->bmv", hidden, table, temperature)
    highest = jnp.max(logits, axis=-1)
    log_z = highest + jnp.log(jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1))
    teacher = _logits("bmd,vd->bmv", targets, table, temperature)
    log_p = jax.nn.log_softmax(teacher, axis=-1)
    p = jnp.exp(log_p)
    nll = log_z - jnp.sum(p * logits, axis=-1)
    # an argmax over V is far slower than a maximum on some backends; equal maxima say the same
    favourite = teacher == jnp.max(teacher, axis=-1, keepdims=True)
    correct = jnp.any(favourite & (logits == highest[..., None]), axis=-1)
    losses = (nll, -jnp.sum(p * log_p, axis=-1), correct.astype(jnp.float32), highest)
    if not with_pull:
        return losses, None
    # d nll / d hidden = (softmax(logits) - target distribution) @ table / temperature
    q = jnp.exp(logits - log_z[..., None])
    frozen = table.astype(hidden.dtype)
    pull = jnp.einsum(
        "bmv,vd->bmd", (q - p).astype(hidden.dtype), frozen, preferred_element_type=jnp.float32
    )
    return losses, (pull / temperature).astype(hidden.dtype)


def _logits(sizes, hidden, table, temperature):
    logits = jnp.einsum(
        sizes, hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    return logits if temperature == 1.0 else logits / temperature
