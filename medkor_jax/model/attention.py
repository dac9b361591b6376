"""Grouped-query attention under an explicit mask, in blocks of queries when the sequence is long.

    out = attend(q, k, v, mask)        # mask [B, T, S] True where a query may look

Softmax is float32 whatever the inputs are. What may be seen (causal, window, document) is decided by
`visible`, as data, so one code path serves local and global layers under one scan.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

QUERY_BLOCK = 1024  # longer sequences are computed this many queries at a time: scores are [B,N,block,S]

_HIDDEN = jnp.finfo(jnp.float32).min


def visible(
    q_positions: jax.Array, k_positions: jax.Array, q_segments: jax.Array, k_segments: jax.Array, window: int | None
) -> jax.Array:
    """Returns [B, T, S] bool: same document, not later, and less than `window` back (None: no limit).

    Positions and segment ids are [B, T] and [B, S]; segment 0 is padding and is seen by padding alone.
    """
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    mask = (distance >= 0) & (q_segments[:, :, None] == k_segments[:, None, :])
    return mask if window is None else mask & (distance < window)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns softmax(q k^T) v with hidden scores masked, heads joined: [B, T, N*H].

    q: [B, T, N, H], already scaled; k, v: [B, S, K, H]; mask: [B, T, S]. Head n reads key head n // (N/K).
    """
    t = q.shape[1]
    if t <= QUERY_BLOCK or t % QUERY_BLOCK:
        return _attend_block(q, k, v, mask)
    blocks = t // QUERY_BLOCK
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], blocks, QUERY_BLOCK, *x.shape[2:]), 1, 0)  # noqa: E731
    block = jax.checkpoint(lambda qm: _attend_block(qm[0], k, v, qm[1]))
    out = jax.lax.map(block, (split(q), split(mask)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], t, -1)


def _attend_block(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    b, t, n, h = q.shape
    kv = k.shape[2]
    q = q.reshape(b, t, kv, n // kv, h)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, _HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(b, t, n * h)
