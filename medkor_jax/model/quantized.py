"""A frozen matrix in int8, with a float32 scale for each output channel: half of bfloat16's memory, the same products.

    w = quantize(w)                       # Quantized: w is about w.values * w.scale
    y = product(x, w)                     # x @ values, in x's dtype, then times scale, in float32
    dequantized(w, jnp.bfloat16)          # for what has to be a copy of its own

Symmetric, by the largest of a channel: |w - values * scale| is at most scale / 2. The scale stands behind the sum over
the inputs, so it multiplies the result and no widened copy of a matrix is kept: within a scan over layers one layer's
int8 values are converted, as its product reads them. Only x is differentiated.

`qwix`, the field's library, makes the same values. It is not used: it quantises whole arrays that lie on a device
(here rows are quantised as they come from the disk, in NumPy), gives a bfloat16 matrix bfloat16 scales, and
multiplies an unquantised x by the dequantised matrix, each of whose elements it has rounded once more.

Source: weights in 8 bits under LoRA: Dettmers et al. 2022 (arXiv:2208.07339), 2023 (arXiv:2305.14314).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

if TYPE_CHECKING:
    from jaxtyping import Float

    Array = TypeVar("Array", jax.Array, np.ndarray)

LARGEST = 127  # -128 is left out, so that both signs reach equally far


@struct.dataclass
class Quantized:
    """values: int8 [.., in, out]; scale: float32 [.., 1, out]. As a leaf of the base it has the values' shape."""

    values: Any
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return len(self.values.shape)


def quantize(w: Float[jax.Array, "*layers i o"]) -> Quantized:
    """Returns w [.., in, out] in int8, scaled by output channel."""
    return Quantized(*rounded(w, axis=-2))


@functools.lru_cache(maxsize=16)
def stack_quantizer(places: Quantized | None) -> Any:
    """Returns quantize of [L, in, out], jitted, a layer at a time: nothing of it is held in float32 at once.

    places: where the parts of the result lie; None: the default device.
    """
    return jax.jit(lambda w: jax.lax.map(quantize, w), out_shardings=places)


def rounded(w: Array, axis: int, largest: int = LARGEST) -> tuple[Array, Array]:
    """Returns (int8 values, float32 scale) of a jax or NumPy array; axis: the inputs, over which a channel shares a scale.

    largest: the value that a channel's largest weight gets.

    A channel of zeros has the scale 0, and comes back as zeros.
    """
    xp: Any = np if isinstance(w, np.ndarray) else jnp
    w32 = w.astype(xp.float32)
    scale = xp.max(xp.abs(w32), axis=axis, keepdims=True) * xp.float32(1 / largest)
    values = xp.rint(w32 / xp.where(scale > 0, scale, xp.float32(1)))
    return xp.clip(values, -largest, largest).astype(xp.int8), scale


def dequantized(w: Quantized | jax.Array, dtype: Any) -> jax.Array:
    """Returns a matrix of either form as an array of `dtype`, rounded once."""
    if isinstance(w, Quantized):
        return (w.values.astype(jnp.float32) * w.scale).astype(dtype)
    return w.astype(dtype)


def product(
    x: Float[jax.Array, "B T i"], w: Quantized | Float[jax.Array, "i o"]
) -> Float[jax.Array, "B T o"]:
    """Returns x [B, T, in] @ w [in, out], of either form, in x's dtype."""
    if isinstance(w, Quantized):
        return _scaled(x, w.values, w.scale)
    return jnp.einsum("bti,io->bto", x, w.astype(x.dtype))


@jax.custom_vjp
def _scaled(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns (x @ values) * scale, accumulated and scaled in float32, rounded once to x's dtype.

    Its own gradient rule keeps both factors of the backward product in x's dtype: jax would multiply a float32
    cotangent, at a fraction of the speed.
    """
    y = jnp.einsum("bti,io->bto", x, values.astype(x.dtype), preferred_element_type=jnp.float32)
    return (y * scale).astype(x.dtype)


def _scaled_forward(x, values, scale):
    return _scaled(x, values, scale), (values, scale)


def _scaled_backward(kept, cotangent):
    values, scale = kept
    scaled = (cotangent.astype(jnp.float32) * scale).astype(cotangent.dtype)
    return jnp.einsum("bto,io->bti", scaled, values.astype(cotangent.dtype)), None, None


_scaled.defvjp(_scaled_forward, _scaled_backward)
