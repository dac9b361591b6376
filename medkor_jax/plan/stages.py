"""The stages of a recipe as programs that can be compiled from shapes alone: no weights, no data, no devices.

    stages = planned_stages(recipe, preset("medgemma-4b"))
    stages[0].runs[0].program                     # what is compiled; equal programs are equal values

A stage's shapes come from its config. What only the data would tell is taken at its most: as many loss positions as
tokens, prompts that leave just the room for an answer, answers of `max_new_tokens`, and every remedy trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.prompts import bucket
from medkor_jax.run.phases import Phase, Recipe
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import StepSpec, step_spec

STEP, SCORE, READ, WRITE = "step", "score", "read prompts", "write a token"


@dataclasses.dataclass(frozen=True)
class Trees:
    """Which trees a model has besides its base. lora: (rank, targets) or None; lang: its kind or ""; expand: layers at each end;
    n_new: tokens behind the base's vocabulary."""

    lora: LoraSettings | None = None
    lang: str = ""
    expand: tuple[int, int] = (0, 0)
    n_new: int = 0


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function. Two stages that differ in steps, seeds or learning rates share it.

    rows, length: of its batch; positions: that meet the head a row. width, room: of decoding: tokens of a prompt, and that the
    cache holds. reference: the trees of the model that retention holds to.
    """

    kind: str
    trees: Trees
    trained: tuple[str, ...]
    spec: StepSpec
    rows: int
    length: int
    positions: int
    param_dtype: str
    reference: Trees | None = None
    room: int = 0
    with_reference_nats: bool = False


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A program and how often a stage runs it for one update of its trees."""

    program: Program
    per_update: float


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """tokens: that one update reads, padding included. notes: what had to be assumed."""

    name: str
    steps: int
    tokens: int
    runs: tuple[PlannedRun, ...]
    notes: tuple[str, ...] = ()


def planned_stages(recipe: Recipe, config: ModelConfig) -> list[PlannedStage]:
    """Returns every training stage of the phases to run, remedies included, in the order they would run."""
    ends: dict[str, Trees] = {}
    stages: list[PlannedStage] = []
    for phase in recipe.phases:
        start = next((ends[name] for name in recipe.upstream_of(phase) if name in ends), Trees())
        trees = _with(start, phase, phase.lora)
        reference = recipe.reference_of(phase)
        held = start if reference is None else ends[reference.name]
        found = list(_stages(recipe, phase, phase.train, "train", trees, held))
        if phase.merge:
            trees = dataclasses.replace(trees, lora=None)
        if phase.gate.has_remedy and phase.remedy.steps:
            trees = _with(trees, phase, phase.remedy_lora)
            found += _stages(recipe, phase, phase.remedy, "remedy", trees, held)
        ends[phase.name] = trees
        if phase.name in recipe.run:
            stages += found
    return stages


def _with(trees: Trees, phase: Phase, lora: LoraSettings) -> Trees:
    """Returns the trees after the phase added its own, as `run.trees.add_trees` does."""
    return Trees(
        lora=lora if lora.is_on else trees.lora,
        lang=phase.language.kind or trees.lang,
        n_new=phase.language.size or trees.n_new,
        expand=(phase.expand.front, phase.expand.back) if phase.expand.is_on else trees.expand,
    )


def _stages(
    recipe: Recipe, phase: Phase, stage: Stage, name: str, trees: Trees, held: Trees
) -> Iterator[PlannedStage]:
    if not stage.steps:
        return
    spec = step_spec(stage, recipe.compute, 0)
    rollout = stage.reward.rollout if stage.reward.is_on else None
    longest = rollout.max_new_tokens if rollout else stage.seq_len
    notes = (
        []
        if stage.loss_positions or rollout
        else ["loss at every token (loss_positions is 0: the data would tell)"]
    )
    common: dict[str, Any] = dict(
        trees=trees, trained=stage.trees, spec=spec, param_dtype=recipe.param_dtype
    )
    step = Program(
        STEP,
        rows=stage.batch_size,
        length=stage.seq_len,
        positions=stage.loss_positions or longest,
        reference=held if stage.retention.is_on else None,
        with_reference_nats=spec.policy is not None and spec.policy.settings.kl_weight > 0,
        **common,
    )
    runs = [PlannedRun(step, 1.0)]
    if rollout:
        often = 1.0 / rollout.updates_per_batch
        if spec.policy is not None:
            runs.append(
                PlannedRun(
                    dataclasses.replace(step, kind=SCORE, trained=()),
                    often * (2 if step.with_reference_nats else 1),
                )
            )
        width = bucket(stage.seq_len - longest)
        prompts = dataclasses.replace(
            step, kind=READ, trained=(), length=width, positions=1, room=bucket(width + longest)
        )
        runs += [
            PlannedRun(prompts, often),
            PlannedRun(dataclasses.replace(prompts, kind=WRITE), often * longest),
        ]
        notes.append(f"answers of {longest} tokens, no group asked again")
    yield PlannedStage(
        f"{phase.name}/{name}",
        stage.steps,
        stage.batch_size * stage.seq_len,
        tuple(runs),
        tuple(notes),
    )
