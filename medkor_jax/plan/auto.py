"""The smallest machine that fits, and the cheapest: `medkor plan --topology auto`.

    choice = choose(recipe, name, config, prices={"v5e": 1.2, "gpu": 2.5}, say=print)
    choice.smallest.topology.name, choice.cheapest

Every machine of `topology.AUTO` is planned by arithmetic, all weights sharded. The smallest and the cheapest TPU slice are
then held to the compiler, by the program that needs most memory; if that is refused, the next one is taken.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from medkor_jax.model.config import ModelConfig
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.plan.arithmetic import estimate
from medkor_jax.plan.compiling import Found, compile_program, machine, prepare
from medkor_jax.plan.planner import Plan, StageCost, programs_of
from medkor_jax.plan.stages import STEP, Program, planned_stages
from medkor_jax.plan.topology import AUTO, CHIPS, GIB, Topology, parse_topology
from medkor_jax.run.phases import Recipe


@dataclasses.dataclass(frozen=True)
class Candidate:
    """plan: None if the batch cannot be divided over it. how: what says that it fits or not."""

    topology: Topology
    plan: Plan | None
    how: str
    fits: bool

    @property
    def most_bytes(self) -> float:
        return max(found.memory["total"] for stage in self.plan.stages for found in stage.found)


@dataclasses.dataclass(frozen=True)
class Choice:
    """cheapest: None unless a price is known of a machine that fits."""

    model: str
    candidates: tuple[Candidate, ...]
    smallest: Candidate | None
    cheapest: Candidate | None

    @property
    def fits(self) -> bool:
        return self.smallest is not None


def price_of(prices: Mapping[str, float], topology: Topology) -> float | None:
    """Returns the price of one of its chips: by its kind, else the one for all."""
    return prices.get(topology.kind, prices.get(""))


def choose(
    recipe: Recipe,
    model: str,
    config: ModelConfig,
    *,
    prices: Mapping[str, float],
    say: Callable[[str], None],
) -> Choice:
    """Returns every machine tried, and which of them to take."""
    topologies = [parse_topology(name) for name in AUTO]
    host = parse_topology(f"cpu:{max(t.n_chips for t in topologies)}")
    prepare(host)
    stages = planned_stages(recipe, config)
    programs = programs_of(stages)
    of_size: dict[int, dict[Program, Found] | str] = {}
    candidates = []
    for topology in topologies:
        n = topology.n_chips
        if n not in of_size:
            say(f"{n} device{'s' if n > 1 else ''}, by arithmetic")
            of_size[n] = _estimates(programs, config, n)
        found = of_size[n]
        if isinstance(found, str):
            candidates.append(Candidate(topology, None, found, False))
            continue
        limit = topology.chip.memory_bytes
        costs = tuple(
            StageCost(
                stage,
                tuple(
                    dataclasses.replace(found[run.program], memory_limit=limit)
                    for run in stage.runs
                ),
                topology,
            )
            for stage in stages
        )
        plan = Plan(model, topology, MeshShape(1, n, 1), costs, price_of(prices, topology))
        candidates.append(Candidate(topology, plan, "by arithmetic", plan.fits))
    by_size = lambda c: (c.topology.n_chips, c.topology.chip.memory_bytes)
    smallest = _confirmed(candidates, by_size, programs, config, say)
    priced = [
        candidate for candidate in candidates if candidate.fits and candidate.plan.money is not None
    ]
    cheapest = (
        _confirmed(candidates, lambda c: c.plan.money, programs, config, say, among=priced)
        if priced
        else None
    )
    return Choice(model, tuple(candidates), smallest, cheapest)


def _estimates(programs: list[Program], config: ModelConfig, n: int) -> dict[Program, Found] | str:
    for program in programs:
        ways = n * (program.spec.microbatches if program.kind == STEP else 1)
        if program.rows % ways:
            return f"{program.rows} rows cannot be divided by {ways}"
    host = parse_topology(f"cpu:{n}")
    with machine(host, MeshShape(1, n, 1)) as mesh:
        return {program: estimate(program, config, mesh, host) for program in programs}


def _confirmed(
    candidates: list[Candidate],
    order: Callable[[Candidate], Any],
    programs: list[Program],
    config: ModelConfig,
    say: Callable[[str], None],
    among: list[Candidate] | None = None,
) -> Candidate | None:
    """Returns the first candidate that fits, by the compiler where there is one; marks in `candidates` what it found."""
    for candidate in sorted(
        [c for c in (candidates if among is None else among) if c.fits], key=order
    ):
        at = next(i for i, c in enumerate(candidates) if c.topology == candidate.topology)
        if candidates[at].how != "by arithmetic":
            candidate = candidates[at]
        elif candidate.topology.kind in CHIPS and importlib.util.find_spec("libtpu") is not None:
            found = {
                run.program: one
                for cost in candidate.plan.stages
                for run, one in zip(cost.stage.runs, cost.found)
            }
            heaviest = max(programs, key=lambda program: found[program].memory["total"])
            say(f"compiling the heaviest program, {heaviest.kind}, for {candidate.topology.name}")
            with machine(candidate.topology, candidate.plan.mesh) as mesh:
                real = compile_program(heaviest, config, mesh, candidate.topology)
            how = f"compiled: {heaviest.kind} needs {real.memory['total'] / GIB:.1f} GiB"
            candidate = candidates[at] = dataclasses.replace(
                candidates[at], how=how, fits=real.fits
            )
        if candidate.fits:
            return candidate
    return None
