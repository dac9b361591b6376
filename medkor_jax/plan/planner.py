"""Every stage of a recipe on a machine: what it needs, how long it takes at least, what would make it fit.

    plan = make_plan(recipe, "medgemma-4b", config, parse_topology("v5e:4x4"), price=1.2)
    plan.fits, plan.stages[3].seconds, plan.money

Programs that two stages share are compiled once. A stage's time is a bound from below: of each of its programs, the
longest of what the products, the memory and the interconnect need alone, as if all three went on at once.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, Sequence

from medkor_jax.model.config import ModelConfig
from medkor_jax.parallel.mesh import MeshShape, check_batch
from medkor_jax.plan.compiling import Found, machine, prepare
from medkor_jax.plan.measuring import measure_all
from medkor_jax.plan.search import first_that_fits
from medkor_jax.plan.stages import STEP, PlannedStage, Program, planned_stages
from medkor_jax.plan.topology import Topology
from medkor_jax.run.phases import Recipe

WALLS = MXU, HBM, ICI = "MXU", "HBM", "ICI"
SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least seconds that a program takes on each of the three walls."""

    seconds: dict[str, float]

    @property
    def wall(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def least(self) -> float:
        return self.seconds[self.wall]


def bound_of(found: Found, topology: Topology) -> Bound:
    cost = found.cost
    return Bound({
        MXU: cost.flops / topology.chip.flops,
        HBM: cost.main_bytes / topology.chip.main_bytes_per_s,
        ICI: sum(cost.wire_bytes.values()) / topology.ici_bytes_per_s,
    })  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StageCost:
    """A stage on the machine. found: of each of its programs, in the order of `stage.runs`."""

    stage: PlannedStage
    found: tuple[Found, ...]
    topology: Topology

    @property
    def bounds(self) -> list[Bound]:
        return [bound_of(found, self.topology) for found in self.found]

    @property
    def seconds_per_update(self) -> float:
        return sum(run.per_update * bound.least for run, bound in zip(self.stage.runs, self.bounds))

    @property
    def seconds(self) -> float:
        return self.stage.steps * self.seconds_per_update

    @property
    def wall(self) -> str:
        """Where most of its time goes."""
        _, wall = max((run.per_update * bound.least, bound.wall) for run, bound in zip(self.stage.runs, self.bounds))
        return wall

    @property
    def tokens_per_day(self) -> float:
        return SECONDS_PER_DAY * self.stage.tokens / self.seconds_per_update if self.seconds_per_update else 0.0

    @property
    def fits(self) -> bool:
        return all(found.fits for found in self.found)


@dataclasses.dataclass(frozen=True)
class Plan:
    """price: US dollars for a chip and an hour, or None. change: the first change that makes everything fit, in words; ""
    if everything fits as it is, or nothing tried was enough."""

    model: str
    topology: Topology
    mesh: MeshShape
    stages: tuple[StageCost, ...]
    price: float | None = None
    change: str = ""
    tried: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def hours(self) -> float:
        return sum(stage.seconds for stage in self.stages) / 3600

    @property
    def money(self) -> float | None:
        return None if self.price is None else self.hours * self.topology.n_chips * self.price


def make_plan(
    recipe: Recipe, model: str, config: ModelConfig, topology: Topology, *, price: float | None = None, say: Callable[[str], None] = print
) -> Plan:
    """Returns the plan of every stage of the phases to run; where it does not fit, with the first change that makes it fit.

    say: told what is compiled, and how long that took.

    Raises: ValueError if the machine, its mesh or a batch cannot be; ModuleNotFoundError without a compiler for it.
    """
    prepare(topology)
    stages = planned_stages(recipe, config)
    if not stages:
        raise ValueError(f"no phase of {', '.join(recipe.run)} trains anything: there is nothing to plan")
    programs = programs_of(stages)
    with machine(topology, recipe.mesh) as mesh:
        for program in programs:
            check_batch(program.rows, program.spec.microbatches if program.kind == STEP else 1, mesh)
        found = measure_all(programs, config, mesh, topology, say)
    costs = tuple(StageCost(stage, tuple(found[run.program] for run in stage.runs), topology) for stage in stages)
    plan = Plan(model, topology, recipe.mesh, costs, price)
    if plan.fits:
        return plan
    failing = [program for program in programs if not found[program].fits]
    change, tried = first_that_fits(failing, recipe.mesh, config, topology, say)
    return dataclasses.replace(plan, change=change.words if change else "", tried=tuple(tried))


def programs_of(stages: Sequence[PlannedStage]) -> list[Program]:
    """Returns every program of the stages once."""
    return list(dict.fromkeys(run.program for stage in stages for run in stage.runs))
