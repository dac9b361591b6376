"""A plan as a table for people and as JSON for programs.

    print(table(plan));  json.dumps(to_json(plan))

What it does not do: find anything out.
"""

from __future__ import annotations

from typing import Any

from medkor_jax.parallel.mesh import AXES
from medkor_jax.plan.auto import Choice
from medkor_jax.plan.compiling import Found
from medkor_jax.plan.planner import Plan, StageCost
from medkor_jax.plan.topology import GIB

_PARTS = ("weights", "adapters", "optimizer", "cache", "batch")


def table(plan: Plan | Choice) -> str:
    """Returns a plan, or a choice of machines, for people."""
    return choice_table(plan) if isinstance(plan, Choice) else plan_table(plan)


def plan_table(plan: Plan) -> str:
    """Returns the plan in words and columns, a line a stage and below it a line for each further program it runs."""
    chip, lines = plan.topology.chip, [_head(plan)]
    lines.append(
        _row(
            "stage",
            "GiB",
            "temporary",
            "TFLOP",
            "x hand",
            "HBM GB",
            "ICI GB",
            "least s",
            "wall",
            "Mtok/day",
            "hours",
        )
    )
    for cost in plan.stages:
        lines += _stage_lines(cost)
    lines.append("")
    for note, stages in _notes(plan).items():
        lines.append(
            f"Assumed: {note}; {', '.join(stages) if len(stages) < 4 else f'{len(stages)} of {len(plan.stages)} stages'}."
        )
    if unseen := sorted(
        {
            kernel.where
            for cost in plan.stages
            for found in cost.found
            for kernel in found.cost.kernels
        }
    ):
        lines.append(f"NOT COUNTED: the inside of {', '.join(unseen)}; FLOPs are too low by it.")
    lines.append(
        f"All figures are a chip's; its memory is {chip.memory_bytes / GIB:.2f} GiB. Times are bounds from below: the slowest wall alone, at "
        "the published peaks."
    )
    lines.append(_verdict(plan))
    return "\n".join(lines)


def _head(plan: Plan) -> str:
    t = plan.topology
    hows = sorted({found.how for stage in plan.stages for found in stage.found})
    mesh = "x".join(str(n) for n in plan.mesh.resolve(t.n_chips))
    return f"{plan.model} on {t.name} ({t.n_chips} device{'s' if t.n_chips > 1 else ''}, mesh data x fsdp x tensor = {mesh}); {' and '.join(hows)}"


_WIDTHS = (28, 8, 11, 8, 8, 9, 9, 9, 6, 10, 8)


def _row(name: str, *cells: str) -> str:
    return name.ljust(_WIDTHS[0]) + "".join(
        cell.rjust(width) for cell, width in zip(cells, _WIDTHS[1:])
    )


def _number(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def _stage_lines(cost: StageCost) -> list[str]:
    lines: list[str] = []
    for run, found, bound in zip(cost.stage.runs, cost.found, cost.bounds):
        is_first = not lines
        name = cost.stage.name if is_first else f"  {run.program.kind} x {run.per_update:g}"
        memory = (
            f"{found.memory['total'] / GIB:.2f}",
            f"{found.memory.get('temporary', 0) / GIB:.2f}",
        )
        if found.refused:
            lines.append(f"{_row(name, *memory)}  DOES NOT FIT: {found.refused}")
            continue
        numbers = (
            _number(found.cost.flops / 1e12),
            f"{found.cost.flops / found.hand:.2f}",
            _number(found.cost.main_bytes / 1e9),
            _number(sum(found.cost.wire_bytes.values()) / 1e9),
            _number(bound.least),
            bound.wall,
        )
        whole = (
            (f"{cost.tokens_per_day / 1e6:.0f}", f"{cost.seconds / 3600:.1f}") if is_first else ()
        )
        lines.append(
            _row(name, *memory, *numbers, *whole) + ("" if found.fits else "  DOES NOT FIT")
        )
    return lines


def _notes(plan: Plan) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {}
    for cost in plan.stages:
        for note in cost.stage.notes:
            notes.setdefault(note, []).append(cost.stage.name)
    return notes


def _verdict(plan: Plan) -> str:
    if not plan.fits:
        closed = [stage.stage.name for stage in plan.stages if not stage.fits]
        return f"DOES NOT FIT: {', '.join(closed)}." + (
            f" It fits with {plan.change}." if plan.change else ""
        )
    money = (
        ""
        if plan.money is None
        else f", {plan.money:,.0f} USD at {plan.price:g} USD a chip and hour"
    )
    return f"Fits. All stages with every remedy once: at least {plan.hours:.1f} hours{money}."


def to_json(plan: Plan | Choice) -> dict[str, Any]:
    """Returns a plan, or a choice of machines, for programs: bytes, FLOPs and seconds of one chip."""
    if isinstance(plan, Choice):
        return choice_json(plan)
    return {
        "model": plan.model,
        "topology": plan.topology.name,
        "chips": plan.topology.n_chips,
        "mesh": dict(zip(AXES, plan.mesh.resolve(plan.topology.n_chips))),
        "memory_limit_bytes": plan.topology.chip.memory_bytes,
        "fits": plan.fits,
        "change": plan.change,
        "tried": list(plan.tried),
        "least_hours": plan.hours,
        "usd": plan.money,
        "stages": [_stage_json(stage) for stage in plan.stages],
    }


def _stage_json(cost: StageCost) -> dict[str, Any]:
    return {
        "stage": cost.stage.name,
        "steps": cost.stage.steps,
        "fits": cost.fits,
        "wall": cost.wall,
        "notes": list(cost.stage.notes),
        "least_seconds_per_update": cost.seconds_per_update,
        "tokens_per_day": cost.tokens_per_day,
        "least_hours": cost.seconds / 3600,
        "programs": [
            {
                "kind": run.program.kind,
                "per_update": run.per_update,
                "least_seconds": bound.seconds,
                **_found_json(found),
            }
            for run, found, bound in zip(cost.stage.runs, cost.found, cost.bounds)
        ],
    }


def _found_json(found: Found) -> dict[str, Any]:
    cost = found.cost
    return {
        "how": found.how,
        "fits": found.fits,
        "refused": found.refused,
        "memory_bytes": found.memory,
        "flops": cost.flops,
        "hand_flops": found.hand,
        "main_memory_bytes": cost.main_bytes,
        "interconnect_bytes": cost.wire_bytes,
        "kernels_not_seen": [kernel.where for kernel in cost.kernels],
    }


def choice_table(choice: Choice) -> str:
    """Returns every machine that was tried, a line each, and which to take."""
    lines = [
        f"{choice.model}, all weights sharded over all chips",
        f"{'machine':<14}{'GiB a chip':>11}{'of':>8}{'least hours':>13}{'USD':>9}  ",
    ]
    for one in choice.candidates:
        if one.plan is None:
            lines.append(
                f"{one.topology.name:<14}{'-':>11}{one.topology.chip.memory_bytes / GIB:>8.1f}{'-':>13}{'-':>9}  {one.how}"
            )
            continue
        money = "-" if one.plan.money is None else f"{one.plan.money:,.0f}"
        memory = f"{one.most_bytes / GIB:>11.1f}{one.topology.chip.memory_bytes / GIB:>8.1f}"
        lines.append(
            f"{one.topology.name:<14}{memory}{one.plan.hours:>13.1f}{money:>9}  {'fits' if one.fits else 'does not fit'}, {one.how}"
        )
    if choice.smallest is None:
        return "\n".join([*lines, "Nothing here fits."])
    lines.append(f"Smallest: {choice.smallest.topology.name}.")
    if choice.cheapest is not None:
        lines.append(
            f"Cheapest: {choice.cheapest.topology.name}, at least {choice.cheapest.plan.money:,.0f} USD at the prices given."
        )
    else:
        lines.append("No price was given: --price v5e=1.2,gpu=2.5 says which is cheapest.")
    return "\n".join(lines)


def choice_json(choice: Choice) -> dict[str, Any]:
    machines = [
        {
            "topology": one.topology.name,
            "chips": one.topology.n_chips,
            "fits": one.fits,
            "how": one.how,
            "least_hours": one.plan and one.plan.hours,
            "usd": one.plan and one.plan.money,
            "most_bytes": one.plan and one.most_bytes,
        }
        for one in choice.candidates
    ]
    name = lambda one: one and one.topology.name
    return {
        "model": choice.model,
        "machines": machines,
        "smallest": name(choice.smallest),
        "cheapest": name(choice.cheapest),
    }
