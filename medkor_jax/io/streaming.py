"""Fills the base tree from a checkpoint's tensors, a few megabytes at a time, straight onto their shards.

    base = load_base(source, dtype=jnp.bfloat16, shardings=shardings)     # shardings: a tree like base

Each stacked leaf is allocated once where it will live. Rows of one tensor at a time are then read from
disk, sent to the devices that hold them, and there converted, transposed and written into the donated
leaf. So the host never holds more than a few chunks beyond what stays on it, no device sees another's
part, every process reads only what its own devices need, and one program is compiled per distinct shape.

What a file format has to offer is `TensorSource`. Does not know any format's names; see `hf` and `gguf`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from medkor_jax.data.contents import sha256_of
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.dtypes import check_param_dtype
from medkor_jax.model.params import Tree, abstract_base, leaf_paths, matrix_paths
from medkor_jax.model.quantized import Quantized, rounded

CHUNK_BYTES = 8 * 2**20  # of the file; large enough for disk and bus, small beside any real tensor
_MAX_NAMES = 8

LeafKey = tuple[str, int]
"""(leaf path as in `leaf_paths`, layer); the layer of an unstacked leaf is 0."""


class WeightsError(ValueError):
    """A checkpoint that is missing, broken, or not what its config says; the message is for the user."""


class TensorSource(Protocol):
    """One opened checkpoint, its names and shapes already checked against its config."""

    config: ModelConfig

    def describe(self, key: LeafKey) -> str: ...

    def read_rows(self, key: LeafKey, start: int, stop: int) -> np.ndarray:
        """Returns rows start to stop as stored, floating point: [stop-start, in] of a matrix kept [out, in]."""
        ...

    def check_before_load(self) -> None:
        """Raises WeightsError on what can only be seen by reading data."""
        ...


def needed_keys(config: ModelConfig) -> dict[LeafKey, tuple[int, ...]]:
    """Returns the shape, in a file's orientation, of every tensor that the base tree is made of."""
    shapes: dict[LeafKey, tuple[int, ...]] = {}
    for path, leaf in leaf_paths(abstract_base(config, jnp.float32)).items():
        if path.startswith("layers/"):
            shapes |= {(path, layer): leaf.shape[:0:-1] for layer in range(config.n_layers)}
        else:
            shapes[path, 0] = leaf.shape
    return shapes


def check_coverage(needed: Iterable[str], present: Iterable[str], where: str) -> None:
    """Raises: WeightsError listing every way in which the two sets of tensor names differ."""
    needed, present = set(needed), set(present)
    missing, unused = sorted(needed - present), sorted(present - needed)
    if missing or unused:
        raise WeightsError(
            f"{where}: of {len(needed)} needed tensors {len(missing)} are missing and {len(unused)} present ones are "
            f"not used; every one must match.{_listed('missing', missing)}{_listed('not used', unused)}"
        )


def check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if tuple(found) != tuple(expected):
        raise WeightsError(
            f"{where}: {name} is {list(found)}, its config asks for {list(expected)}"
        )


def digest_source(source: TensorSource) -> str:
    """Returns the SHA-256, in hex, over name, shape, stored dtype and values of every tensor of the base.

    Of the tensors and not of the files: weights saved again, in other shards or by another program, keep their digest.
    """

    def parts() -> Iterator[str | memoryview]:
        for (path, layer), shape in sorted(needed_keys(source.config).items()):
            rows_at_once = max(1, CHUNK_BYTES // (4 * math.prod(shape[1:])))
            for row in range(0, shape[0], rows_at_once):
                rows = source.read_rows((path, layer), row, min(row + rows_at_once, shape[0]))
                if not row:
                    yield f"{path} {layer} {shape} {rows.dtype}\n"
                yield np.ascontiguousarray(rows).view(np.uint8).data

    return sha256_of(parts())


def load_base(source: TensorSource, *, dtype: Any, shardings: Tree | None = None) -> Tree:
    """Returns the base tree as jax arrays of `dtype`, on `shardings` (a tree like it) or the default device.

    int8: each chunk of a matrix is quantised on the host, as it was read; no float matrix ever lies on a device.

    Raises: WeightsError naming the tensor if one holds NaN or infinity; ValueError on float16, or on a
    sharding that is not a NamedSharding.
    """
    check_param_dtype(jnp.dtype(dtype), "dtype")
    source.check_before_load()
    abstract = abstract_base(source.config, dtype)
    placed = {} if shardings is None else matrix_paths(shardings)
    leaves = matrix_paths(abstract)
    # Largest first: what a leaf needs beside itself then fits where the smaller ones will be.
    for path in sorted(leaves, key=lambda path: -math.prod(leaves[path].shape)):
        load = _load_quantized if isinstance(leaves[path], Quantized) else _load_leaf
        leaves[path] = load(source, path, leaves[path], placed.get(path))
    return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(list(leaves.values())))


def _load_quantized(
    source: TensorSource, path: str, leaf: Quantized, sharding: Quantized | None
) -> Quantized:
    """Returns a stacked matrix in int8. A row of the file is an output channel, whole: its scale is seen when it is read."""
    scale = np.zeros(leaf.scale.shape, np.float32)

    def take(key: LeafKey, first: int, rows: np.ndarray) -> np.ndarray:
        values, of_rows = rounded(rows, axis=-1)
        scale[key[1], 0, first : first + len(rows)] = of_rows[:, 0]
        return values

    of_values = None if sharding is None else sharding.values
    values = _load_leaf(source, path, leaf.values, of_values, take)
    if sharding is None:
        return Quantized(values, jnp.asarray(scale))
    # a device holds the scales of the rows that it read, or that another device of its process did
    return Quantized(
        values, jax.make_array_from_callback(scale.shape, sharding.scale, scale.__getitem__)
    )


def _load_leaf(
    source: TensorSource,
    path: str,
    leaf: jax.ShapeDtypeStruct,
    sharding: Any,
    take: Callable[[LeafKey, int, np.ndarray], np.ndarray] = lambda key, first, rows: rows,
) -> jax.Array:
    """Returns one leaf. take(key, first row, rows): what of the rows that were read is kept."""
    if sharding is not None and not isinstance(sharding, NamedSharding):
        raise ValueError(
            f"{path}: sharding is a {type(sharding).__name__}; give a NamedSharding, or None for the default device"
        )
    is_stacked = path.startswith("layers/")
    is_transposed = is_stacked and len(leaf.shape) == 3
    stored = _stored_dtype(leaf.dtype, sharding)
    out = _allocator(leaf.shape, stored, sharding)()
    write = _writer(is_stacked, is_transposed, leaf.dtype, stored, sharding)
    shard = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    starts = _shard_starts(leaf.shape, sharding)
    row_axis = len(shard) - 1 if is_transposed else int(is_stacked)
    column_axis = len(shard) - 2 if is_transposed else int(is_stacked) + 1
    tensor_columns = leaf.shape[column_axis] if len(shard) > column_axis else 1

    for layer in range(shard[0] if is_stacked else 1):
        for row, n_rows in _row_chunks(
            shard[row_axis], tensor_columns * len({s[row_axis] for s in starts.values()})
        ):
            read: dict[tuple[LeafKey, int], np.ndarray] = {}
            parts = []
            for device, start in starts.items():
                key = (path, start[0] + layer if is_stacked else 0)
                first = start[row_axis] + row
                if (key, first) not in read:
                    read[key, first] = take(key, first, _read_finite(source, key, first, n_rows))
                part = read[key, first]
                if part.ndim == 2:
                    part = part[:, start[column_axis] : start[column_axis] + shard[column_axis]]
                part = np.ascontiguousarray(part[None] if is_stacked else part)
                parts.append(part if device is None else jax.device_put(part, device))
            out = write(out, _assemble(parts, is_transposed, sharding), layer, row)
            out.block_until_ready()  # otherwise the queue, not the chunk size, bounds the host's memory
    return out if stored == leaf.dtype else _viewer(leaf.dtype, sharding)(out)


def _stored_dtype(dtype: Any, sharding: NamedSharding | None) -> Any:
    """Returns the dtype to fill a leaf in: its own, or its bits.

    XLA on CPU rewrites a bfloat16 update as a conversion of the whole leaf to float32 and back, so that
    filling it in n chunks passes over it n times. As uint16 it is written in place.
    """
    platform = jax.default_backend() if sharding is None else sharding.mesh.devices.flat[0].platform
    return jnp.dtype(jnp.uint16) if platform == "cpu" and dtype == jnp.bfloat16 else dtype


def _row_chunks(n_rows: int, elements_per_row: int) -> Iterator[tuple[int, int]]:
    """Yields (first row, rows), all chunks alike so that they share a program; the last may overlap."""
    n_chunks = min(n_rows, math.ceil(n_rows * elements_per_row * 2 / CHUNK_BYTES))
    size = math.ceil(n_rows / n_chunks)
    for first in range(0, n_rows, size):
        yield min(first, n_rows - size), size


def _read_finite(source: TensorSource, key: LeafKey, first: int, n_rows: int) -> np.ndarray:
    rows = source.read_rows(key, first, first + n_rows)
    if not np.isfinite(rows).all():
        raise WeightsError(
            f"{source.describe(key)} holds NaN or infinity in rows {first} to {first + n_rows}; get it again"
        )
    return rows


def _shard_starts(
    shape: tuple[int, ...], sharding: NamedSharding | None
) -> dict[Any, tuple[int, ...]]:
    """Returns where in the leaf the part of each of this process's devices begins."""
    if sharding is None:
        return {None: (0,) * len(shape)}
    indices = sharding.addressable_devices_indices_map(shape)
    return {device: tuple(s.start or 0 for s in index) for device, index in indices.items()}


def _piece_spec(sharding: NamedSharding, ndim: int, is_transposed: bool) -> PartitionSpec:
    spec = [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
    if is_transposed:
        spec[-1], spec[-2] = spec[-2], spec[-1]
    return PartitionSpec(*spec)


def _assemble(parts: list[Any], is_transposed: bool, sharding: NamedSharding | None) -> Any:
    """Returns the devices' parts as one array, sharded as the leaf is (axes swapped as in the file)."""
    if sharding is None:
        return parts[0]
    local = parts[0].shape
    spec = _piece_spec(sharding, len(local), is_transposed)
    names = [() if s is None else (s,) if isinstance(s, str) else s for s in spec]
    shape = tuple(
        n * math.prod(sharding.mesh.shape[a] for a in axes)
        for n, axes in zip(local, names, strict=True)
    )
    return jax.make_array_from_single_device_arrays(
        shape, NamedSharding(sharding.mesh, spec), parts
    )


@functools.lru_cache(maxsize=64)
def _allocator(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding | None) -> Any:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _viewer(dtype: Any, sharding: NamedSharding | None) -> Any:
    return jax.jit(lambda bits: jax.lax.bitcast_convert_type(bits, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _writer(
    is_stacked: bool, is_transposed: bool, dtype: Any, stored: Any, sharding: NamedSharding | None
) -> Any:
    """Returns write(leaf, piece, layer, row) -> leaf; `leaf` is donated. Local to each device."""

    def write(leaf: jax.Array, piece: jax.Array, layer: jax.Array, row: jax.Array) -> jax.Array:
        piece = piece.astype(dtype)
        if stored != dtype:
            piece = jax.lax.bitcast_convert_type(piece, stored)
        if is_transposed:
            return jax.lax.dynamic_update_slice(leaf, piece.swapaxes(-1, -2), (layer, 0, row))
        start = (layer, row) if is_stacked else (row, 0)[: leaf.ndim]
        return jax.lax.dynamic_update_slice(leaf, piece, start)

    def write_local(
        leaf: jax.Array, piece: jax.Array, layer: jax.Array, row: jax.Array
    ) -> jax.Array:
        specs = (
            sharding.spec,
            _piece_spec(sharding, leaf.ndim, is_transposed),
            PartitionSpec(),
            PartitionSpec(),
        )
        local = jax.shard_map(write, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec)
        return local(leaf, piece, layer, row)

    return jax.jit(write if sharding is None else write_local, donate_argnums=0)


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"\n  {title}: {', '.join(names[:_MAX_NAMES])}{more}"
