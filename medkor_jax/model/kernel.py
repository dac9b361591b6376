"""Which attention runs: chosen in one place, by name, platform and shape, and by each layer's kind.

    kernel = choose("auto", t=2048, head_dim=256, platform=platform())        # "splash" on a TPU, "blocked" elsewhere
    out = attend_by_kind(kernel, q, k, v, seen, is_local, window=1024)

    plain      products under a [B, T, S] mask, local layers pay for all that a global one sees (`attention`)
    blocked    the same products, a local layer pays for its window (`blocked`); any platform
    splash     fused, TPU alone (`splash`)
    auto       splash where it can, else blocked above 1,024 tokens, else plain

A fused kernel of a GPU is not among them: cuDNN's takes documents packed in a row only as offsets of a fixed number of
them, and a head of 256 only from Hopper on.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax

from medkor_jax.model import blocked, splash
from medkor_jax.model.attention import QUERY_BLOCK, Seen, causal_scores
from medkor_jax.nearest import nearest

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

KERNELS = ("plain", "blocked", "splash")
NAMES = ("auto", *KERNELS)
_FUSED_FROM = 512  # tokens; below, all scores of a row are a few MB


def check_attention(name: Any) -> None:
    """Raises: ValueError unless `name` is one of NAMES."""
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"attention is {name!r}; expected one of {', '.join(NAMES)}; nearest: {nearest(name, NAMES)!r}")


def choose(name: str, *, t: int, head_dim: int, platform: str, has_branches: bool = False) -> str:
    """Returns which of KERNELS runs for rows of t tokens.

    Raises: ValueError if `name` asks for one that cannot, saying why.
    """
    check_attention(name)
    against = splash.why_not(t, head_dim, platform, has_branches)
    if name == "splash" and against:
        raise ValueError(f"attention is 'splash', but {against}; use 'auto', or 'blocked'")
    if name != "auto":
        return name
    if not against and t >= _FUSED_FROM:
        return "splash"
    return "blocked" if t > QUERY_BLOCK else "plain"


def n_scores(kernel: str, t: int, window: int | None) -> int:
    """Returns how many scores a layer computes for each head of a sequence of t tokens, those it then hides included.

    window: of a local layer; None: a global one.
    """
    if kernel == "plain":
        return causal_scores(t)
    return {"blocked": blocked, "splash": splash}[kernel].n_scores(t, window if window and window < t else None)


@jax.named_scope("attention")
def attend_by_kind(
    kernel: str,
    q: Float[jax.Array, "B T N H"],
    k: Float[jax.Array, "B T K H"],
    v: Float[jax.Array, "B T K H"],
    seen: Seen,
    is_local: Bool[jax.Array, ""],
    window: int,
) -> Float[jax.Array, "B T N*H"]:
    """Returns attention's output [B, T, N*H] of a layer whose kind is data: one of two programs runs, not both.

    kernel: "blocked" or "splash". Arguments as `blocked.attend_blocks`. Only q, k, v are kept for the backward pass.
    """
    attend = {"blocked": blocked.attend_blocks, "splash": splash.attend_splash}[kernel]
    if window >= q.shape[1]:
        return attend(q, k, v, seen, None)
    return _either((functools.partial(attend, window=window), functools.partial(attend, window=None)), q, k, v, seen, is_local)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _either(programs, q, k, v, seen, is_local):
    local, whole = programs
    return jax.lax.cond(is_local, local, whole, q, k, v, seen)


def _forward(programs, q, k, v, seen, is_local):
    return _either(programs, q, k, v, seen, is_local), (q, k, v, seen, is_local)


def _backward(programs, kept, cotangent):
    """The conditional's own gradient would keep what either program keeps, in separate places; this keeps what both read."""
    q, k, v, seen, is_local = kept

    def pull(program):
        return lambda q, k, v: jax.vjp(lambda *qkv: program(*qkv, seen), q, k, v)[1](cotangent)

    return *jax.lax.cond(is_local, *map(pull, programs), q, k, v), None, None


_either.defvjp(_forward, _backward)
