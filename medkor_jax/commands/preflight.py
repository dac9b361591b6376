"""`medkor preflight`: what would fail an hour later, found now, on all hosts together.

    report = preflight(load_recipe("configs/pipeline.py"))      # every process calls it
    print(report.table()); report.is_clear

Nothing is trained, downloaded or kept: a file of a few bytes is written to the run directory and removed. What it cannot
know: whether a host or the network will fail, and what the gates will say.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medkor_jax.data import rows
from medkor_jax.data.contents import file_digest, files_digest
from medkor_jax.data.rows import EMBEDDED
from medkor_jax.io import download
from medkor_jax.io.weights import is_hub_id
from medkor_jax.model.config import ModelConfig
from medkor_jax.parallel import hosts
from medkor_jax.parallel.agreement import require_same, require_shared
from medkor_jax.parallel.mesh import AXES, check_batch, make_mesh
from medkor_jax.plan.arithmetic import estimate
from medkor_jax.plan.command import config_of
from medkor_jax.plan.compiling import sharded_bytes
from medkor_jax.plan.stages import STEP, Program, Trees, abstract_params, planned_stages
from medkor_jax.plan.topology import Chip, Topology
from medkor_jax.run.corpora import Corpora, uses_of
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import Recipe, Stage
from medkor_jax.run.readiness import checks

_PACKAGES = ("medkor-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")
_REDUCED_BYTES = 2**24  # of each device's part in the all-reduce that is timed
_SAID = "hold; `medkor data check` says what they can tell"
_MOMENTS = 2  # that the optimizer keeps of each trained weight


@dataclasses.dataclass(frozen=True)
class Finding:
    """what was looked at, what was found, and what is wrong with it ("": nothing)."""

    what: str
    found: str
    trouble: str = ""


@dataclasses.dataclass(frozen=True)
class Preflight:
    findings: tuple[Finding, ...]

    @property
    def is_clear(self) -> bool:
        return not any(finding.trouble for finding in self.findings)

    def table(self) -> str:
        width = max(len(finding.what) for finding in self.findings)
        lines = [f"{f.what:<{width}}  {'FAILS' if f.trouble else 'ok   '}  {f.trouble or f.found}" for f in self.findings]
        wrong = sum(bool(finding.trouble) for finding in self.findings)
        said = "nothing found that would stop this run" if not wrong else f"{wrong} of {len(self.findings)} checks fail: this run would not get through"
        return "\n".join([*lines, said])


def preflight(recipe: Recipe) -> Preflight:
    """Returns what was found on all hosts. Every process must call it; each gets the same."""
    return Preflight(tuple(_findings(recipe)))


def _findings(recipe: Recipe) -> Iterator[Finding]:
    yield _found("versions", _versions)
    yield (mesh := _found("devices", lambda: _devices(recipe)))
    if mesh.trouble:
        return  # all that follows needs them
    made = make_mesh(recipe.mesh)
    yield _found("all-reduce", lambda: _all_reduce(made))
    yield _found("run directory", lambda: _run_directory(recipe))
    yield _found("data", lambda: _data(recipe))
    for name in recipe.outside_weights:
        yield _found(f"weights {name}", lambda name=name: _weights(name))
    is_here = all(hosts.collect("weights are here", _is_here(recipe.weights)))
    model = _found("model", lambda: str(_config(recipe).n_params))
    if not model.trouble:
        yield _found("disk", lambda: _disk(recipe))
        yield _found("memory", lambda: _memory(recipe, made))
    else:
        yield model if is_here else Finding("disk, memory", f"not looked at: the sizes of {recipe.weights} are not known before it is fetched")
    if not is_here:
        yield Finding("batches", f"not looked at: {recipe.weights} is still on the hub, and its tokenizer with it; once fetched, this says more")
    elif not model.trouble:
        corpora = Corpora(recipe.drop_bad, recipe.reasoning, say=False)
        asked = checks(recipe, corpora, made)
        for name in [name for name in asked if "/" not in name]:
            yield _found(name, lambda name=name: (asked[name]() and _SAID) or "holds")
        yield _found("batches", lambda: _batches({name: check for name, check in asked.items() if "/" in name}))


def _found(what: str, look: Callable[[], str]) -> Finding:
    """Returns what `look` says; what it raises on any host is trouble on all."""
    found = trouble = ""
    try:
        found = look()
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        trouble = str(error) or type(error).__name__
    troubles = hosts.collect(f"preflight {what}", trouble)
    said = [trouble if len(troubles) == 1 else f"process {i}: {trouble}" for i, trouble in enumerate(troubles) if trouble]
    return Finding(what, found, "; ".join(dict.fromkeys(said)))


def _versions() -> str:
    mine = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            mine[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            mine[name] = "not installed as a package"
    source = pathlib.Path(__file__).parent
    mine["code"] = files_digest(source.rglob("*.py"), source)[:12]
    require_same("versions", mine)
    return ", ".join(f"{name} {version}" for name, version in mine.items() if name in ("python", "jax", "code"))


def _devices(recipe: Recipe) -> str:
    counts = hosts.collect("devices", [jax.local_device_count(), jax.devices()[0].device_kind])
    mesh = make_mesh(recipe.mesh)
    for phase in recipe.in_force:
        for stage in (phase.train, phase.remedy):
            if stage.steps:
                check_batch(stage.batch_size, stage.microbatches, mesh)
    if len({kind for _, kind in counts}) > 1 or len({n for n, _ in counts}) > 1:
        raise ValueError(f"hosts have different devices: {', '.join(f'process {i}: {n} {kind}' for i, (n, kind) in enumerate(counts))}")
    axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES)
    return f"{len(counts)} process{'es' if len(counts) > 1 else ''} of {counts[0][0]} {counts[0][1]}: {axes}; every batch divides"


def _all_reduce(mesh: Mesh) -> str:
    """Sums over all devices what each of them holds, and compares; times it."""
    n, width = mesh.size, _REDUCED_BYTES // 4
    rows = NamedSharding(mesh, PartitionSpec(AXES))
    held = jax.make_array_from_callback((n, width), rows, lambda index: np.full((1, width), 1.0 + (index[0].start or 0), np.float32))
    reduce = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))
    found = np.asarray(reduce(held).addressable_data(0))
    if not (found == n * (n + 1) / 2).all():
        raise ValueError(f"the sum over {n} devices is {found.min():g} to {found.max():g}, expected {n * (n + 1) / 2:g}: their connection is not to be trusted")
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        reduce(held).block_until_ready()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    moved = 2 * (n - 1) / n * _REDUCED_BYTES  # by each device, of a ring
    return f"{n} devices sum right; {_REDUCED_BYTES / 1e6:.0f} MB in {median * 1e3:.1f} ms" + (f", {moved / median / 1e9:.2f} GB/s a device" if n > 1 else "")


def _run_directory(recipe: Recipe) -> str:
    directory = pathlib.Path(recipe.run_dir)
    require_shared(directory)
    if hosts.is_first():
        directory.mkdir(parents=True, exist_ok=True)
        mark = directory / ".preflight"
        mark.write_text("", encoding="ascii")
        mark.unlink()
    return f"{directory.absolute()} is written by all" if hosts.n_processes() > 1 else f"{directory.absolute()} can be written"


def _data(recipe: Recipe) -> str:
    """Every file of every source is opened on every host, and holds the same."""
    sources = dict.fromkeys(use.source for use in uses_of(recipe))
    found, trouble = {}, []
    for source in sources:
        path = pathlib.Path(source.path)
        try:
            if path.is_file():
                found[source.name] = file_digest(path)
            elif source.path != EMBEDDED and not path.is_dir() and rows.is_hub_id(source.path):
                download.check_access(source.path, "dataset")
            elif source.path != EMBEDDED and not path.is_dir():
                trouble.append(f"{source.name}: {path.absolute()} is not there")
        except (OSError, ValueError) as error:
            trouble.append(f"{source.name}: {error}")
    if any(hosts.collect("data trouble", bool(trouble))):
        raise ValueError("; ".join(trouble) or "another host cannot read its data")
    require_same("the files of the data", found)
    return f"{len(sources)} sources, {len(found)} of them files that all hosts read alike"


def _weights(name: str) -> str:
    if not _is_here(name):
        download.check_access(name)
        return "the hub gives them"
    weights = open_model(name).base
    return f"{weights.config.n_params / 1e9:.2f}B parameters, stored in {weights.stored_dtype}"


def _config(recipe: Recipe) -> ModelConfig:
    return open_model(recipe.weights).config if _is_here(recipe.weights) else config_of(recipe.weights)


def _is_here(weights: str) -> bool:
    """Whether the weights can be opened without fetching them."""
    return pathlib.Path(weights).exists() or not is_hub_id(weights) or download.is_cached(weights)


def _disk(recipe: Recipe) -> str:
    needed, place = needed_bytes(recipe), pathlib.Path(recipe.run_dir).absolute()
    free = shutil.disk_usage(_existing(place)).free
    said = f"{needed / 1e9:.1f} GB for checkpoints, adapters and merged bases, {free / 1e9:.1f} GB free"
    if needed > free:
        raise ValueError(f"{said} at {place}: name a run_dir with more room")
    return said


def needed_bytes(recipe: Recipe) -> float:
    """Returns what the phases to run write: every stage's checkpoints with optimizer state (one more while it is written),
    every phase's adapters, and merged bases."""
    config = _config(recipe)
    base = sharded_bytes(abstract_params(config, Trees(), recipe.param_dtype).base)
    needed = float(sum(base for phase in recipe.in_force if phase.merge))
    for planned in planned_stages(recipe, config):
        step = next(run.program for run in planned.runs if run.program.kind == STEP)
        params, stage = abstract_params(config, step.trees, step.param_dtype), _stage(recipe, planned.name)
        trained = sum(sharded_bytes(getattr(params, name)) for name in step.trained)
        kept = stage.keep_last + (1 if stage.validate_every else 0) + 1
        needed += trained * (1 + _MOMENTS) * kept + sharded_bytes((params.lora, params.lang, params.expand))
    return needed


def _stage(recipe: Recipe, name: str) -> Stage:
    phase, which = name.split("/")
    return getattr(next(p for p in recipe.phases if p.name == phase), which)


def _batches(stages: dict[str, Callable[[], str | None]]) -> str:
    for check in stages.values():
        check()
    return f"the data of {len(stages)} stages fit their batches"


def _existing(path: pathlib.Path) -> pathlib.Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _memory(recipe: Recipe, mesh: Mesh) -> str:
    """Returns the largest program of any stage, by arithmetic, against what a device says it has."""
    config = _config(recipe)
    limit, said_by = _device_memory()
    chip = Chip(jax.devices()[0].device_kind, limit, 1.0, 1.0, 1.0)
    topology = Topology("here", chip, (mesh.size,))
    largest, worst = 0.0, ""
    with jax.set_mesh(mesh):
        seen: dict[Program, float] = {}
        for planned in planned_stages(recipe, config):
            for run in planned.runs:
                if run.program not in seen:
                    seen[run.program] = estimate(run.program, config, mesh, topology).memory["total"]
                if seen[run.program] > largest:
                    largest, worst = seen[run.program], f"{planned.name}, {run.program.kind}"
    said = f"largest: {worst}, about {largest / 2**30:.1f} GiB a device by arithmetic; {limit / 2**30:.1f} GiB {said_by}"
    if largest > limit:
        raise ValueError(f"{said}. Take a smaller batch, more microbatches or remat; `medkor plan` finds which")
    return said


def _device_memory() -> tuple[float, str]:
    stats = jax.local_devices()[0].memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return float(limit), "on it"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count(), "its share of this host's memory"
