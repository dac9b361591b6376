"""`medkor preflight`: what would fail an hour later, found now, on all hosts together.

    report = preflight(load_recipe("configs/pipeline.py"))      # every process calls it
    print(report.table()); report.is_clear

Nothing is trained, downloaded or kept: a file of a few bytes is written to the run directory and removed. What it cannot
know: whether a host or the network will fail, and what the gates will say.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medkor_jax.commands.arguments import CONFIG
from medkor_jax.commands.capacity import device_room, disk_room, model_config
from medkor_jax.data import rows
from medkor_jax.data.contents import file_digest, files_digest
from medkor_jax.data.rows import EMBEDDED
from medkor_jax.io import download
from medkor_jax.io.sizes import known_config
from medkor_jax.parallel import hosts
from medkor_jax.parallel.agreement import require_same, require_shared
from medkor_jax.parallel.mesh import AXES, check_batch, make_mesh
from medkor_jax.run.at_hand import is_at_hand
from medkor_jax.run.choosing import only_if
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import Corpora, uses_of
from medkor_jax.run.data_lock import with_lock
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import Recipe
from medkor_jax.run.readiness import GATES, checks
from medkor_jax.run.translated import find_translations, translators_of

_PACKAGES = (
    "medkor-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "datasets",
    "numpy",
)
_REDUCED_BYTES = 2**24  # of each device's part in the all-reduce that is timed
_SAID = "hold; `medkor data check` says what they can tell"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help=CONFIG)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    report = preflight(with_lock(load_recipe(arguments.config, overrides)))
    hosts.say(report.table())
    return 0 if report.is_clear else 1


@dataclasses.dataclass(frozen=True)
class Finding:
    """what was looked at, what was found, and what is wrong with it ("": nothing). is_open: some of it could not be looked at."""

    what: str
    found: str
    trouble: str = ""
    is_open: bool = False

    @property
    def state(self) -> str:
        return "FAILS" if self.trouble else "?" if self.is_open else "ok"


@dataclasses.dataclass(frozen=True)
class Preflight:
    findings: tuple[Finding, ...]

    @property
    def is_clear(self) -> bool:
        return not any(finding.trouble for finding in self.findings)

    def table(self) -> str:
        width = max(len(finding.what) for finding in self.findings)
        lines = [f"{f.what:<{width}}  {f.state:<5}  {f.trouble or f.found}" for f in self.findings]
        wrong = sum(bool(finding.trouble) for finding in self.findings)
        said = (
            "nothing found that would stop this run"
            if not wrong
            else f"{wrong} of {len(self.findings)} checks fail: this run would not get through"
        )
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
    for name in dict.fromkeys([*recipe.outside_weights, *translators_of(recipe)]):
        yield _found(f"weights {name}", functools.partial(_weights, name))
    for name, when in only_if(recipe).items():
        yield Finding(f"weights {name}", _later(name, when))
    is_here = all(hosts.collect("weights are here", is_at_hand(recipe.weights)))
    model = _found("model", lambda: str(model_config(recipe).n_params))
    if not model.trouble:
        yield _found("disk", lambda: disk_room(recipe))
        yield _found("memory", lambda: device_room(recipe, made))
    else:
        yield (
            model
            if is_here
            else Finding(
                "disk, memory",
                f"not looked at: the sizes of {recipe.weights} are not known before it is fetched",
                is_open=True,
            )
        )
    if not is_here:
        yield Finding(
            "batches",
            f"not looked at: {recipe.weights} is still on the hub, and its tokenizer with it; once fetched, this says more",
            is_open=True,
        )
    elif not model.trouble:
        corpora = Corpora(recipe.drop_bad, recipe.reasoning, say=False)
        find_translations(recipe, corpora)
        asked = checks(recipe, corpora, made)
        for name in [name for name in asked if "/" not in name]:
            yield _found(name, functools.partial(_holds, name, asked[name]))
        yield _found(
            "batches",
            lambda: _batches({name: check for name, check in asked.items() if "/" in name}),
        )


def _holds(name: str, check: Callable[[], Any]) -> str:
    words = check() or "holds"
    return _SAID if name == GATES else " ".join(words.split())


def _found(what: str, look: Callable[[], str]) -> Finding:
    """Returns what `look` says; what it raises on any host is trouble on all."""
    found = trouble = ""
    try:
        found = look()
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        trouble = str(error) or type(error).__name__
    troubles = hosts.collect(f"preflight {what}", trouble)
    said = [
        trouble if len(troubles) == 1 else f"process {i}: {trouble}"
        for i, trouble in enumerate(troubles)
        if trouble
    ]
    return Finding(what, found, "; ".join(dict.fromkeys(said)))


def _versions() -> str:
    mine = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            mine[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            mine[name] = "not installed as a package"
    source = pathlib.Path(__file__).parents[1]  # the whole package
    mine["code"] = files_digest(source.rglob("*.py"), source)[:12]
    require_same("versions", mine)
    return ", ".join(
        f"{name} {version}" for name, version in mine.items() if name in ("python", "jax", "code")
    )


def _devices(recipe: Recipe) -> str:
    counts = hosts.collect("devices", [jax.local_device_count(), jax.devices()[0].device_kind])
    mesh = make_mesh(recipe.mesh)
    for phase in recipe.in_force:
        for stage in (phase.train, phase.remedy):
            if stage.steps:
                check_batch(stage.batch_size, stage.microbatches, mesh)
    if len({kind for _, kind in counts}) > 1 or len({n for n, _ in counts}) > 1:
        raise ValueError(
            f"hosts have different devices: {', '.join(f'process {i}: {n} {kind}' for i, (n, kind) in enumerate(counts))}"
        )
    axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES)
    return f"{len(counts)} process{'es' if len(counts) > 1 else ''} of {counts[0][0]} {counts[0][1]}: {axes}; every batch divides"


def _all_reduce(mesh: Mesh) -> str:
    """Sums over all devices what each of them holds, and compares; times it."""
    n, width = mesh.size, _REDUCED_BYTES // 4
    rows = NamedSharding(mesh, PartitionSpec(AXES))
    held = jax.make_array_from_callback(
        (n, width), rows, lambda index: np.full((1, width), 1.0 + (index[0].start or 0), np.float32)
    )
    reduce = jax.jit(
        lambda x: jnp.sum(x, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    found = np.asarray(reduce(held).addressable_data(0))
    if not (found == n * (n + 1) / 2).all():
        raise ValueError(
            f"the sum over {n} devices is {found.min():g} to {found.max():g}, expected {n * (n + 1) / 2:g}: their connection is not to be trusted"
        )
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        reduce(held).block_until_ready()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    moved = 2 * (n - 1) / n * _REDUCED_BYTES  # by each device, of a ring
    return f"{n} devices sum right; {_REDUCED_BYTES / 1e6:.0f} MB in {median * 1e3:.1f} ms" + (
        f", {moved / median / 1e9:.2f} GB/s a device" if n > 1 else ""
    )


def _run_directory(recipe: Recipe) -> str:
    directory = pathlib.Path(recipe.run_dir)
    require_shared(directory)
    if hosts.is_first():
        directory.mkdir(parents=True, exist_ok=True)
        mark = directory / ".preflight"
        mark.write_text("", encoding="ascii")
        mark.unlink()
    return (
        f"{directory.absolute()} is written by all"
        if hosts.n_processes() > 1
        else f"{directory.absolute()} can be written"
    )


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
    if not is_at_hand(name):
        download.check_access(name)
        return "the hub gives them"
    weights = open_model(name).base
    return f"{weights.config.n_params / 1e9:.2f}B parameters, stored in {weights.stored_dtype}"


def _later(name: str, when: str) -> str:
    """Returns what is known of weights that may never be opened; what stands in the way is said, and stops nothing yet."""
    try:
        if not is_at_hand(name):
            download.check_access(name)
            found = "the hub gives them"
        else:
            config = known_config(name)
            found = f"{config.n_params / 1e9:.2f}B parameters" if config else "not looked into"
            if not config and not pathlib.Path(name).exists():
                found = "NOT THERE"
    except (ValueError, OSError, ModuleNotFoundError) as error:
        found = f"NOT TO BE HAD NOW: {error}"
    return f"only if {when}: {found}"


def _batches(stages: dict[str, Callable[[], str | None]]) -> str:
    for check in stages.values():
        check()
    return f"the data of {len(stages)} stages fit their batches"
