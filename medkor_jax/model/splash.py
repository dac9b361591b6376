"""Attention by the fused kernel for TPUs that comes with jax (splash): scores never leave the chip's fast memory.

    if not why_not(t, head_dim, platform):
        out = attend_splash(q, k, v, seen, window=1024)     # [B, T, N*H]

Blocks of the T x T square that the window or causality hides are skipped. It knows documents (segments) and the window
by place in the row, which is the same where a document lies in one piece; branches it does not know. The compiler sees
nothing inside: its FLOPs are `n_scores` times 2 H `n_products`. Off a TPU it runs in tests alone, interpreted.
Source: jax.experimental.pallas.ops.tpu.splash_attention; Dao et al. 2022 (arXiv:2205.14135).
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from medkor_jax.model.attention import Seen
from medkor_jax.parallel.mesh import BATCH_AXES, batch_ways, ways

if TYPE_CHECKING:
    from jaxtyping import Float

LANES = 128  # sizes the kernel's tiles are made of
_BLOCKS = (512, 256, 128)  # the largest that divides T; a local layer of window 1,024 then reads 3 blocks of 512 a block


def why_not(t: int, head_dim: int, platform: str, has_branches: bool = False) -> str:
    """Returns what stands against this kernel, "" where nothing does."""
    if platform != "tpu":
        return f"it is for TPUs, and this is {platform}"
    if t % LANES:
        return f"it needs a multiple of {LANES} tokens a row, and there are {t}"
    if head_dim % LANES:
        return f"it needs a head size that is a multiple of {LANES}, and this model's is {head_dim}"
    return "it does not know branches (several continuations of one prompt in a row)" if has_branches else ""


def n_scores(t: int, window: int | None) -> int:
    """Returns how many scores the kernel computes for each head of a sequence of t tokens, those it then hides included."""
    block = _block(t)
    before = lambda i: i if window is None else min(i, -(-(window - 1) // block))  # noqa: E731
    return block * block * sum(before(i) + 1 for i in range(t // block))


def n_products(name: str) -> int | None:
    """Returns how many products of 2 H FLOPs the kernel of this name in a compiled program makes of each score and head.

    None: it is none of these. Forward 2; backward 3 for the queries' gradient and 4 for those of keys and values, after the
    forward kernel has run once more for the sums it left.
    """
    phase = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", name)
    return {"fwd": 2, "dq": 3, "dkv": 4}[phase[1]] if phase else None


def attend_splash(
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T K H"],
    v: Float[jax.Array, "B T K H"],
    seen: Seen,
    window: int | None,
    interpret: bool = False,
) -> Float[jax.Array, "B T N*H"]:
    """Returns softmax(q k^T) v, heads joined: [B, T, N*H]. q: [B, T, N, H], already scaled; k, v: [B, T, K, H].

    Rows over the batch axes, heads over `tensor` where it divides them. window None: everything before.
    """
    rows = BATCH_AXES if q.shape[0] % batch_ways() == 0 else None
    heads = "tensor" if k.shape[2] % ways("tensor") == 0 else None
    attend = functools.partial(_attend_here, window=window, interpret=interpret)
    if not jax.sharding.get_abstract_mesh().empty:
        by_heads = PartitionSpec(rows, None, heads, None)
        attend = jax.shard_map(
            attend, in_specs=(by_heads, by_heads, by_heads, PartitionSpec(rows, None)),
            out_specs=PartitionSpec(rows, None, heads), check_vma=False,
        )  # fmt: skip
    return attend(q, k, v, seen.segments)


def _attend_here(q, k, v, segments, *, window, interpret):
    """What one device computes, of its rows and heads."""
    b, t, n, h = q.shape
    mask = masks.CausalMask((t, t)) if window is None else masks.LocalMask((t, t), (window - 1, 0), 0)
    size = _block(t)
    blocks = splash.BlockSizes(
        block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
    )  # fmt: skip
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * n), head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret
    )
    heads_first = lambda x: x.swapaxes(1, 2)  # noqa: E731
    out = jax.vmap(kernel)(*map(heads_first, (q, k, v)), splash.SegmentIds(segments, segments))
    return heads_first(out).reshape(b, t, n * h)


def _block(t: int) -> int:
    return next(size for size in _BLOCKS if t % size == 0)
