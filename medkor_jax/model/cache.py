"""What a decoder remembers of the tokens it has read: keys and values in two stacks of rings.

    cache = make_cache(config, kinds, lengths, size=768, dtype=jnp.float32)
    cache = store_prompt(cache, layer, k, v)                    # layer by layer, once
    cache = open_slot(cache, positions)                         # once a token, then layer by layer:
    cache = store_token(cache, layer, k, v);  attend_cached(cache, layer, q, masks)

Local layers share one stack of rings no longer than their window, global layers one that holds everything.
A layer is data (its kind and its index in the stack of its kind), so one compiled block body serves all.

Each ring ends with the row's prompt: slot R - 1 holds its last token, whatever its length, so the next token
goes to the same slot in every row and is written in place by one `dynamic_update_slice`. What a slot holds is
its position, kept beside it; what may be seen is decided by positions alone. A slot is written again only when
what it held lies outside the window or was never there; the caller calls `grow` before that stops being true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from medkor_jax.model.config import GLOBAL, LOCAL, ModelConfig
from medkor_jax.parallel.mesh import BATCH_AXES

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_EMPTY = -1  # position of a slot that holds nothing
_HIDDEN = jnp.finfo(jnp.float32).min


class Ring(struct.PyTreeNode):
    """keys, values: [layers of the kind, B, K, R, H]; positions: [B, R] int32, -1 where a slot is empty."""

    keys: jax.Array
    values: jax.Array
    positions: jax.Array

    @property
    def size(self) -> int:
        return self.positions.shape[1]


class Cache(struct.PyTreeNode):
    """Both stacks, and the number of tokens written since the rings last ended with their newest token."""

    local: Ring
    full: Ring
    n_written: jax.Array


@struct.dataclass
class CacheLayer:
    """Which rings belong to a layer: is_local [] bool; index [] int32 within the stack of its kind."""

    is_local: jax.Array
    index: jax.Array


@struct.dataclass
class Masks:
    """[B, R] bool for each kind: which slots the newest token sees."""

    local: jax.Array
    full: jax.Array


def make_layers(kinds: Sequence[str]) -> CacheLayer:
    """Returns the place in the cache of every layer of `kinds`, stacked: scanned beside the weights."""
    is_local = np.array([kind == LOCAL for kind in kinds])
    index = np.where(is_local, np.cumsum(is_local), np.cumsum(~is_local)) - 1
    return CacheLayer(jnp.asarray(is_local), jnp.asarray(index, jnp.int32))


def make_cache(config: ModelConfig, kinds: Sequence[str], lengths: Int[jax.Array, " B"], *, size: int, dtype: Any) -> Cache:
    """Returns empty rings whose slots already stand for the last tokens of prompts of `lengths` [B].

    kinds: of every layer that will store, added ones too (`params.layer_kinds`).
    size: tokens that a row may hold, prompt and generated; rings of local layers stop at the window.
    """

    def ring(kind: str, slots: int) -> Ring:
        n = max(list(kinds).count(kind), 1)  # a model may lack a kind; its ring is then never seen
        shape = (n, lengths.shape[0], config.n_kv_heads, slots, config.head_dim)
        positions = lengths[:, None] - slots + jnp.arange(slots, dtype=jnp.int32)
        return _lay(Ring(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.maximum(positions, _EMPTY)))

    return Cache(ring(LOCAL, min(config.sliding_window, size)), ring(GLOBAL, size), jnp.zeros((), jnp.int32))


def store_prompt(
    cache: Cache, layer: CacheLayer, k: Float[jax.Array, "B T K H"], v: Float[jax.Array, "B T K H"]
) -> Cache:
    """Returns the cache with a layer's keys and values [B, T, K, H] of the prompt, position t at index t."""

    def store(ring: Ring, is_mine: jax.Array) -> Ring:
        at = jnp.maximum(ring.positions, 0)[:, :, None, None]
        rows = [jnp.moveaxis(jnp.take_along_axis(x, at, axis=1), 1, 2) for x in (k, v)]
        return _write(ring, is_mine, layer.index, 0, *rows)

    return cache.replace(local=store(cache.local, layer.is_local), full=store(cache.full, ~layer.is_local))


def open_slot(cache: Cache, positions: Int[jax.Array, " B"]) -> Cache:
    """Returns the cache ready for one token a row, at `positions` [B]; `store_token` then fills each layer."""

    def opened(ring: Ring) -> Ring:
        slot = cache.n_written % ring.size
        update = jax.lax.dynamic_update_slice(ring.positions, positions[:, None], (0, slot))
        return ring.replace(positions=update)

    return cache.replace(local=opened(cache.local), full=opened(cache.full), n_written=cache.n_written + 1)


def store_token(
    cache: Cache, layer: CacheLayer, k: Float[jax.Array, "B 1 K H"], v: Float[jax.Array, "B 1 K H"]
) -> Cache:
    """Returns the cache with a layer's keys and values [B, 1, K, H] in the slot opened last."""
    rows = (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))

    def store(ring: Ring, is_mine: jax.Array) -> Ring:
        return _write(ring, is_mine, layer.index, (cache.n_written - 1) % ring.size, *rows)

    return cache.replace(local=store(cache.local, layer.is_local), full=store(cache.full, ~layer.is_local))


def make_masks(cache: Cache, positions: Int[jax.Array, " B"]) -> Masks:
    """Returns what the tokens at `positions` [B], just given a slot, see: every filled slot up to their own.

    No window is asked for: a local ring is no longer than it, so what lies beyond has been written over.
    """

    def seen(ring: Ring) -> jax.Array:
        return (ring.positions >= 0) & (ring.positions <= positions[:, None])

    return Masks(local=seen(cache.local), full=seen(cache.full))


@jax.named_scope("attention")
def attend_cached(
    cache: Cache, layer: CacheLayer, q: Float[jax.Array, "B 1 N H"], masks: Masks
) -> Float[jax.Array, "B 1 N*H"]:
    """Returns softmax(q k^T) v over the layer's ring, heads joined: [B, 1, N*H]. q: [B, 1, N, H], scaled."""

    def over(ring: Ring, mask: jax.Array) -> jax.Array:
        k = jax.lax.dynamic_index_in_dim(ring.keys, layer.index, keepdims=False)
        v = jax.lax.dynamic_index_in_dim(ring.values, layer.index, keepdims=False)
        b, kv, _, h = k.shape
        scores = jnp.einsum("bkgh,bksh->bkgs", q.reshape(b, kv, -1, h), k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, _HIDDEN), axis=-1)
        return jnp.einsum("bkgs,bksh->bkgh", weights.astype(v.dtype), v).reshape(b, 1, -1)

    return jax.lax.cond(
        layer.is_local, lambda: over(cache.local, masks.local), lambda: over(cache.full, masks.full)
    )


def grow(cache: Cache, config: ModelConfig, *, size: int) -> Cache:
    """Returns the cache with room for `size` tokens a row: each ring turned so that its newest slot is last, then longer."""

    def grown(ring: Ring, slots: int) -> Ring:
        turn = -(cache.n_written % ring.size)
        more = slots - ring.size
        keys, values = (
            jnp.pad(jnp.roll(x, turn, axis=3), ((0, 0), (0, 0), (0, 0), (more, 0), (0, 0)))
            for x in (ring.keys, ring.values)
        )
        positions = jnp.pad(jnp.roll(ring.positions, turn, axis=1), ((0, 0), (more, 0)), constant_values=_EMPTY)
        return _lay(Ring(keys, values, positions))

    local = grown(cache.local, min(config.sliding_window, size))
    return Cache(local, grown(cache.full, size), jnp.zeros((), jnp.int32))


def _write(ring: Ring, is_mine: jax.Array, index: jax.Array, slot: Any, k: jax.Array, v: jax.Array) -> Ring:
    """Writes [B, K, slots, H] from `slot` on if the ring is the layer's own, else writes back what is there.

    Writing always keeps the update in place; a branch around it would copy the whole stack.
    """

    def put(stack: jax.Array, rows: jax.Array) -> jax.Array:
        at = (index, 0, 0, slot, 0)
        old = jax.lax.dynamic_slice(stack, at, (1, *rows.shape))
        return jax.lax.dynamic_update_slice(stack, jnp.where(is_mine, rows[None].astype(stack.dtype), old), at)

    return ring.replace(keys=put(ring.keys, k), values=put(ring.values, v))


def _lay(ring: Ring) -> Ring:
    """Returns the ring with rows over the batch axes and key heads over `tensor` where it divides them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ring
    heads = "tensor" if ring.keys.shape[2] % mesh.shape.get("tensor", 1) == 0 else None
    stack = PartitionSpec(None, BATCH_AXES, heads)
    lay = jax.lax.with_sharding_constraint
    return Ring(lay(ring.keys, stack), lay(ring.values, stack), lay(ring.positions, PartitionSpec(BATCH_AXES)))
