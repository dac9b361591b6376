"""Writes tensors as safetensors, in shards, with one tensor in memory at a time.

    write_shards(directory, [Planned("lm_head.weight", (262144, 640), make)], "bfloat16", max_bytes=4 * 2**30)

Names and shapes are known before any value is: so the header of a shard is written first and the values follow
as they are made. Not for reading (`io.hf`) nor for quantised formats.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from medkor_jax.io.files import write_json

STORED = {"float32": (np.dtype(np.float32), "F32"), "bfloat16": (np.dtype(jnp.bfloat16), "BF16")}
"""dtype -> as NumPy has it, as safetensors calls it."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written; make() returns its value, of this shape, in any floating dtype.

    stored: (safetensors dtype, bytes) of a tensor that is copied as it lies; make() then returns its bytes, as uint8.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]
    stored: tuple[str, int] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def n_bytes(self, kind: np.dtype) -> int:
        return self.stored[1] if self.stored else self.size * kind.itemsize


def write_shards(directory: pathlib.Path, tensors: Sequence[Planned], dtype: str, *, max_bytes: int) -> dict[str, int]:
    """Writes `model.safetensors`, or shards with their index where it would be larger; returns {file name: bytes}.

    A tensor larger than `max_bytes` has a shard to itself.
    """
    kind = STORED[dtype][0]
    shards = _assign(tensors, kind, max_bytes)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(directory / name, shard, dtype)
    if len(shards) > 1:
        total = sum(tensor.size for tensor in tensors)
        write_json(directory / "model.safetensors.index.json", {
            "metadata": {"total_parameters": total, "total_size": sum(tensor.n_bytes(kind) for tensor in tensors)},
            "weight_map": {tensor.name: name for name, shard in zip(names, shards) for tensor in shard},
        })  # fmt: skip
    return {name: (directory / name).stat().st_size for name in names}


def write_safetensors(path: pathlib.Path, tensors: Iterable[Planned], dtype: str) -> None:
    """Writes one file. Source: the safetensors format (8 bytes length, JSON header, data without holes).

    Raises: ValueError if a value has another shape than planned, or holds NaN or infinity (in `dtype`).
    """
    kind, label = STORED[dtype]
    tensors, end = list(tensors), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for tensor in tensors:
        span = [end, end := end + tensor.n_bytes(kind)]
        kept = tensor.stored[0] if tensor.stored else label
        header[tensor.name] = {"dtype": kept, "shape": list(tensor.shape), "data_offsets": span}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # readers map the data, which wants to be aligned
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            file.write(_bytes_of(tensor, kind))


def _bytes_of(tensor: Planned, kind: np.dtype) -> Any:
    if tensor.stored:
        return np.ascontiguousarray(tensor.make()).data
    value = np.ascontiguousarray(tensor.make(), dtype=kind)
    if value.shape != tensor.shape:
        raise ValueError(f"{tensor.name} came out as {value.shape}; {tensor.shape} was planned")
    if not np.isfinite(value).all():
        raise ValueError(f"{tensor.name} holds NaN or infinity as {kind.name}; nothing is exported. Train again from a sound checkpoint")
    return value.reshape(-1).view(np.uint8).data


def _assign(tensors: Sequence[Planned], kind: np.dtype, max_bytes: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    room = max_bytes
    for tensor in tensors:
        n_bytes = tensor.n_bytes(kind)
        if shards[-1] and n_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(tensor)
        room -= n_bytes
    return shards
