"""Whether there is room on disk and on the devices for what a run writes and holds; what `medkor
preflight` says of it.

    disk_room(recipe)           # "3.1 GB for checkpoints, ..., 80.0 GB free"; else a ValueError
    device_room(recipe, mesh)

By arithmetic alone: nothing is compiled, fetched or written.
"""

from __future__ import annotations

import os
import pathlib
import shutil

import jax
from jax.sharding import Mesh

from medkor_jax.io.sizes import known_config
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.dtypes import float_of
from medkor_jax.plan.arithmetic import estimate
from medkor_jax.plan.command import config_of
from medkor_jax.plan.compiling import sharded_bytes
from medkor_jax.plan.lowering import abstract_params
from medkor_jax.plan.stages import STEP, Program, Trees, planned_stages
from medkor_jax.plan.topology import Chip, Topology
from medkor_jax.run.at_hand import is_at_hand
from medkor_jax.run.choosing import only_if
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import Recipe
from medkor_jax.train.stage import Stage

_MOMENTS = 2  # that the optimizer keeps of each trained weight


def model_config(recipe: Recipe) -> ModelConfig:
    return (
        open_model(recipe.weights).config
        if is_at_hand(recipe.weights)
        else config_of(recipe.weights)
    )


def disk_room(recipe: Recipe) -> str:
    needed, place = needed_bytes(recipe), pathlib.Path(recipe.run_dir).absolute()
    free = shutil.disk_usage(_existing(place)).free
    said = (
        f"{needed / 1e9:.1f} GB for checkpoints, adapters and merged bases, "
        f"{free / 1e9:.1f} GB free"
    )
    if needed > free:
        raise ValueError(f"{said} at {place}: name a run_dir with more room")
    for name, when in only_if(recipe).items():
        config = known_config(name)
        if config is None:
            said += f"; only if {when}: what {name} needs is not known"
            continue
        merged = sharded_bytes(abstract_params(config, Trees(), recipe.param_dtype).base)
        room = "" if needed + merged <= free else ", WHICH ARE NOT FREE"
        said += f"; only if {when}: {merged / 1e9:.1f} GB more{room}, beside the download of {name}"
    return said


def needed_bytes(recipe: Recipe) -> float:
    """Returns what the phases to run write: every stage's checkpoints with optimizer state (one
    more while it is written), every phase's adapters, and merged bases."""
    config = model_config(recipe)
    base = sharded_bytes(abstract_params(config, Trees(), float_of(recipe.param_dtype)).base)
    needed = float(sum(base for phase in recipe.in_force if phase.merge))
    for planned in planned_stages(recipe, config):
        step = next(run.program for run in planned.runs if run.program.kind == STEP)
        params, stage = (
            abstract_params(config, step.trees, step.param_dtype),
            _stage(recipe, planned.name),
        )
        trained = sum(sharded_bytes(getattr(params, name)) for name in step.trained)
        kept = stage.keep_last + (1 if stage.validate_every else 0) + 1
        needed += trained * (1 + _MOMENTS) * kept + sharded_bytes(
            (params.lora, params.lang, params.expand)
        )
    return needed


def _stage(recipe: Recipe, name: str) -> Stage:
    phase, which = name.split("/")
    return getattr(next(p for p in recipe.phases if p.name == phase), which)


def _existing(path: pathlib.Path) -> pathlib.Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def device_room(recipe: Recipe, mesh: Mesh) -> str:
    """Returns the largest program of any stage, by arithmetic, against what a device says it
    has."""
    config = model_config(recipe)
    limit, said_by = _device_memory()
    chip = Chip(jax.devices()[0].device_kind, limit, 1.0, 1.0, 1.0)
    topology = Topology("here", chip, (mesh.size,))
    largest, worst = 0.0, ""
    with jax.set_mesh(mesh):
        seen: dict[Program, float] = {}
        for planned in planned_stages(recipe, config):
            for run in planned.runs:
                if run.program not in seen:
                    seen[run.program] = estimate(run.program, config, mesh, topology).memory[
                        "total"
                    ]
                if seen[run.program] > largest:
                    largest, worst = seen[run.program], f"{planned.name}, {run.program.kind}"
    said = (
        f"largest: {worst}, about {largest / 2**30:.1f} GiB a device by arithmetic; "
        f"{limit / 2**30:.1f} GiB {said_by}"
    )
    if largest > limit:
        raise ValueError(
            f"{said}. Take a smaller batch, more microbatches or remat; `medkor plan` finds which"
        )
    return said


def _device_memory() -> tuple[float, str]:
    stats = jax.local_devices()[0].memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return float(limit), "on it"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    ) / jax.local_device_count(), "its share of this host's memory"
