"""New layers at both ends of the model: copies of its first and its last, all of their weights free to learn.

    expand = make_expansion(base, front=1, back=1)         # {"front": block, "back": block}: changes nothing yet

With init `identity` the copies' two post-norm weights are -1. Gemma adds (1 + w) * RMS(y) to the stream after
each half of a block, so such a block adds exactly zero; its gradient reaches those two weights at their natural
size, and every other weight as soon as they have moved. Zeroing the output matrices instead would send gradients
through a norm of zeros, about a thousand times too large. Never decay these weights: -1 is where they rest.
Init `copy` is the plain duplicate, which changes the model at once.

Where the layers stand and how they run is `model`'s business (`params.layer_kinds`, `forward`).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from medkor_jax.model.params import BACK, FRONT, Tree
from medkor_jax.model.quantized import dequantized
from medkor_jax.nearest import nearest

INITS = ("identity", "copy")
_SILENCED = ("post_attn_norm", "post_ffw_norm")


@dataclasses.dataclass(frozen=True)
class ExpansionSettings:
    """The layers that a phase adds at the ends of the model; both counts 0: none."""

    front: Annotated[int, ">= 0"] = 0
    """Layers added before the first, copies of it."""
    back: Annotated[int, ">= 0"] = 0
    """Layers added behind the last, copies of it."""
    init: str = "identity"
    """"identity": the copies change nothing until they have learnt; "copy": they double their source at once."""

    def __post_init__(self) -> None:
        if self.is_on:
            check_expansion(self.front, self.back, self.init)

    @property
    def is_on(self) -> bool:
        return self.front > 0 or self.back > 0


def check_expansion(front: int, back: int, init: str) -> None:
    """Raises: ValueError on a count below 0, on none at either end, or on another init."""
    counts = {FRONT: front, BACK: back}
    for side, n in counts.items():
        if not isinstance(n, int) or isinstance(n, bool) or n < 0:
            raise ValueError(
                f"expansion {side} is {n!r}; expected how many layers to add there: 0, 1, 2, .."
            )
    if not any(counts.values()):
        raise ValueError(
            "expansion front and back are both 0: nothing would be added. Give one at least 1, or leave it out"
        )
    if init not in INITS:
        raise ValueError(
            f"expansion init {init!r} is none of {', '.join(INITS)}; nearest: {nearest(init, INITS)!r}"
        )


def make_expansion(
    base: Tree, *, front: int = 1, back: int = 1, init: str = "identity", dtype: Any = jnp.float32
) -> Tree:
    """Returns {"front": {leaf: [front, ...]}, "back": {leaf: [back, ...]}}, a side of count 0 left out.

    The front copies layer 0 of `base`, the back its last. Copies are new arrays, in `dtype`, whatever the base's: of a matrix
    in int8 what its layer computes with.
    For shapes alone call it under `jax.eval_shape`.

    Raises: ValueError on a count below 0, on none at either end, or on another init.
    """
    check_expansion(front, back, init)
    sources = {FRONT: 0, BACK: -1}
    tree = {}
    for side, n in ((FRONT, front), (BACK, back)):
        if n:
            # a copy even where the base has one layer of this dtype: what trains is donated, the base never
            tree[side] = {
                name: jnp.array(jnp.stack([one] * n), dtype, copy=True)
                for name, one in _layer(base, sources[side], dtype).items()
            }
            if init == "identity":
                tree[side] |= {name: jnp.full_like(tree[side][name], -1.0) for name in _SILENCED}
    return tree


def _layer(base: Tree, at: int, dtype: Any) -> Tree:
    """Returns the leaves of one layer of `base`, in `dtype`."""
    one = jax.tree.map(lambda leaf: leaf[at], base["layers"])
    return {name: dequantized(leaf, dtype) for name, leaf in one.items()}
