"""What each instruction of a traced program is, read from the trace file itself.

    programs = read_programs(path.read_bytes())
    programs["jit_step(6)"]["fusion.12"].where           # "jit(step)/jvp()/while/body/closed_call/Block/attention/div"

A trace (an XSpace, a protocol buffer) carries every program that ran in it as an HloProto. jax reads the events of a trace
and not these, and the libraries that do come with TensorFlow; so the few fields needed are read off the wire here.
Source of the field numbers: tsl/profiler/protobuf/xplane.proto and xla/service/hlo.proto.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

_METADATA_PLANE = b"/host:metadata"
_PRODUCT_CALLS = re.compile(r"gemm|matmul|cublas|dot|conv", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Op:
    """opcode: its own; where: the name of the code that asked for it, scopes included; has_product: it multiplies matrices,
    itself or in what it calls."""

    opcode: str
    where: str
    has_product: bool


def read_programs(raw: bytes) -> dict[str, dict[str, Op]]:
    """Returns {program: {instruction: what it is}} of an XSpace. A program is called as in the trace, name(id)."""
    found = {}
    for number, plane in _fields(raw):
        if number != 1 or _one(plane, 2) != _METADATA_PLANE:
            continue
        for entry in _all(plane, 4):  # id -> event metadata, one for each program
            metadata = _one(entry, 2)
            name = (_one(metadata, 2) or b"").decode()
            for stat in _all(metadata, 5):
                proto = _one(stat, 6)
                if isinstance(proto, bytes) and (module := _one(proto, 1)):
                    found[name] = _ops(module)
    return found


def _ops(module: bytes) -> dict[str, Op]:
    computations = {_one(body, 5): [_Raw.read(one) for one in _all(body, 2)] for body in _all(module, 3)}

    def inside(instruction: _Raw) -> Iterator[_Raw]:
        for number in instruction.called if instruction.opcode == "fusion" else ():
            for one in computations.get(number, ()):
                yield one
                yield from inside(one)

    found = {}
    for instruction in (one for body in computations.values() for one in body):
        parts = [instruction, *inside(instruction)]
        where = instruction.where or next((name for name, _ in collections.Counter(p.where for p in parts if p.where).most_common(1)), "")
        found[instruction.name] = Op(instruction.opcode, where, any(part.is_product for part in parts))
    return found


@dataclasses.dataclass(frozen=True)
class _Raw:
    name: str
    opcode: str
    where: str
    target: str
    called: tuple[int, ...]

    @classmethod
    def read(cls, raw: bytes) -> _Raw:
        values: dict[int, Any] = {}
        called: list[int] = []
        for number, value in _fields(raw):
            if number == 38:
                called += [value] if isinstance(value, int) else _varints(value)
            else:
                values.setdefault(number, value)
        text = lambda number: values.get(number, b"").decode(errors="replace")  # noqa: E731
        where = _one(values.get(7, b""), 2) or b""
        return cls(text(1), text(2), where.decode(errors="replace"), text(28), tuple(called))

    @property
    def is_product(self) -> bool:
        return self.opcode in ("dot", "convolution") or (self.opcode == "custom-call" and bool(_PRODUCT_CALLS.search(self.target)))


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (field number, value) of a message: an int, or bytes for what has a length or a fixed size.

    Raises: ValueError if it is none.
    """
    at = 0
    value: int | bytes
    while at < len(raw):
        tag, at = _varint(raw, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(raw, at)
        elif wire in (1, 2, 5):
            size, at = _varint(raw, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = raw[at : at + size], at + size
        else:
            raise ValueError(f"this is no trace: wire type {wire} of field {number}")
        yield number, value


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at


def _varints(raw: bytes) -> list[int]:
    found, at = [], 0
    while at < len(raw):
        value, at = _varint(raw, at)
        found.append(value)
    return found


def _all(raw: bytes, number: int) -> list[Any]:
    return [value for n, value in _fields(raw) if n == number]


def _one(raw: bytes, number: int) -> Any:
    return next((value for n, value in _fields(raw) if n == number), None)
