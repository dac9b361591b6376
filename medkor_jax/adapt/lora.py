"""Low-rank adapters beside the frozen matrices: made, checked, and merged into the base.

    lora = make_lora(base, key, rank=16, targets=("q", "v"))
    merged = merge(base, lora, scale=alpha / rank)

B starts at zero, so a fresh adapter changes nothing. How an adapter is applied stands in one place,
`model.layers.adapted_matmul`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from medkor_jax.model.layers import merged_matrix
from medkor_jax.model.params import ADAPTABLE, Tree
from medkor_jax.model.quantized import Quantized
from medkor_jax.nearest import nearest


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """The adapter that a phase adds, applied as alpha / rank * A @ B."""

    rank: Annotated[int, ">= 0"] = 16
    """Columns of A and rows of B, R. 0: this phase adds no adapter."""
    alpha: Annotated[float, "> 0"] = 32.0
    """Strength: what an adapter adds is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ADAPTABLE
    """Which matrices of every layer are adapted: q, k, v, o (attention), gate, up, down (feed-forward)."""

    def __post_init__(self) -> None:
        if self.is_on:
            check_targets(self.targets, self.rank)

    @property
    def is_on(self) -> bool:
        return self.rank > 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def check_targets(targets: Iterable[str], rank: int) -> tuple[str, ...]:
    """Returns `targets` as a tuple. Raises: ValueError on an unknown or repeated matrix, or a rank below 1."""
    targets = tuple(targets)
    if rank < 1:
        raise ValueError(f"LoRA rank is {rank}; it must be at least 1")
    for name in targets:
        if name not in ADAPTABLE:
            raise ValueError(
                f"LoRA target {name!r} is none of {', '.join(ADAPTABLE)}; nearest: {nearest(name, ADAPTABLE)!r}"
            )
    if not targets or len(set(targets)) != len(targets):
        raise ValueError(f"LoRA targets {targets} must name at least one matrix, each once")
    return targets


def make_lora(
    base: Tree, key: jax.Array, *, rank: int, targets: Iterable[str], dtype: Any = jnp.float32
) -> Tree:
    """Returns {name: {"a": [L, in, R] ~ U(-1/sqrt(in), 1/sqrt(in)), "b": [L, R, out] = 0}} for each target.

    `base` may hold ShapeDtypeStructs: only shapes are read. A is drawn as PEFT and microsoft/LoRA draw it, so that a learning
    rate means here what it means there (docs/STUDY.md: a wider draw learnt less and forgot more).
    Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1; peft 0.21, LoraLayer.reset_lora_parameters (kaiming_uniform, a=sqrt(5)).
    """
    tree = {}
    for name in check_targets(targets, rank):
        depth, d_in, d_out = base["layers"][name].shape
        key_of_name, bound = jax.random.fold_in(key, ADAPTABLE.index(name)), d_in**-0.5
        # in float32 whatever it is kept in: a draw in bfloat16 has 128 steps, and a mean below zero
        a = jax.random.uniform(key_of_name, (depth, d_in, rank), jnp.float32, -bound, bound)
        tree[name] = {"a": a.astype(dtype), "b": jnp.zeros((depth, rank, d_out), dtype)}
    return tree


def merge(base: Tree, lora: Tree, *, scale: float) -> Tree:
    """Returns `base` with every adapter folded in: W + scale * A @ B.

    base["layers"][name]: [L, in, out]; lora[name]: A [L, in, R], B [L, R, out]. Accumulates in float32,
    one layer at a time, and rounds once to the dtype of `base`. Unadapted leaves are the same arrays.

    Raises: ValueError, naming the key, if an adapter has no matrix in `base` or does not fit it, or the matrix is in int8.
    Source: Hu et al. 2021 (arXiv:2106.09685), eq. 3.
    """
    return _merged(base, lora, scale, _merge_matrix)


def merge_in_place(base: Tree, lora: Tree, *, scale: float) -> Tree:
    """Returns the same as `merge`; the adapted matrices of `base` are used up (donated), so that both are never held."""
    return _merged(base, lora, scale, _merge_matrix_in_place)


def _merged(base: Tree, lora: Tree, scale: float, fold: Callable[..., jax.Array]) -> Tree:
    layers = dict(base["layers"])
    for name, pair in lora.items():
        if name not in layers:
            raise ValueError(
                f"adapter {name!r} has no matrix in the base; it has {', '.join(sorted(layers))}"
            )
        if isinstance(layers[name], Quantized):
            raise ValueError(
                f"matrix {name!r} is in int8, whose steps are larger than what an adapter changes; merge into the full-precision weights"
            )
        depth, d_in, d_out = layers[name].shape
        rank = pair["a"].shape[-1]
        if pair["a"].shape != (depth, d_in, rank) or pair["b"].shape != (depth, rank, d_out):
            raise ValueError(
                f"adapter {name!r} has A {pair['a'].shape}, B {pair['b'].shape}; matrix is {layers[name].shape}"
            )
        layers[name] = fold(layers[name], pair["a"], pair["b"], scale)
    return {**base, "layers": layers}


def _fold(w: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    return jax.lax.map(lambda wab: merged_matrix(wab[0], wab[1], wab[2], scale), (w, a, b))


_merge_matrix = jax.jit(_fold, static_argnames="scale")
_merge_matrix_in_place = jax.jit(_fold, static_argnames="scale", donate_argnums=0)
