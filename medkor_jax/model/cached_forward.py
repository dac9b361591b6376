"""The forward pass with a memory: a whole prompt once, then a token a row at a time.

    hidden, cache = read_prompt(params, config, tokens, lengths, langs, size=768, dtype=jnp.float32)
    hidden, cache = read_token(params, config, cache, tokens, positions, langs, dtype=jnp.float32)

Both return the final hidden state of each row's last token, equal to what `forward` has at that position. The
blocks, embeddings and adapters are those of `forward`; only what attention sees differs.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any, Callable

import jax
import jax.numpy as jnp

from medkor_jax.model import cache as kv
from medkor_jax.model.attention import Seen
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.forward import LayerInputs, edge_inputs, embed, layer_inputs, make_view, run_block
from medkor_jax.model.layers import Adapters, Rope, make_rope, rms_norm
from medkor_jax.model.params import SIDES, Params, layer_kinds

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def read_prompt(
    params: Params,
    config: ModelConfig,
    tokens: Int[jax.Array, "B T"],
    lengths: Int[jax.Array, " B"],
    langs: Int[jax.Array, "B T"],
    *,
    size: int,
    dtype: Any,
) -> tuple[Float[jax.Array, "B D"], kv.Cache]:
    """Returns the final hidden state of each row's last token, [B, D], and the cache of all of them.

    tokens, langs: [B, T], padded on the right; lengths: [B]; size: tokens a row that the cache has room for.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    view = make_view(config, Seen(positions, (positions < lengths[:, None]).astype(jnp.int32)))

    def attend(cache, layer, q, k, v):
        return view.attend(q, k, v, layer.is_local), kv.store_prompt(cache, layer, k, v)

    x = embed(params, config, tokens, langs, dtype)
    cache = kv.make_cache(config, layer_kinds(params, config), lengths, size=size, dtype=dtype)
    x, cache = _run_layers(params, config, x, cache, view.rope, attend)
    x = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0]
    return rms_norm(x, params.base["final_norm"], config.rms_eps), cache


def read_token(
    params: Params,
    config: ModelConfig,
    cache: kv.Cache,
    tokens: Int[jax.Array, " B"],
    positions: Int[jax.Array, " B"],
    langs: Int[jax.Array, " B"],
    *,
    dtype: Any,
) -> tuple[Float[jax.Array, "B D"], kv.Cache]:
    """Returns the final hidden state of one more token a row, [B, D], and the cache with it. All inputs [B]."""
    cache = kv.open_slot(cache, positions)
    masks = kv.make_masks(cache, positions)
    at = positions[:, None]
    local = make_rope(at, config.head_dim, config.rope_base_local, 1.0)
    full = make_rope(at, config.head_dim, config.rope_base_global, config.rope_scaling_global)

    def rope(is_local: jax.Array) -> Rope:
        return jax.tree.map(functools.partial(jnp.where, is_local), local, full)

    def attend(cache, layer, q, k, v):
        cache = kv.store_token(cache, layer, k, v)
        return kv.attend_cached(cache, layer, q, masks), cache

    x = embed(params, config, tokens[:, None], langs[:, None], dtype)
    x, cache = _run_layers(params, config, x, cache, rope, attend)
    return rms_norm(x[:, 0], params.base["final_norm"], config.rms_eps), cache


def _run_layers(params: Params, config: ModelConfig, x: jax.Array, cache: kv.Cache, rope: Callable, attend: Callable):
    """Returns (x [B, T, D], cache) after all layers: scans that carry the cache, so it is updated in place.

    In the cache layers stand as they run: those added in front before the base's, those added behind after them.
    """

    def body(carry: tuple[jax.Array, kv.Cache], scanned: tuple[LayerInputs, kv.CacheLayer]):
        (x, cache), (layer, place) = carry, scanned

        def attend_here(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal cache
            out, cache = attend(cache, place, q, k, v)
            return out

        adapters = Adapters(layer.lora, scale=params.lora_scale) if layer.lora else None
        x = run_block(config, layer.base, rope(place.is_local), attend_here, x, adapters)
        return (x, cache), None

    front, back = (edge_inputs(params, config, side) for side in SIDES)
    places = kv.make_layers(layer_kinds(params, config))
    carry, start = (x, cache), 0
    for stack in (*front, layer_inputs(params, config, None), *back):
        stop = start + stack.plan.is_local.shape[0]
        mine = jax.tree.map(operator.itemgetter(slice(start, stop)), places)
        carry, _ = jax.lax.scan(body, carry, (stack, mine))
        start = stop
    return carry
