"""FLOPs of a function as it was written, from its jaxpr: a second count, that has not seen the compiler.

    jaxpr_flops(jax.make_jaxpr(step)(state, frozen, reference, batch))       # over all devices together

Every dot_general counts 2 m k n, a scan as often as it runs, a conditional at its costliest branch. What no output needs
is not counted, as no compiler would compute it. Sizes are those of the whole batch: a chip's share is one part of n
where every product is spread over all n.
"""

from __future__ import annotations

import math
from typing import Any, Iterable

from jax.extend import core


def jaxpr_flops(jaxpr: Any, *, open_trips: float | None = None, drawn: float = 1.0) -> float:
    """Returns the FLOPs of all matrix products of a (closed) jaxpr. open_trips, drawn: as in `program.read_program`.

    Raises: ValueError on a loop without a known end, if `open_trips` is None and it multiplies.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total, needed = 0.0, {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    for equation in reversed(jaxpr.eqns):
        if not needed.intersection(equation.outvars) and not equation.effects:
            continue
        needed |= {v for v in equation.invars if isinstance(v, core.Var)}
        total += _equation_flops(equation, open_trips, drawn)
    return total


def _equation_flops(equation: Any, open_trips: float | None, drawn: float) -> float:
    name, parameters = equation.primitive.name, equation.params
    inside = lambda jaxpr: jaxpr_flops(jaxpr, open_trips=open_trips, drawn=drawn)  # noqa: E731
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left, out = equation.invars[0].aval, equation.outvars[0].aval
        return 2.0 * math.prod(out.shape) * math.prod(left.shape[i] for i in contracted)
    if name == "scan":
        return parameters["length"] * inside(parameters["jaxpr"])
    if name == "while":
        body = inside(parameters["body_jaxpr"])
        if body and open_trips is None:
            raise ValueError("a while loop with matrix products has no known end; say open_trips")
        return body * (open_trips or 0.0)
    if name == "cond":
        branches = [inside(branch) for branch in parameters["branches"]]
        return max(branches) * (1.0 if min(branches) or not max(branches) else drawn)
    if name == "conv_general_dilated":
        raise ValueError("a convolution in the model: nothing here counts one")
    return sum(map(inside, _jaxprs(parameters.values())))


def _jaxprs(values: Iterable[Any]) -> list[Any]:
    """Returns the jaxprs among an equation's parameters: of a jit, a remat, a custom derivative."""
    return [value for value in values if hasattr(getattr(value, "jaxpr", value), "eqns")]
