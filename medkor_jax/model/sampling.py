"""From the logits of one position to one token a row.

    choose_tokens(logits, Sampling(temperature=0.7, top_p=0.95), seeds, step)       # [B] int32

Temperature first, then top-k, then top-p on what top-k left. A draw depends on its row's seed, the step and the
row's logits, never on its neighbours. No sort and no random number per word of the vocabulary: both would cost
more than the model on a CPU.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt

_BLOCK = 64  # a draw goes over blocks of this many tokens first, then within one
_SEARCHED = 256  # blocks in which top-p looks first


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep the whole vocabulary.

    Raises: ValueError on values without meaning.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")


@jax.named_scope("sampling")
def choose_tokens(
    logits: Float[jax.Array, "B V"], sampling: Sampling, seeds: UInt[jax.Array, " B"], step: Int[jax.Array, ""]
) -> Int[jax.Array, " B"]:
    """Returns [B] int32. logits: [B, V] float32; seeds: [B] uint32; step: [] int32, tokens drawn before this one."""
    if sampling.temperature == 0.0:
        return _argmax(logits)
    kept = restrict(logits, sampling)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(seeds)
    return jax.vmap(_draw)(keys, kept)


def restrict(logits: Float[jax.Array, "B V"], sampling: Sampling) -> Float[jax.Array, "B V"]:
    """Returns logits / temperature with what top-k and top-p leave out at -inf: [B, V].

    Tokens that tie with the last one kept are kept too.
    Source: top-k, Fan et al. 2018 (arXiv:1805.04833); top-p, Holtzman et al. 2019 (arXiv:1904.09751).
    """
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _keep_best(logits, jnp.ones_like(logits), sampling.top_k, n_blocks=sampling.top_k)
    if sampling.top_p < 1.0:
        logits = _keep_best(logits, jax.nn.softmax(logits, axis=-1), sampling.top_p, n_blocks=_SEARCHED)
    return logits


def _keep_best(logits: jax.Array, weights: jax.Array, goal: float, n_blocks: int) -> jax.Array:
    """Returns logits [B, V], all -inf but the fewest best tokens of a row whose `weights` sum to at least `goal`.

    What is kept lies in the blocks with the highest maxima, nearly always in few of them: only `n_blocks` are searched, and
    all of the vocabulary where a row's few do not reach the goal (as many blocks as tokens are to be kept always do).
    """
    blocks = _blocks(logits)
    if n_blocks >= blocks.shape[1]:
        return jnp.where(logits >= _last_kept(logits, weights, goal, logits.min(axis=-1, keepdims=True)), logits, -jnp.inf)
    highest, which = jax.lax.top_k(blocks.max(axis=-1), n_blocks)
    few, of_few = (jnp.take_along_axis(x, which[:, :, None], axis=1).reshape(x.shape[0], -1) for x in (blocks, _blocks(weights, 0.0)))
    # No token of another block is better than this. As a minimum: XLA turns a slice of top_k back into a whole sort.
    floor = highest.min(axis=-1, keepdims=True)
    is_enough = jnp.all(jnp.where(few >= floor, of_few, 0.0).sum(axis=-1) >= goal)
    last = jax.lax.cond(
        is_enough,
        lambda: _last_kept(few, of_few, goal, floor),
        lambda: _last_kept(logits, weights, goal, logits.min(axis=-1, keepdims=True)),
    )
    return jnp.where(logits >= last, logits, -jnp.inf)


def _last_kept(logits: jax.Array, weights: jax.Array, goal: float, floor: jax.Array) -> jax.Array:
    """Returns the highest logit [B, 1] from which up the `weights` sum to at least `goal`; floor [B, 1]: one that does.

    Bisects over integers that order as the floats do: at most 32 passes, no sort.
    """
    ranks, low = _ranks(logits), _ranks(floor)
    high = ranks.max(axis=-1, keepdims=True) + 1  # from here up: nothing

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # their mean; the sum would overflow
        is_enough = jnp.where(ranks >= middle, weights, 0.0).sum(axis=-1, keepdims=True) >= goal
        return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)

    low, _ = jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] + 1 < bounds[1]), halve, (low, high))
    return jax.lax.bitcast_convert_type(jnp.where(low < 0, low ^ 0x7FFFFFFF, low), jnp.float32)


def _ranks(logits: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _argmax(logits: jax.Array) -> jax.Array:
    """Returns the first best token of logits [B, V], [B] int32: the first best block, then the first best within it.

    XLA on a CPU looks for an index one element at a time, for a maximum many at a time: 7 ms and 1 for 16 rows.
    """
    blocks = _blocks(logits)
    block = jnp.argmax(blocks.max(axis=-1), axis=-1)
    within = jnp.argmax(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    return (block * _BLOCK + within).astype(jnp.int32)


def _blocks(logits: jax.Array, filled_with: float = -jnp.inf) -> jax.Array:
    """[..., V] -> [..., blocks, _BLOCK], the last one filled with what is never taken."""
    spare = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % _BLOCK)]
    return jnp.pad(logits, spare, constant_values=filled_with).reshape(*logits.shape[:-1], -1, _BLOCK)


def _draw(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns a token drawn from softmax(logits [V]): its block by the block's mass, then itself within the block."""
    blocks = _blocks(logits)
    outer, inner = jax.random.split(key)
    block = jax.random.categorical(outer, jax.nn.logsumexp(blocks, axis=-1))
    return (block * _BLOCK + jax.random.categorical(inner, blocks[block])).astype(jnp.int32)
