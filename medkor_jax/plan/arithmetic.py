"""A program on a machine that has no compiler at hand: by arithmetic, from its jaxpr.

    found = estimate(program, config, mesh, topology)      # found.how == "by arithmetic"

FLOPs: of every product as written, a chip's share. Memory: what lies there throughout, as the sharding rules lay it, and
the most that is alive at once if the operations run in the order they are written and nothing is fused, so more than a
compiler needs; and the weights of two layers gathered, where they are sharded. Bytes of main memory: the products' factors
and results alone. Bytes of the interconnect: the weights gathered once a pass, the gradients of what trains reduced.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import Mesh

from medkor_jax.model.config import ModelConfig
from medkor_jax.plan.compiling import Found, sharded_bytes
from medkor_jax.plan.handcount import costly_share, hand_flops
from medkor_jax.plan.lowering import Traceable, traceable
from medkor_jax.plan.program import Cost
from medkor_jax.plan.stages import STEP, WRITE, Program
from medkor_jax.plan.topology import Topology
from medkor_jax.plan.trace import jaxpr_work, n_bytes
from medkor_jax.plan.traffic import Collective

_VIEWS = {
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "transpose",
    "convert_element_type",
    "copy",
    "iota",
    "optimization_barrier",
    "sharding_constraint",
    "name",
}


def estimate(program: Program, config: ModelConfig, mesh: Mesh, topology: Topology) -> Found:
    """Returns what `program` would need and do on a chip of `mesh`, which is in force."""
    began = time.perf_counter()
    asked = traceable(program, config, mesh)
    jaxpr = asked.jaxpr()
    work = jaxpr_work(
        jaxpr,
        open_trips=1.0 if program.kind == WRITE else None,
        costly_share=costly_share(program, config),
    )
    memory = {name: sharded_bytes(part) for name, part in asked.parts.items()}
    memory["arguments"] = sum(memory.values())
    memory["temporary"] = peak_bytes(jaxpr) / mesh.size + _gathered(asked, mesh)
    memory["total"] = memory["arguments"] + memory["temporary"]
    main_bytes = work.matrix_bytes / mesh.shape["tensor"] + work.row_bytes / mesh.size
    cost = Cost(work.flops / mesh.size, main_bytes, _collectives(program, asked, mesh))
    return Found(
        memory,
        cost,
        hand_flops(program, config) / mesh.size,
        "by arithmetic",
        time.perf_counter() - began,
        topology.chip.memory_bytes,
    )


def _gathered(asked: Traceable, mesh: Mesh) -> float:
    """Returns the bytes of two layers' weights and of a sixteenth of the head's table, whole but for the tensor axis."""
    if mesh.shape["fsdp"] == 1:
        return 0.0
    layers = sum(
        n_bytes(leaf) / leaf.shape[0] for leaf in jax.tree.leaves(asked.parts["weights"]["layers"])
    )
    table = n_bytes(asked.parts["weights"]["embed"])
    return (2 * layers + table / 16) / mesh.shape["tensor"]


def _collectives(
    program: Program, asked: Traceable, mesh: Mesh
) -> dict[tuple[str, ...], Collective]:
    found: dict[tuple[str, ...], Collective] = {}
    fsdp, ways = mesh.shape["fsdp"], mesh.shape["data"] * mesh.shape["fsdp"]
    if fsdp > 1:
        whole = (
            sum(n_bytes(leaf) for leaf in jax.tree.leaves(asked.parts["weights"]))
            / mesh.shape["tensor"]
        )
        passes = (2 if program.kind == STEP else 1) * (
            program.spec.microbatches if program.kind == STEP else 1
        )
        found[("weights",)] = Collective(
            "all-gather", whole, whole * (fsdp - 1) / fsdp, 0.0, fsdp, passes
        )
    if program.kind == STEP and ways > 1:
        state = asked.arguments[0]
        whole = (
            sum(n_bytes(leaf) for leaf in jax.tree.leaves(state.trainable)) / mesh.shape["tensor"]
        )
        found[("gradients",)] = Collective(
            "all-reduce", whole, 2 * whole * (ways - 1) / ways, 0.0, ways
        )
    return found


def peak_bytes(jaxpr: Any) -> float:
    """Returns the most bytes, over all devices, that are alive at once besides the jaxpr's inputs and constants.

    A loop's body is alive beside what the loop carries and stacks; what only changes a value's form has no memory of its own.
    """
    plain = getattr(jaxpr, "jaxpr", jaxpr)
    last_use: dict[Any, int] = {}
    for at, equation in enumerate(plain.eqns):
        last_use |= {atom: at for atom in equation.invars if isinstance(atom, core.Var)}
    last_use |= {atom: len(plain.eqns) for atom in plain.outvars if isinstance(atom, core.Var)}
    outside = {*plain.invars, *plain.constvars}
    alive: dict[Any, float] = {}
    now = most = 0.0
    for at, equation in enumerate(plain.eqns):
        inside = max((peak_bytes(inner) for inner in _inner(equation)), default=0.0)
        made = {
            v: 0.0 if _is_view(equation) else n_bytes(v.aval)
            for v in equation.outvars
            if v in last_use
        }
        alive |= made
        now += sum(made.values())
        # a call's results are among what was alive within it
        most = max(
            most,
            now
            + max(
                0.0,
                inside
                - (sum(made.values()) if equation.primitive.name not in ("scan", "while") else 0.0),
            ),
        )
        for atom in {a for a in equation.invars if isinstance(a, core.Var)} | set(equation.outvars):
            if last_use.get(atom, at) == at and atom not in outside:
                now -= alive.pop(atom, 0.0)
    return most


def _is_view(equation: Any) -> bool:
    """Whether what the equation makes has no memory of its own: another form of what it reads. An int8 matrix that is made
    wider has: a GPU's library multiplies what lies in memory."""
    if equation.primitive.name not in _VIEWS:
        return False
    read = equation.invars[0].aval if equation.invars else None
    return getattr(read, "dtype", None) != jnp.int8


def _inner(equation: Any) -> list[Any]:
    values: list[Any] = []
    for value in equation.params.values():
        values += value if isinstance(value, (tuple, list)) else [value]
    return [value for value in values if hasattr(getattr(value, "jaxpr", value), "eqns")]


__all__ = ["estimate", "peak_bytes"]
