"""Grouped-query attention under an explicit mask, in blocks of queries when the sequence is long.

    out = attend(q, k, v, mask)        # mask [B, T, S] True where a query may look

Softmax is float32 whatever the inputs are. What may be seen (causal, window, document) is decided by
`visible`, as data, so one code path serves local and global layers under one scan. Long rows have better ones, which
leave out what a window hides: `kernel` chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

QUERY_BLOCK = 1024  # longer sequences are computed this many queries at a time: scores are [B,N,block,S]
CAUSAL_BLOCK = 256  # shorter ones skip more keys, and make products too small to be quick

_HIDDEN = jnp.finfo(jnp.float32).min


@struct.dataclass
class Seen:
    """What decides who sees whom: positions, segments, branches [B, T] int32.

    Segment 0 is padding and is seen by padding alone. branches: continuations of one document that share what stands
    before them; each sees itself and branch 0. None: there are none.
    """

    positions: jax.Array
    segments: jax.Array
    branches: jax.Array | None = None


def visible(of_queries: Seen, of_keys: Seen, window: int | None) -> Bool[jax.Array, "B T S"]:
    """Returns [B, T, S] bool: same document, not later, and less than `window` back (None: no limit)."""
    distance = of_queries.positions[:, :, None] - of_keys.positions[:, None, :]
    mask = (distance >= 0) & (of_queries.segments[:, :, None] == of_keys.segments[:, None, :])
    if of_queries.branches is not None:
        mask &= (of_keys.branches[:, None, :] == 0) | (of_queries.branches[:, :, None] == of_keys.branches[:, None, :])
    return mask if window is None else mask & (distance < window)


@jax.named_scope("attention")
def attend(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B S K H"],
    v: Float[jax.Array, "B S K H"],
    mask: Bool[jax.Array, "B T S"],
) -> Float[jax.Array, "B T N*H"]:
    """Returns softmax(q k^T) v with hidden scores masked, heads joined: [B, T, N*H].

    q: [B, T, N, H], already scaled; k, v: [B, S, K, H]; mask: [B, T, S]. Head n reads key head n // (N/K).
    Where T == S the keys must be the queries' own, in the same order: then no query sees a later key, and
    those are not computed.
    """
    t = q.shape[1]
    if t == k.shape[1] and (ends := _causal_ends(t)):
        parts = [_attend_block(q[:, e - CAUSAL_BLOCK : e], k[:, :e], v[:, :e], mask[:, e - CAUSAL_BLOCK : e, :e]) for e in ends]
        return jnp.concatenate(parts, axis=1)
    if t <= QUERY_BLOCK or t % QUERY_BLOCK:
        return _attend_block(q, k, v, mask)
    blocks = t // QUERY_BLOCK
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], blocks, QUERY_BLOCK, *x.shape[2:]), 1, 0)  # noqa: E731
    block = jax.checkpoint(lambda qm: _attend_block(qm[0], k, v, qm[1]))
    out = jax.lax.map(block, (split(q), split(mask)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], t, -1)


def causal_scores(t: int) -> int:
    """Returns how many scores `attend` computes for each head of a sequence of t tokens, those it then hides included."""
    return CAUSAL_BLOCK * sum(_causal_ends(t)) or t * t


def _causal_ends(t: int) -> range:
    """Returns where each causal block of a sequence of t tokens ends; none, if it is not computed in such blocks."""
    in_causal_blocks = t % CAUSAL_BLOCK == 0 and (t <= QUERY_BLOCK or t % QUERY_BLOCK != 0)
    return range(CAUSAL_BLOCK, t + 1, CAUSAL_BLOCK) if in_causal_blocks else range(0)


@jax.custom_vjp
def _attend_block(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    return attend_forward(q, k, v, mask)[0]


def attend_forward(q, k, v, mask):
    """Queries of a group stand below one another (X = G*T), so that each key head is one matrix product.

    Keeps q, k, v and the weights for the backward pass, which puts the smaller operand of each product first:
    XLA on a CPU transposes that one, and would otherwise transpose the [X, S] scores.
    """
    b, t, n, h = q.shape
    kv = k.shape[2]
    q = _fold_heads(q, kv)
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    scores = jnp.einsum("bkxh,bksh->bkxs", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores.reshape(b, kv, n // kv, t, -1), _HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(b, kv, n // kv * t, -1)
    out = jnp.einsum("bkxs,bksh->bkxh", weights, v)
    return _unfold_heads(out, t).reshape(b, t, n * h), (q, k, v, weights)


def attend_backward(kept, cotangent):
    q, k, v, weights = kept
    b, kv, _x, h = q.shape
    t = cotangent.shape[1]
    d_out = _fold_heads(cotangent.reshape(b, t, -1, h), kv)
    d_v = jnp.einsum("bkxh,bkxs->bkhs", d_out, weights)
    d_weights = jnp.einsum("bkxh,bksh->bkxs", d_out, v, preferred_element_type=jnp.float32)
    p = weights.astype(jnp.float32)
    d_scores = (p * (d_weights - jnp.sum(p * d_weights, axis=-1, keepdims=True))).astype(q.dtype)
    d_q = jnp.einsum("bkxs,bksh->bkxh", d_scores, k)
    d_k = jnp.einsum("bkxh,bkxs->bkhs", q, d_scores)
    return _unfold_heads(d_q, t), jnp.transpose(d_k, (0, 3, 1, 2)), jnp.transpose(d_v, (0, 3, 1, 2)), None


_attend_block.defvjp(attend_forward, attend_backward)


def _fold_heads(x: jax.Array, kv: int) -> jax.Array:
    """[B, T, N, H] -> [B, K, G*T, H]"""
    b, t, n, h = x.shape
    return jnp.transpose(x.reshape(b, t, kv, n // kv, h), (0, 2, 3, 1, 4)).reshape(b, kv, n // kv * t, h)


def _unfold_heads(x: jax.Array, t: int) -> jax.Array:
    """[B, K, G*T, H] -> [B, T, N, H]"""
    b, kv, gt, h = x.shape
    return jnp.transpose(x.reshape(b, kv, gt // t, t, h), (0, 3, 1, 2, 4)).reshape(b, t, -1, h)
