"""Bytes that one instruction of a compiled program moves: over the chip's main memory, and over the interconnect.

    main_memory_bytes(module, computation, instruction)
    collective_of(module, computation, instruction)       # a Collective, or None

Main memory: every operand read once, every output written once; what the compiler keeps on the chip costs nothing; of
what is sliced, the slice; what a fusion only hands on, nothing. So it is what must be moved at least.

Interconnect: bytes a chip must receive in a group of n, by the best known algorithm (Source: Patarasuk & Yuan 2009,
doi:10.1016/j.jpdc.2008.09.002): all-gather, reduce-scatter and all-to-all (n-1)/n of the whole, all-reduce twice that.
"""

from __future__ import annotations

import dataclasses
import math
import re

from medkor_jax.plan.hlo import Computation, Instruction, Module, Shape

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "add-dependency",
    "opt-barrier",
    "iota",
    "domain",
}
_VIEWS = ("bitcast", "get-tuple-element", "copy", "reshape")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of transfer. whole_bytes: of the array all chips of a group together see; wire_bytes: a chip receives;
    times: how often the program does it."""

    kind: str
    whole_bytes: float
    wire_bytes: float
    main_bytes: float
    n_group: int
    times: float = 1.0

    def repeated(self, n: float) -> Collective:
        return dataclasses.replace(self, times=self.times * n)


def operand_shapes(computation: Computation, instruction: Instruction) -> list[Shape]:
    """Returns the shapes of all operands, those of a tuple one after another."""
    return [
        shape
        for name in instruction.operands
        if name in computation
        for shape in computation[name].shapes
    ]


def collective_of(
    module: Module, computation: Computation, instruction: Instruction, in_memory: bool = True
) -> Collective | None:
    """Returns what `instruction` sends, None if it is no collective or the end of one that was started elsewhere.

    in_memory: it reads and writes main memory itself; within a fusion, the fusion does.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    inputs = operand_shapes(computation, instruction)
    given, received = sum(s.bytes for s in inputs), sum(s.bytes for s in instruction.shapes)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        received -= given  # its tuple names the input first, and small flags last
        received -= sum(s.bytes for s in instruction.shapes if not s.sizes)
    n = _group_size(instruction, module.n_devices)
    share = (n - 1) / n
    whole, wire = {
        "all-gather": (received, received * share),
        "all-reduce": (given, 2 * given * share),
        "reduce-scatter": (given, given * share),
        "collective-permute": (given, given),
        "collective-broadcast": (given, given),
    }.get(kind, (given, given * share))
    has_input = instruction.opcode.endswith("-start") and kind != "all-reduce"
    outputs = instruction.shapes[len(inputs) :] if has_input else instruction.shapes
    main = sum(s.main_bytes for s in (*inputs, *outputs)) if in_memory else 0.0
    return Collective(kind, whole, wire, main, n) if wire else None


def _group_size(instruction: Instruction, n_devices: int) -> int:
    """Returns how many chips exchange with one another, from any of the forms in which groups are printed."""
    text = instruction.attributes
    if instruction.opcode.startswith("collective-permute"):
        return 2
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
        used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else sizes[name] for name, part in used)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([^}]*)\}", text):
        return len(found[1].split(","))
    return n_devices


def main_memory_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Returns what the instruction reads and writes of the chip's main memory; a collective's share is with the collective."""
    opcode = instruction.opcode
    if (
        opcode in _FREE
        or opcode.endswith(("-done", "-update"))
        or opcode.removesuffix("-start") in KINDS
        or opcode == "async-start"
    ):
        return 0
    inputs = operand_shapes(computation, instruction)
    if opcode == "fusion":
        return _fusion_bytes(module, computation, instruction)
    if opcode == "copy-start":
        return sum(s.main_bytes for s in inputs[:1]) + instruction.shapes[0].main_bytes
    outputs = sum(s.main_bytes for s in instruction.shapes)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return outputs + min(inputs[0].main_bytes, sum(s.bytes for s in instruction.shapes))
    if opcode == "dynamic-update-slice":
        return inputs[1].main_bytes + (0 if inputs[0].space else inputs[1].bytes)
    return outputs + sum(s.main_bytes for s in inputs)


def _fusion_bytes(module: Module, computation: Computation, fusion: Instruction) -> float:
    inside = module.computations[fusion.called("calls")]
    root = module.roots[fusion.called("calls")]
    users: dict[str, list[Instruction]] = {}
    for instruction in inside.values():
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    parameters = {int(i.literal): i for i in inside.values() if i.opcode == "parameter"}
    if (
        "AsyncCollectiveStart" in root.attributes
    ):  # its results are the input, the output, and flags
        return sum(s.main_bytes for s in operand_shapes(computation, fusion)) + sum(
            s.main_bytes for s in fusion.shapes[1:]
        )
    total = 0.0
    for number, name in enumerate(fusion.operands):
        shapes = computation[name].shapes if name in computation else ()
        if number in parameters and len(shapes) == 1 and not shapes[0].space:
            total += min(shapes[0].bytes, _read_of(inside, users, parameters[number], module))
    outputs = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for shape, made in zip(fusion.shapes, outputs):
        if not shape.space:
            total += _written_by(inside, made)
    return total


def _read_of(
    inside: Computation, users: dict[str, list[Instruction]], parameter: Instruction, module: Module
) -> float:
    """Returns the bytes that a fused computation reads of a parameter: what is sliced out of it, if nothing else is done."""
    total = 0.0
    for user in users.get(parameter.name, ()):
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += sum(s.bytes for s in user.shapes)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue
        elif user.opcode in _VIEWS:
            total += _read_of(inside, users, user, module)
        elif user.opcode == "fusion":
            called = user.called("calls")
            deeper = module.computations[called]
            of_deeper: dict[str, list[Instruction]] = {}
            for instruction in deeper.values():
                for name in instruction.operands:
                    of_deeper.setdefault(name, []).append(instruction)
            numbers = [i for i, name in enumerate(user.operands) if name == parameter.name]
            for inner in deeper.values():
                if inner.opcode == "parameter" and int(inner.literal) in numbers:
                    total += _read_of(deeper, of_deeper, inner, module)
        elif user.opcode == "tuple" or user.opcode.removesuffix("-start") in KINDS:
            continue  # handed on, or counted with the collective
        else:
            return math.inf  # all of it: the caller takes the smaller of this and the whole
    return total


def _written_by(inside: Computation, made: Instruction) -> float:
    while made.opcode in _VIEWS and made.operands and made.operands[0] in inside:
        made = inside[made.operands[0]]
    if made.opcode == "parameter" or made.opcode.removesuffix("-start") in KINDS:
        return 0.0
    if made.opcode == "custom-call" and "AsyncCollective" in made.attributes:
        return 0.0
    if made.opcode == "dynamic-update-slice":
        return sum(s.bytes for s in inside[made.operands[1]].shapes)
    return sum(s.bytes for s in made.shapes)
