"""An optimised program's text, read into computations and instructions.

    module = parse(compiled.as_text())
    module.computations[module.entry]["fusion.12"].shapes[0].bytes

Reads what the TPU and the CPU compiler print. It knows no costs (`program`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_OPCODE = re.compile(r"\s*([\w-]+)\(")
_OPERAND = re.compile(r"%?([\w.-]+)$")
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Shape:
    """space: 0 is the chip's main memory; what lies in another (1: on-chip memory) costs no traffic to it."""

    dtype: str
    sizes: tuple[int, ...]
    space: int = 0

    @property
    def n(self) -> int:
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype, int(digits[0]) if digits else 8)
        return (self.n * bits + 7) // 8

    @property
    def main_bytes(self) -> int:
        """Bytes of it in the chip's main memory."""
        return 0 if self.space else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """attributes: all that follows the operands, as printed; literal: what stands in the brackets, as printed."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str:
        """Returns the value of `name=...` up to its comma, "" if there is none."""
        found = re.search(rf"\b{name}=(\{{[^{{}}]*\}}|\[[^\]]*\]|[^, ]+)", self.attributes)
        return found[1] if found else ""

    def called(self, name: str) -> str:
        return self.attribute(name).lstrip("%")


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: str
    n_devices: int

    @functools.cached_property
    def roots(self) -> dict[str, Instruction]:
        return {
            name: next(i for i in body.values() if i.is_root)
            for name, body in self.computations.items()
        }


def parse(text: str) -> Module:
    """Returns the module of a compiled program's text.

    Raises: ValueError if there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            if header := _HEADER.match(line):
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("this is no program's text: no ENTRY computation was found in it")
    found = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, int(found[1]) if found else 1)


def _instruction(line: str) -> Instruction | None:
    named = _NAME.match(line)
    if not named:
        return None
    start = named.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    opens = opcode.end() - 1
    closes = _closing(line, opens)
    literal = line[opens + 1 : closes]
    shapes = tuple(
        Shape(
            dtype,
            tuple(int(n.lstrip("<=")) for n in sizes.split(",") if n),
            int(space[1]) if (space := _SPACE.search(layout)) else 0,
        )
        for dtype, sizes, layout in _SHAPE.findall(line[start:end])
    )
    operands = tuple(
        found[1] for part in _split(literal) if (found := _OPERAND.search(part.strip()))
    )
    return Instruction(
        named[2], opcode[1], shapes, operands, literal, line[closes + 1 :], bool(named[1])
    )


def _closing(line: str, at: int) -> int:
    """Returns where the bracket that opens at `at` closes."""
    depth = 0
    for i in range(at, len(line)):
        if line[i] == "(":
            depth += 1
        elif line[i] == ")":
            depth -= 1
            if not depth:
                return i
    raise ValueError(f"a bracket does not close: {line[at : at + 80]!r}")


def _split(text: str) -> list[str]:
    """Returns the parts of `text` between the commas that stand in no bracket."""
    text = re.sub(r"/\*.*?\*/", "", text)
    parts, depth, start = [], 0, 0
    for i, sign in enumerate(text):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]] if text.strip() else []
