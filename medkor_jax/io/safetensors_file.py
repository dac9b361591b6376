"""Reads one file of safetensors: where its tensors lie, and their rows or bytes as they are stored.

    tensors = read_safetensors_header(pathlib.Path("model.safetensors"))
    read_rows_of(tensors["model.embed_tokens.weight"], 0, 1024)

By hand, since the library maps a file into memory, whose pages then count as this process's, and says little of what is
wrong with a broken one. Writing is `shards`' business; which tensors a checkpoint must hold, `hf`'s.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from medkor_jax.io.streaming import CHUNK_BYTES, WeightsError

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclasses.dataclass(frozen=True)
class SafeTensor:
    """Where one tensor lies; offset is in bytes from the file's start. dtype as safetensors calls it."""

    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def read_safetensors_header(path: pathlib.Path) -> dict[str, SafeTensor]:
    """Returns the tensors of one file, their places checked against each other and the file's size.

    Raises: WeightsError, one sentence, on a truncated or inconsistent file.
    Source: the safetensors format (8 bytes length, JSON header, data without holes).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise WeightsError(
                f"{path} ({size} bytes) is not a whole safetensors file: its header would be {length} bytes"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        spans = {name: _span(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not a safetensors file: its header cannot be read ({error})"
        ) from error
    data, expected = 8 + length, 0
    for name, (dtype, shape, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        n_bytes = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else stop - start
        if start != expected or stop - start != n_bytes:
            raise WeightsError(
                f"{path} is inconsistent: {name} ({dtype} {list(shape)}) takes bytes {start} to {stop}, "
                f"expected {expected} to {expected + n_bytes}"
            )
        expected = stop
    if data + expected != size:
        what = "cut short" if data + expected > size else "longer than its header says"
        raise WeightsError(
            f"{path} is {what}: {size} bytes, its header promises {data + expected}; get it again"
        )
    return {
        name: SafeTensor(path, dtype, shape, data + a, b - a)
        for name, (dtype, shape, a, b) in spans.items()
    }


def read_bytes(tensor: SafeTensor) -> np.ndarray:
    """Returns a tensor's bytes as they are stored, uint8 [n_bytes]."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        raw = np.fromfile(file, np.uint8, tensor.n_bytes)
    if raw.size != tensor.n_bytes:
        raise WeightsError(f"{tensor.path} ends early; it changed while it was read")
    return raw


def _span(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Returns dtype, shape, first byte and the one behind the last, as a header has them. Raises: ValueError if it has other things."""
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    counts = [*shape, *offsets]
    if not isinstance(dtype, str) or len(offsets) != 2:
        raise ValueError(f"expected a dtype and two offsets, found {dtype!r} and {offsets!r}")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"expected sizes and offsets as whole numbers, found {counts}")
    return dtype, tuple(shape), *offsets


def read_rows_of(tensor: SafeTensor, start: int, stop: int) -> np.ndarray:
    """Returns rows start to stop in the stored dtype. Not memory mapped: the pages would count as ours."""
    rows = np.empty((stop - start, *tensor.shape[1:]), DTYPES[tensor.dtype])
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset + start * (rows.nbytes // len(rows)))
        if file.readinto(rows.view(np.uint8).data) != rows.nbytes:
            raise WeightsError(f"{tensor.path} ends early; it changed while it was read")
    return rows


def is_equal(one: SafeTensor, other: SafeTensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    n_rows, n_columns = one.shape
    step = max(1, CHUNK_BYTES // (n_columns * DTYPES[one.dtype].itemsize))
    spans = [(row, min(row + step, n_rows)) for row in range(0, n_rows, step)]
    return all(
        np.array_equal(read_rows_of(one, *span), read_rows_of(other, *span)) for span in spans
    )
