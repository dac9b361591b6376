"""A program measured on a machine in the best way there is: compiled, or by arithmetic where no compiler is at hand.

    found = measure(program, config, mesh, topology)
    founds = measure_all(programs, config, mesh, topology, say)       # two at a time: a compiler uses one core

What it does not do: say what a stage is made of (`stages`).
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from medkor_jax.model.config import ModelConfig
from medkor_jax.plan.arithmetic import estimate
from medkor_jax.plan.compiling import Found, compile_program, finish, start
from medkor_jax.plan.stages import Program
from medkor_jax.plan.topology import Topology

MOST_AT_ONCE = 2  # a 27B's step takes some gigabytes to compile


def measure(program: Program, config: ModelConfig, mesh: Mesh, topology: Topology) -> Found:
    if topology.kind == "gpu":
        return estimate(program, config, mesh, topology)
    return compile_program(program, config, mesh, topology)


def measure_all(
    programs: Sequence[Program],
    config: ModelConfig,
    mesh: Mesh,
    topology: Topology,
    say: Callable[[str], None],
) -> dict[Program, Found]:
    """Returns what each program is on the mesh in force. say: told of each as it is done."""
    found: dict[Program, Found] = {}

    def done(program: Program, one: Found) -> None:
        found[program] = one
        trained = f" of {'+'.join(program.trained)}" if program.trained else ""
        say(
            f"{one.how}: {len(found)} of {len(programs)}, {program.kind}{trained}, {one.seconds:.0f} s"
        )

    if topology.kind == "gpu":
        for program in programs:
            done(program, estimate(program, config, mesh, topology))
        return found
    with concurrent.futures.ThreadPoolExecutor(min(MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
        waiting = {}
        for (
            program
        ) in programs:  # lowered here, where the mesh is in force; the threads only compile
            waiting[pool.submit(finish, start(program, config, mesh, topology))] = program
        for future in concurrent.futures.as_completed(waiting):
            done(waiting[future], future.result())
    return found
