"""One Gemma 3 decoder block as a Flax module, and the one function every adapted matrix goes through.

    out = Block(config).apply({"params": layer}, x, rope, attend, adapters)

The only file that imports flax.linen. A block declares its weights (shape and initialiser, once) and
computes; what attention sees is passed in as a function, so training, retention and cached decoding
share this one block. It holds no state and knows no mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.quantized import Quantized, product

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ADAPTABLE = ("q", "k", "v", "o", "gate", "up", "down")
"""The seven matrices of a block; a LoRA adapter can stand beside each."""

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(q [B,T,N,H] scaled, k [B,T,K,H], v [B,T,K,H]) -> [B,T,N*H]"""


@struct.dataclass
class Adapters:
    """One layer's LoRA matrices and how they are applied.

    matrices[name] = {"a": [in, R], "b": [R, out]}; dropout falls on the adapter's input only.
    """

    matrices: Mapping[str, Mapping[str, jax.Array]]
    key: jax.Array | None = None
    scale: float = struct.field(pytree_node=False, default=1.0)
    dropout: float = struct.field(pytree_node=False, default=0.0)


def adapted_matmul(
    x: Float[jax.Array, "B T i"],
    w: Float[jax.Array, "i o"] | Quantized,
    name: str,
    adapters: Adapters | None,
) -> Float[jax.Array, "B T o"]:
    """Returns x @ w, plus scale * (x @ A) @ B where `name` has an adapter.

    x: [B, T, in]; w: [in, out], also in int8. Weights are cast to x's dtype; the product accumulates as the backend does. `name` is
    also what the product is called in `remat`'s policies.
    Source: Hu et al. 2021 (arXiv:2106.09685), eq. 3.
    """
    y = product(x, w)
    if adapters is None or name not in adapters.matrices:
        return checkpoint_name(y, name)
    pair = adapters.matrices[name]
    if adapters.dropout > 0.0 and adapters.key is not None:
        key = jax.random.fold_in(adapters.key, _NAME_SALT[name])
        keep = jax.random.bernoulli(key, 1.0 - adapters.dropout, x.shape)
        x = jnp.where(keep, x / (1.0 - adapters.dropout), 0).astype(x.dtype)
    low = jnp.einsum("bti,ir->btr", x, pair["a"].astype(x.dtype))
    return checkpoint_name(y + adapters.scale * _expand(low, pair["b"].astype(x.dtype)), name)


def merged_matrix(
    w: Float[jax.Array, "i o"], a: Float[jax.Array, "i R"], b: Float[jax.Array, "R o"], scale: float
) -> Float[jax.Array, "i o"]:
    """Returns W + scale * A @ B for one layer, accumulated in float32 and rounded once to w's dtype.

    w: [in, out]; a: [in, R]; b: [R, out]. Source: Hu et al. 2021 (arXiv:2106.09685), eq. 3.
    """
    w32, a, b = (x.astype(jnp.float32) for x in (w, a, b))
    return (
        w32 + scale * jnp.einsum("ir,ro->io", a, b, precision=jax.lax.Precision.HIGHEST)
    ).astype(w.dtype)


@jax.custom_vjp
def _expand(low: jax.Array, b: jax.Array) -> jax.Array:
    """Returns low [B, T, R] @ b [R, out].

    Its own gradient rule only orders the operands: jax would put the wide cotangent first, and XLA on a CPU then
    transposes that (with all that is fused into it) instead of the narrow `low`: a third of a step.
    """
    return jnp.einsum("btr,ro->bto", low, b)


def _expand_forward(low, b):
    return _expand(low, b), (low, b)


def _expand_backward(kept, cotangent):
    low, b = kept
    return jnp.einsum("bto,ro->btr", cotangent, b), jnp.einsum("btr,bto->ro", low, cotangent)


_expand.defvjp(_expand_forward, _expand_backward)


_NAME_SALT = {name: i for i, name in enumerate(ADAPTABLE)}


def rms_norm(
    x: Float[jax.Array, "*rows D"], w: Float[jax.Array, " D"], eps: float
) -> Float[jax.Array, "*rows D"]:
    """Returns (1 + w) * x / RMS(x) over the last axis, in float32, cast back to x's dtype.

    Source: Zhang & Sennrich 2019 (arXiv:1910.07467); the 1 + w form is Gemma's.
    """
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (normed * (1.0 + w.astype(jnp.float32))).astype(x.dtype)


@struct.dataclass
class Rope:
    """cos, sin: [B, T, H/2] float32, of one layer kind."""

    cos: jax.Array
    sin: jax.Array


def make_rope(positions: Int[jax.Array, "B T"], head_dim: int, base: float, scaling: float) -> Rope:
    """Returns the rotary tables of `positions` [B, T], each divided by `scaling` (linear interpolation).

    Source: Su et al. 2021 (arXiv:2104.09864); Chen et al. 2023 (arXiv:2306.15595) for the scaling.
    """
    # Powers rounded once to float32, as the reference has them: one unit in the last place of a frequency is
    # 5e-5 rad at position 768, and a text that repeats itself turns that into 1e-2 of a logit.
    exponents = (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)).astype(
        np.float64
    )
    inverse = np.float32(1) / np.power(np.float64(base), exponents).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * (inverse / np.float32(scaling))
    return Rope(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[jax.Array, "B T n H"], rope: Rope) -> Float[jax.Array, "B T n H"]:
    """Returns x [B, T, heads, H] with its two halves turned by the angle of each position."""
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = rope.cos[:, :, None, :], rope.sin[:, :, None, :]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(
        x.dtype
    )


def gelu(x: jax.Array) -> jax.Array:
    """Returns x * (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), written as x * sigmoid(2 u).

    XLA's tanh is an approximation on a CPU: through 18 layers this form is 3 times nearer to float64.
    Source: Hendrycks & Gimpel 2016 (arXiv:1606.08415), the tanh form that Gemma uses.
    """
    return x * jax.nn.sigmoid(2 * (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))


class Block(nn.Module):
    """x + norm(attention(norm(x))), then the same around the gated MLP ("sandwich" norms).

    Source: Gemma 3 technical report (arXiv:2503.19786), section 2; QK norm replaces soft-capping.
    """

    config: ModelConfig
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        matrix, zeros = nn.initializers.normal(0.02), nn.initializers.zeros_init()

        def declare(name: str, init: Callable, *shape: int) -> jax.Array:
            return self.param(name, init, shape, self.param_dtype)

        self.w = {
            **{name: declare(name, zeros, c.d_model) for name in _BLOCK_NORMS},
            "q_norm": declare("q_norm", zeros, c.head_dim),
            "k_norm": declare("k_norm", zeros, c.head_dim),
            "q": declare("q", matrix, c.d_model, c.n_heads * c.head_dim),
            "k": declare("k", matrix, c.d_model, c.n_kv_heads * c.head_dim),
            "v": declare("v", matrix, c.d_model, c.n_kv_heads * c.head_dim),
            "o": declare("o", matrix, c.n_heads * c.head_dim, c.d_model),
            "gate": declare("gate", matrix, c.d_model, c.d_ff),
            "up": declare("up", matrix, c.d_model, c.d_ff),
            "down": declare("down", matrix, c.d_ff, c.d_model),
        }

    def declare(self, x: jax.Array) -> jax.Array:
        """Touches `setup` alone, so shapes can be read without computing anything."""
        return x

    def __call__(
        self, x: jax.Array, rope: Rope, attend: Attend, adapters: Adapters | None = None
    ) -> jax.Array:
        """Returns the block's output [B, T, D] for its input x [B, T, D]."""
        c, w = self.config, self.w

        def norm(y: jax.Array, name: str) -> jax.Array:
            return rms_norm(y, w[name], c.rms_eps)

        def project(y: jax.Array, name: str) -> jax.Array:
            return adapted_matmul(y, w[name], name, adapters)

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], -1, c.head_dim)

        y = norm(x, "pre_attn_norm")
        q = rotate(norm(heads(project(y, "q")), "q_norm"), rope) * c.query_scale
        k = rotate(norm(heads(project(y, "k")), "k_norm"), rope)
        v = heads(project(y, "v"))
        x = x + norm(project(attend(q, k, v), "o"), "post_attn_norm")
        y = norm(x, "pre_ffw_norm")
        y = gelu(project(y, "gate")) * project(y, "up")
        return x + norm(project(y, "down"), "post_ffw_norm")


_BLOCK_NORMS = ("pre_attn_norm", "post_attn_norm", "pre_ffw_norm", "post_ffw_norm")
