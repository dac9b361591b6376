"""What lies on several hosts, whole on each of them: the one way to read it outside of a compiled step.

    arrays = gather(tree)                           # NumPy leaves, by one program for all of them
    for rows in pieces(leaves): ...                 # the same for what is too large to be whole anywhere at once

All processes have to call these together. Where one process holds everything, nothing is moved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

GATHER_BYTES = 2**28
"""Most bytes that are whole on every device at once."""


def gather(tree: Any) -> Any:
    """Returns the tree with NumPy leaves, whole on every process. All must call it; one program moves all that is spread."""
    leaves, structure = jax.tree.flatten(tree)
    spread = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable]
    if spread:
        whole = NamedSharding(leaves[spread[0]].sharding.mesh, PartitionSpec())
        moved = _replicated(whole)([leaves[i] for i in spread])
        leaves = [*leaves]
        for i, leaf in zip(spread, moved):
            leaves[i] = leaf.addressable_data(0)
    return jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])


def pieces(leaves: list[Any]) -> Iterator[Iterable[np.ndarray]]:
    """Yields for every leaf its rows in order, whole on every process, a few leaves or a part of one at a time.

    Never is more than `GATHER_BYTES` of what several hosts hold on a device at once, however large a leaf is.
    """
    waiting: list[Any] = []
    size = 0
    for leaf in leaves:
        if waiting and size + leaf.nbytes > GATHER_BYTES:
            yield from ((array,) for array in gather(waiting))
            waiting, size = [], 0
        if leaf.nbytes <= GATHER_BYTES or getattr(leaf, "is_fully_addressable", True):
            waiting, size = [*waiting, leaf], size + leaf.nbytes
        else:
            rows = max(1, GATHER_BYTES // (leaf.nbytes // leaf.shape[0]))
            yield (gather(leaf[row : row + rows]) for row in range(0, leaf.shape[0], rows))
    yield from ((array,) for array in gather(waiting))


@functools.lru_cache(maxsize=8)
def _replicated(whole: NamedSharding) -> Callable[[list[jax.Array]], list[jax.Array]]:
    return jax.jit(lambda leaves: leaves, out_shardings=whole)
