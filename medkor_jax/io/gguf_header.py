"""What a GGUF file says of itself: its metadata, and where each tensor lies.

    metadata, tensors = read_header(pathlib.Path("model.gguf"))
    metadata["general.architecture"], tensors["token_embd.weight"].shape

Parsed here rather than by `gguf.GGUFReader`, which needs ten seconds for a vocabulary of 262,144 pieces where this needs
a fraction of one. Does not touch the tensors, and does not read big-endian files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import pathlib
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from medkor_jax.io.streaming import WeightsError
from medkor_jax.model.fields import Fields

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """shape is [rows, columns], the file's order turned round; offset is in bytes from the file's start."""

    format: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        from gguf import GGML_QUANT_SIZES

        block_elements, block_bytes = GGML_QUANT_SIZES[self.format]
        return self.shape[-1] // block_elements * block_bytes


def read_header(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Returns the metadata and the tensors' places, without touching the tensors.

    Raises: WeightsError if the file is not GGUF or does not hold all the bytes that its header promises.
    Source: the GGUF specification, version 3.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer,
        ):
            return _Header(buffer, path).parse()
    except (struct.error, OverflowError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path} is not a whole GGUF file: its header cannot be read ({error})"
        ) from error


class _Header:
    """A position moving through the header."""

    def __init__(self, buffer: mmap.mmap, path: pathlib.Path) -> None:
        self.buffer, self.path, self.at = buffer, path, 0

    def parse(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        from gguf import GGMLQuantizationType

        magic, self.at = self.buffer[:4], 4
        version = self.scalar("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise WeightsError(
                f"{self.path} begins {magic!r}, version {version}; expected b'GGUF', version 2 or 3"
            )
        n_tensors, n_fields = self.scalar("Q"), self.scalar("Q")
        metadata = {}
        for _ in range(n_fields):
            name = self.string()
            metadata[name] = self.value(self.scalar("I"))
        tensors: dict[str, GgufTensor] = {}
        for _ in range(n_tensors):
            name = self.string()
            shape = tuple(self.scalar("Q") for _ in range(self.scalar("I")))[::-1]
            tensor = GgufTensor(GGMLQuantizationType(self.scalar("I")), shape, self.scalar("Q"))
            if name in tensors:
                raise WeightsError(f"{self.path} lists the tensor {name} twice")
            if not shape or min(shape) < 1:
                raise WeightsError(
                    f"{self.path} lists the tensor {name} of shape {list(shape)}; expected dimensions of at least 1"
                )
            tensors[name] = tensor
        with as_weights_error():
            alignment = Fields(metadata, str(self.path)).integer("general.alignment", default=32)
        data = -(-self.at // alignment) * alignment
        tensors = {
            name: dataclasses.replace(t, offset=data + t.offset) for name, t in tensors.items()
        }
        for name, t in tensors.items():
            end = t.offset + int(np.prod(t.shape[:-1], dtype=np.int64)) * t.row_bytes
            if end > len(self.buffer):
                raise WeightsError(
                    f"{self.path} is cut short: {name} ends at byte {end}, the file at {len(self.buffer)}; get it again"
                )
        return metadata, tensors

    def scalar(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self.buffer, self.at)
        self.at += struct.calcsize(letter)
        return value

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """Returns `count` strings; kept tight, because a vocabulary has a quarter of a million."""
        buffer, at, unpack, found = self.buffer, self.at, struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            (length,) = unpack(buffer, at)
            found.append(buffer[at + 8 : at + 8 + length].decode())
            at += 8 + length
        if at > len(buffer):
            raise WeightsError(f"{self.path} is cut short within its header; get it again")
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind] if kind in _SCALARS else self.refuse(kind))
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            return self.strings(count)
        dtype = np.dtype(_SCALARS[kind] if kind in _SCALARS else self.refuse(kind)).newbyteorder(
            "<"
        )
        values = np.frombuffer(self.buffer, dtype, count, self.at).copy()
        self.at += values.nbytes
        return values

    def refuse(self, kind: int) -> str:
        raise WeightsError(
            f"{self.path} has a metadata value of unknown type {kind} at byte {self.at}"
        )


@contextlib.contextmanager
def as_weights_error() -> Iterator[None]:
    """What a value of the file is refused for is a fault of the weights."""
    try:
        yield
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(str(error)) from error
