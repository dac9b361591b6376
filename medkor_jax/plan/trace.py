"""Work of a function as it was written, from its jaxpr: a second count, that has not seen the compiler.

    work = jaxpr_work(jax.make_jaxpr(step)(state, frozen, reference, batch))       # over all devices together
    work.flops, work.matrix_bytes, work.row_bytes

Every dot_general counts 2 m k n and the bytes of its factors and its result, a scan as often as it runs, a conditional at
its costliest branch. As any compiler does, what no output needs is left out, and what is computed twice from the same values
counts once (a layer that is computed again for its gradient holds products that its attention, computed again within it,
asks for once more). Sizes are those of the whole batch: a chip's share is one part of n where every product is spread over n.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, Sequence

from jax.extend import core

# Those that only run what they hold; others hold a jaxpr for each element (a scatter how it adds, a sort how it compares).
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


@dataclasses.dataclass(frozen=True, order=True)
class Work:
    """flops; matrix_bytes: of factors and results that have no batch, which every device reads whole; row_bytes: of the others."""

    flops: float = 0.0
    matrix_bytes: float = 0.0
    row_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.matrix_bytes + other.matrix_bytes, self.row_bytes + other.row_bytes)

    def times(self, n: float) -> Work:
        return Work(self.flops * n, self.matrix_bytes * n, self.row_bytes * n)


def jaxpr_work(jaxpr: Any, *, open_trips: float | None = None, costly_share: float = 1.0) -> Work:
    """Returns the work of all matrix products of a (closed) jaxpr. open_trips, costly_share: as in `program.read_program`.

    Raises: ValueError on a loop without a known end, if `open_trips` is None and it multiplies.
    """
    values = _Values(open_trips, costly_share)
    inputs = [values.fresh() for _ in _open(jaxpr).invars]
    return values.work_behind(values.run(jaxpr, inputs))


@dataclasses.dataclass(frozen=True)
class _Node:
    work: Work
    inputs: tuple[int, ...]


class _Values:
    """Numbers every value of a jaxpr, those within calls too; the same operation on the same values has the same number."""

    def __init__(self, open_trips: float | None, costly_share: float) -> None:
        self._open_trips, self._costly_share = open_trips, costly_share
        self._numbers = itertools.count()
        self._nodes: dict[int, _Node] = {}
        self._known: dict[Any, list[int]] = {}

    def fresh(self) -> int:
        return next(self._numbers)

    def run(self, jaxpr: Any, inputs: Sequence[int]) -> list[int]:
        """Returns the numbers of the jaxpr's outputs for those of its inputs."""
        plain, constants = _open(jaxpr), getattr(jaxpr, "consts", ())
        of = dict(zip(plain.invars, inputs, strict=True))
        of |= {variable: self._named(("constant", id(constant))) for variable, constant in zip(plain.constvars, constants)}

        def number(atom: Any) -> int:
            return self._named(("literal", str(atom), str(atom.aval))) if isinstance(atom, core.Literal) else of[atom]

        for equation in plain.eqns:
            of |= dict(zip(equation.outvars, self._apply(equation, [number(atom) for atom in equation.invars]), strict=True))
        return [number(atom) for atom in plain.outvars]

    def work_behind(self, outputs: Sequence[int]) -> Work:
        """Returns the work of everything that the numbered values need."""
        total, waiting, seen = Work(), list(outputs), set()
        while waiting:
            node = self._nodes.get(waiting.pop())
            if node is not None and id(node) not in seen:
                seen.add(id(node))
                total += node.work
                waiting += node.inputs
        return total

    def _named(self, key: Any) -> int:
        return self._known.setdefault(key, [self.fresh()])[0]

    def _apply(self, equation: Any, inputs: list[int]) -> list[int]:
        parameters = equation.params
        name = equation.primitive.name
        work = self._own_work(name, equation)
        called = _jaxprs(parameters.values()) if name in _CALLS else []
        if called:
            if parameters.get("prevent_cse"):  # the compiler is told not to see that these are the same
                inputs = [self._node(("held apart", self.fresh(), i), Work(), [number], 1)[0] for i, number in enumerate(inputs)]
            return self.run(called[0], inputs)
        told = tuple(sorted((key, str(value)) for key, value in parameters.items() if not _jaxprs([value])))
        key: Any = (name, told, tuple(inputs), tuple(str(variable.aval) for variable in equation.outvars))
        if name in ("scan", "while", "cond"):
            key = (name, self.fresh())
        return self._node(key, work or Work(), inputs, len(equation.outvars))

    def _node(self, key: Any, work: Work, inputs: list[int], n_outputs: int) -> list[int]:
        if key not in self._known:
            self._known[key] = [self.fresh() for _ in range(n_outputs)]
            self._nodes |= dict.fromkeys(self._known[key], _Node(work, tuple(inputs)))
        return self._known[key]

    def _own_work(self, name: str, equation: Any) -> Work | None:
        """Returns the work of an equation that is counted as one, None if it is a call to look into or has none."""
        parameters = equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            arrays = [atom.aval for atom in (*equation.invars, *equation.outvars)]
            matrices, rows = (sum(map(n_bytes, part)) for part in ([a for a in arrays if a.ndim < 3], [a for a in arrays if a.ndim >= 3]))
            flops = 2.0 * math.prod(arrays[-1].shape) * math.prod(arrays[0].shape[i] for i in contracted)
            return Work(flops, matrices, rows)
        if name == "scan":
            return self._inside(parameters["jaxpr"]).times(parameters["length"])
        if name == "while":
            body = self._inside(parameters["body_jaxpr"])
            if body.flops and self._open_trips is None:
                raise ValueError("a while loop with matrix products has no known end; say open_trips")
            return body.times(self._open_trips or 0.0)
        if name == "cond":
            branches = [self._inside(branch) for branch in parameters["branches"]]
            return max(branches).times(self._costly_share) + min(branches).times(1 - self._costly_share)
        if name == "conv_general_dilated":
            raise ValueError("a convolution in the model: nothing here counts one")
        return None

    def _inside(self, jaxpr: Any) -> Work:
        return jaxpr_work(jaxpr, open_trips=self._open_trips, costly_share=self._costly_share)


def n_bytes(aval: Any) -> int:
    """Returns the bytes of an abstract array; of a random key, its two words."""
    size = math.prod(getattr(aval, "shape", ()))
    return size * getattr(getattr(aval, "dtype", None), "itemsize", 8)


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _jaxprs(values: Any) -> list[Any]:
    """Returns the jaxprs among an equation's parameters: of a jit, a remat, a custom derivative."""
    return [value for value in values if hasattr(_open(value), "eqns")]
