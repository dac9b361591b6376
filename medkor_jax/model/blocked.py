"""Attention over long sequences a block of queries at a time, reading only the keys a block can see.

    out = attend_blocks(q, k, v, seen, window=1024)     # [B, T, N*H]: a local layer costs T x (window + a block)

What is never seen is left out by place in the row: a document lies in one piece, its positions one apart, so nothing
is seen from before `window` places back, nor from behind (branches break the first rule: then no key is left
out for the window). What else is hidden (documents, the exact window) is masked. Plain matrix products, on any
platform; the numbers are those of `attention.attend` under the whole mask, up to the order of sums.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from medkor_jax.model.attention import Seen, attend_backward, attend_forward, visible

if TYPE_CHECKING:
    from jaxtyping import Float

BLOCK = 256  # queries at a time: scores are [B, N, BLOCK, keys]
_STRETCHES = 4  # in so many parts of a row are the keys behind it left out: 5/8 of all scores remain


def n_scores(t: int, window: int | None) -> int:
    """Returns how many scores `attend_blocks` computes for each head of a sequence of t tokens, those it then hides included."""
    return sum(n * BLOCK * width for _, n, width, _ in _stretches(t + -t % BLOCK, window))


def attend_blocks(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T K H"],
    v: Float[jax.Array, "B T K H"],
    seen: Seen,
    window: int | None,
) -> Float[jax.Array, "B T N*H"]:
    """Returns softmax(q k^T) v, heads joined: [B, T, N*H]. q: [B, T, N, H], already scaled; k, v: [B, T, K, H].

    window None: everything before. T need not be a multiple of the block: what is added sees itself alone.
    """
    t = q.shape[1]
    pad = lambda x, value=0: jnp.pad(x, ((0, 0), (0, -t % BLOCK), *[(0, 0)] * (x.ndim - 2)), constant_values=value)  # noqa: E731
    seen = Seen(pad(seen.positions), pad(seen.segments, -1), None if seen.branches is None else pad(seen.branches))
    return _attend(window, pad(q), pad(k), pad(v), seen)[:, :t]


def _stretches(t: int, window: int | None, has_branches: bool = False) -> list[tuple[int, int, int, bool]]:
    """Returns (first block, how many, keys each sees, whether those end with the block) of each part of a row."""
    blocks = t // BLOCK
    reach = BLOCK + (-(-(window - 1) // BLOCK) * BLOCK if window and not has_branches else t)
    if reach < t:
        return [(0, blocks, reach, True)]
    parts = min(_STRETCHES, blocks)
    ends = [blocks * (i + 1) // parts for i in range(parts)]
    return [(first, end - first, end * BLOCK, False) for first, end in zip([0, *ends], ends)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window, q, k, v, seen):
    return _forward(window, q, k, v, seen)[0]


def _forward(window, q, k, v, seen):
    def part(first, n, width, slides):
        def block(i):
            qb, kb, vb, mask, _ = _block(i, width, slides, window, q, k, v, seen)
            return attend_forward(qb, kb, vb, mask)[0]

        return jax.lax.map(block, first + jnp.arange(n))

    blocks = [part(*stretch) for stretch in _stretches(q.shape[1], window, seen.branches is not None)]
    return _join(jnp.concatenate(blocks)), (q, k, v, seen)


def _backward(window, kept, cotangent):
    """Scores are made again; the gradients of keys and values gather in float32 as the blocks that saw them come by."""
    q, k, v, seen = kept

    def part(sums, first, n, width, slides):
        def block(sums, i):
            qb, kb, vb, mask, start = _block(i, width, slides, window, q, k, v, seen)
            _, made = attend_forward(qb, kb, vb, mask)
            d_q, d_k, d_v, _ = attend_backward(made, _cut(cotangent, i * BLOCK, BLOCK))
            add = lambda sums, d: _put(sums, _cut(sums, start, width) + d.astype(jnp.float32), start)  # noqa: E731
            return jax.tree.map(add, sums, (d_k, d_v)), d_q

        return jax.lax.scan(block, sums, first + jnp.arange(n))

    sums, d_q = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)), []
    for stretch in _stretches(q.shape[1], window, seen.branches is not None):
        sums, d = part(sums, *stretch)
        d_q.append(d)
    return _join(jnp.concatenate(d_q)), sums[0].astype(k.dtype), sums[1].astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _block(i, width, slides, window, q, k, v, seen):
    """Returns (queries, keys, values, mask, place of the first key) of block i."""
    start = jnp.clip((i + 1) * BLOCK - width, 0, k.shape[1] - width) if slides else jnp.zeros_like(i)
    of_queries = jax.tree.map(lambda x: _cut(x, i * BLOCK, BLOCK), seen)
    of_keys = jax.tree.map(lambda x: _cut(x, start, width), seen)
    mask = visible(of_queries, of_keys, window)
    return _cut(q, i * BLOCK, BLOCK), _cut(k, start, width), _cut(v, start, width), mask, start


def _cut(x, start, width):
    return jax.lax.dynamic_slice_in_dim(x, start, width, axis=1)


def _put(x, part, start):
    return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis=1)


def _join(blocks):
    """[blocks, B, BLOCK, ...] -> [B, T, ...]"""
    return jnp.moveaxis(blocks, 0, 1).reshape(blocks.shape[1], -1, *blocks.shape[3:])
