"""What a compiled program does, read from its own text: FLOPs, bytes of main memory, bytes of the interconnect.

    cost = read_program(compiled.as_text())
    cost.flops; cost.main_bytes; cost.wire_bytes["all-gather"]

A loop counts as often as it runs, a conditional at its costliest branch unless it is known how often that is taken. A
collective that runs beside computation is printed in each of the fused computations it runs beside, always with its own
channel: it is counted once for each channel in each loop. The compiler's own totals are not used: they take a sharded loop's body once.

What it cannot see: inside of kernels given as a custom call; those are listed in `kernels`, for whoever knows them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

from medkor_jax.plan.hlo import Computation, Instruction, Module, parse
from medkor_jax.plan.products import PRODUCTS, product_flops
from medkor_jax.plan.traffic import Collective, collective_of, main_memory_bytes

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
KERNELS = re.compile(
    r'custom_call_target="(tpu_custom_call|__cublas[^"]*|__cudnn[^"]*|triton[^"]*|mosaic_gpu[^"]*)"'
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A custom call whose inside is not in the text. times: how often it runs; where: the names of the code that asked for it and
    of the call; target: what is called; shapes: of its results, as sizes; grid: of the blocks it visits, where it is told them."""

    target: str
    where: str
    shapes: tuple[tuple[int, ...], ...]
    times: float = 1.0
    grid: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cost:
    """A chip's work in one run of a program. collectives: by their channel and the loops it stands in."""

    flops: float = 0.0
    main_bytes: float = 0.0
    collectives: Mapping[tuple[str, ...], Collective] = dataclasses.field(default_factory=dict)
    kernels: tuple[Kernel, ...] = ()

    @property
    def wire_bytes(self) -> dict[str, float]:
        """Bytes a chip receives, by kind of collective, the largest first."""
        total: dict[str, float] = {}
        for one in self.collectives.values():
            total[one.kind] = total.get(one.kind, 0.0) + one.wire_bytes * one.times
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    @property
    def has_work(self) -> bool:
        return bool(self.flops or self.collectives or self.kernels)

    def __add__(self, other: Cost) -> Cost:
        # the same channel again is the same transfer, seen from another fused computation
        both = {**other.collectives, **self.collectives}
        return Cost(
            self.flops + other.flops,
            self.main_bytes + other.main_bytes,
            both,
            self.kernels + other.kernels,
        )

    def within(self, loop: str, times: float) -> Cost:
        """Returns the cost of a loop named `loop` whose body costs this."""
        collectives = {(loop, *key): one.repeated(times) for key, one in self.collectives.items()}
        kernels = tuple(
            dataclasses.replace(kernel, times=kernel.times * times) for kernel in self.kernels
        )
        return Cost(self.flops * times, self.main_bytes * times, collectives, kernels)


def read_program(text: str, *, open_trips: float | None = None, costly_share: float = 1.0) -> Cost:
    """Returns the cost of a compiled program's text.

    open_trips: how often a loop runs whose end is not in the text (decoding stops when every row is done). costly_share: at what
    share of all times a conditional takes its costliest branch, and else its cheapest: one layer in six looks at everything.

    Raises: ValueError if a loop that works does not say how often, and `open_trips` is None.
    """
    return _Walk(parse(text), open_trips, costly_share).total()


def _each_once(
    collectives: Mapping[tuple[str, ...], Collective],
) -> dict[tuple[str, ...], Collective]:
    """Returns the collectives without those that go on from one of the same channel in a loop around theirs: a transfer
    that is begun in a layer's body and ended there goes on beside the products of a loop within it."""
    begun = {(key[:-1], key[-1]) for key in collectives}

    def goes_on(loops: tuple[str, ...], channel: str) -> bool:
        return any((loops[:depth], channel) in begun for depth in range(len(loops)))

    return {key: one for key, one in collectives.items() if not goes_on(key[:-1], key[-1])}


class _Walk:
    def __init__(self, module: Module, open_trips: float | None, costly_share: float) -> None:
        self._module, self._open_trips, self._costly_share = module, open_trips, costly_share
        self._of = functools.cache(self._cost)

    def total(self) -> Cost:
        cost = self._of(self._module.entry, True)
        cost = dataclasses.replace(cost, collectives=_each_once(cost.collectives))
        moved = sum(one.main_bytes * one.times for one in cost.collectives.values())
        return dataclasses.replace(cost, main_bytes=cost.main_bytes + moved)

    def _cost(self, name: str, in_memory: bool) -> Cost:
        """in_memory: its instructions read and write main memory themselves; within a fusion they do not."""
        computation, total = self._module.computations[name], Cost()
        for instruction in computation.values():
            total += self._one(computation, instruction, in_memory)
        return total

    def _one(self, computation: Computation, instruction: Instruction, in_memory: bool) -> Cost:
        opcode = instruction.opcode
        moved = main_memory_bytes(self._module, computation, instruction) if in_memory else 0.0
        if opcode in PRODUCTS:
            factors = [computation[operand].shapes[0] for operand in instruction.operands[:2]]
            return Cost(product_flops(instruction, factors), moved)
        if opcode == "fusion":
            return Cost(main_bytes=moved) + self._of(instruction.called("calls"), False)
        if opcode in ("call", "async-start"):
            called = (
                instruction.called("to_apply")
                or instruction.called("calls")
                or instruction.called("called_computation")
            )
            return (
                self._of(called, in_memory)
                if called in self._module.computations
                else Cost(main_bytes=moved)
            )
        if opcode == "while":
            return self._loop(computation, instruction, in_memory)
        if opcode == "conditional":
            return self._branches(instruction, in_memory)
        if sent := collective_of(self._module, computation, instruction, in_memory):
            key = instruction.attribute("channel_id") or instruction.name
            return Cost(collectives={(key,): sent})
        if opcode == "custom-call" and (target := KERNELS.search(instruction.attributes)):
            named = re.search(r'op_name="([^"]*)"', instruction.attributes)
            where = f"{named[1] if named else ''} {instruction.name}"
            listed = re.search(
                r"operand_layout_constraints=\{s8\[([\d,]+)\]", instruction.attributes
            )
            grid = tuple(map(int, listed[1].split(","))) if listed else ()
            kernel = Kernel(
                target[1], where, tuple(shape.sizes for shape in instruction.shapes), grid=grid
            )
            return Cost(main_bytes=moved, kernels=(kernel,))
        return Cost(main_bytes=moved)

    def _loop(self, computation: Computation, loop: Instruction, in_memory: bool) -> Cost:
        body = self._of(loop.called("body"), in_memory)
        trips: float | None = self._trips(computation, loop)
        if trips is None:
            if self._open_trips is None:
                if not body.has_work:
                    return body
                raise ValueError(
                    f"the loop {loop.name!r} does not say how often it runs; its work cannot be counted"
                )
            trips = self._open_trips
        return body.within(loop.name, trips)

    def _branches(self, conditional: Instruction, in_memory: bool) -> Cost:
        names = [
            name.strip(" %")
            for name in conditional.attribute("branch_computations").strip("{}").split(",")
            if name
        ]
        names = names or [conditional.called(f"{which}_computation") for which in ("true", "false")]
        work = lambda name: (self._of(name, in_memory).flops, self._of(name, in_memory).main_bytes)
        least, *_, most = sorted(names, key=work)
        both = self._of(most, in_memory).within(f"{conditional.name}/{most}", self._costly_share)
        if self._costly_share < 1:
            both += self._of(least, in_memory).within(
                f"{conditional.name}/{least}", 1 - self._costly_share
            )
        return both

    def _trips(self, computation: Computation, loop: Instruction) -> int | None:
        """Returns how often the loop runs: as it is printed, else from a counter that is compared with a constant."""
        if found := _TRIPS.search(loop.attributes):
            return int(found[1])
        condition, test = (
            self._module.computations[loop.called("condition")],
            self._module.roots[loop.called("condition")],
        )
        if test.opcode == "fusion":  # the CPU compiler wraps the comparison
            inner = self._module.roots[test.called("calls")]
            names = {
                f"{i.literal}": i.name
                for i in self._module.computations[test.called("calls")].values()
                if i.opcode == "parameter"
            }
            outer = {name: test.operands[int(number)] for number, name in names.items()}
            operands, test = [outer.get(name, "") for name in inner.operands], inner
        else:
            operands = list(test.operands)
        if (
            test.opcode != "compare"
            or test.attribute("direction") != "LT"
            or not all(name in condition for name in operands)
        ):
            return None
        counter, end = (condition[name] for name in operands)
        if counter.opcode != "get-tuple-element":
            return None
        start = self._start_of(computation, loop, counter)
        limit = (
            self._constant(end)
            if end.opcode == "constant"
            else self._start_of(computation, loop, end)
        )
        step = self._step_of(loop, counter)
        if start is None or limit is None or step is None:
            return None
        return max(0, -(-(limit - start) // step))

    def _start_of(
        self, computation: Computation, loop: Instruction, element: Instruction
    ) -> int | None:
        """Returns the constant that the loop begins with at this place of what it carries, None if it is none."""
        if element.opcode != "get-tuple-element":
            return None
        carried = computation[loop.operands[0]]
        if carried.opcode != "tuple":
            return None
        first = computation.get(carried.operands[int(element.attribute("index"))])
        while first is not None and first.opcode in ("copy", "bitcast", "convert"):
            first = computation.get(first.operands[0])
        return self._constant(first) if first is not None else None

    def _step_of(self, loop: Instruction, counter: Instruction) -> int | None:
        """Returns what the body adds to the counter a turn."""
        body, root = (
            self._module.computations[loop.called("body")],
            self._module.roots[loop.called("body")],
        )
        if root.opcode != "tuple":
            return None
        index = int(counter.attribute("index"))
        moved = body.get(root.operands[index])
        while moved is not None and moved.opcode in ("copy", "bitcast"):
            moved = body.get(moved.operands[0])
        if moved is None:
            return None
        inside = body
        if moved.opcode == "fusion":
            inside, moved = (
                self._module.computations[moved.called("calls")],
                self._module.roots[moved.called("calls")],
            )
        if moved.opcode != "add":
            return None
        steps = [self._constant(inside[name]) for name in moved.operands if name in inside]
        known = [step for step in steps if step is not None]
        return known[0] if len(known) == 1 and known[0] > 0 else (1 if not known else None)

    @staticmethod
    def _constant(instruction: Instruction) -> int | None:
        is_number = instruction.opcode == "constant" and re.fullmatch(
            r"-?\d+", instruction.literal.strip()
        )
        return int(instruction.literal) if is_number else None
