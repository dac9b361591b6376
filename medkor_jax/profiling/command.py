"""`medkor profile`: real steps of one stage under the profiler, and a table of where their time goes.

    print(profile_config("configs/quickstart.py", [], steps=5, out="profile").table())

Data, weights and shapes are the config's; trees that earlier phases would have trained are fresh, so nothing has to be run
before. The run directory is neither read nor written: what a stage wants to write goes to a temporary one. Compiling and the
first two steps come before the trace. One process; it judges nothing and saves nothing but the trace.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from medkor_jax.io.loaded_model import LoadedModel, load
from medkor_jax.parallel.mesh import check_batch, make_mesh, place_batch, shard_tree
from medkor_jax.profiling.timeline import BATCH_MARK, KINDS, Spent, read_spent
from medkor_jax.run.asked_form import asked_form
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.named_model import open_model
from medkor_jax.run.new_tokens import with_new_tokens
from medkor_jax.run.phases import ConfigError, Phase, Recipe
from medkor_jax.run.stage_plans import stage_plan
from medkor_jax.run.trees import add_trees
from medkor_jax.train.drawing import drawing, make_batches
from medkor_jax.train.stage import Stage
from medkor_jax.train.stage_plan import StagePlan
from medkor_jax.train.step import make_state, make_step
from medkor_jax.train.trainable import make_optimizer, split

WARM_STEPS = 2  # the first compiles, and the second finds everything in place


@dataclasses.dataclass(frozen=True)
class Profile:
    """seconds: of the traced steps together, by the clock; tokens: that are no padding, a step; first_seconds: of the first step,
    with what it compiled."""

    stage: str
    shape: str
    device: str
    steps: int
    seconds: float
    tokens: float
    first_seconds: float
    spent: Spent
    trace: pathlib.Path

    def table(self) -> str:
        a_step = lambda seconds: 1e3 * seconds / self.steps
        waiting = max(0.0, self.seconds - self.spent.total)
        rows = [(kind, self.spent.seconds[kind]) for kind in KINDS if self.spent.seconds.get(kind)]
        rows = [
            *sorted(rows, key=lambda row: -row[1]),
            ("launching and waiting, device idle", waiting),
        ]
        lines = [
            f"{self.stage} on {self.device}: {self.steps} steps of {self.shape}, {a_step(self.seconds):,.1f} ms a step by the clock, "
            f"{self.tokens * self.steps / self.seconds:,.0f} tokens/s. Apart: the first step with its compilations, {self.first_seconds:.1f} s",
            "",
            f"{'where the time goes':<36}{'ms a step':>12}{'share':>8}",
            *(
                f"{name:<36}{a_step(seconds):>12,.2f}{seconds / self.seconds:>8.1%}"
                for name, seconds in rows
            ),
            f"{'all of it':<36}{a_step(sum(seconds for _, seconds in rows)):>12,.2f}{sum(seconds for _, seconds in rows) / self.seconds:>8.1%}",
            "",
        ]
        if self.spent.remade:
            lines.append(
                f"made again in the backward pass (remat), whatever its kind: {self.spent.remade / self.seconds:.1%}"
            )
        if len(programs := sorted(self.spent.programs.items(), key=lambda item: -item[1])) > 1:
            lines.append(
                "by program: "
                + ", ".join(
                    f"{name} {seconds / self.seconds:.1%}" for name, seconds in programs[:6]
                )
            )
        return "\n".join(
            [
                *lines,
                f"the trace: {self.trace.parent} (pip install xprof; xprof --logdir {self.trace.parents[3]})",
            ]
        )


def profile_config(
    path: str, overrides: Sequence[str], *, phase: str = "", steps: int = 5, out: str = "profile"
) -> Profile:
    """Returns where the time of `steps` steps of a phase's stage goes, and leaves their trace below `out`.

    phase: "" is the first of those to run that trains. A phase whose own stage has no steps shows its remedy.

    Raises: ConfigError if no such phase trains; RuntimeError if a profiler is in this process that would end it.
    """
    keep_out_foreign_profilers()
    recipe = load_recipe(path, overrides)
    chosen, stage, name = choose_stage(recipe, phase)
    corpora, mesh = Corpora(recipe.drop_bad, recipe.reasoning), make_mesh(recipe.mesh)
    check_batch(stage.batch_size, stage.microbatches, mesh)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as scratch:
        plan = stage_plan(recipe, corpora, chosen, stage, name)
        plan = dataclasses.replace(plan, directory=pathlib.Path(scratch))
        loaded = loaded_at(recipe, chosen, name, mesh)
        return _profile(plan, loaded, mesh, steps, pathlib.Path(out))


def choose_stage(recipe: Recipe, phase: str) -> tuple[Phase, Stage, str]:
    """Returns the phase asked for ("": the first that trains), its stage and what that is called.

    Raises: ConfigError, with the phases that train, if it is none of them.
    """
    found = {}
    for one in recipe.phases if phase else recipe.in_force:
        stages = [
            (stage, name)
            for stage, name in ((one.train, "train"), (one.remedy, "remedy"))
            if stage.steps
        ]
        if stages:
            found[one.name] = (one, *stages[0])
    if (phase and phase not in found) or not found:
        raise ConfigError(
            f"phase {phase or 'to run'!r} trains nothing; those that train: {', '.join(found) or 'none'}"
        )
    return found[phase] if phase else next(iter(found.values()))


def loaded_at(recipe: Recipe, phase: Phase, stage: str, mesh: jax.sharding.Mesh) -> LoadedModel:
    """Returns the model as the stage finds it, in kind and shape: the weights that the chain of phases begins with, and fresh
    trees where those phases would have trained theirs."""
    chain, phases = [phase], {one.name: one for one in recipe.phases}
    while (before := recipe.upstream_of(chain[0])[0]) in phases:
        chain.insert(0, phases[before])
    model = open_model(before)
    loaded = load(
        model,
        recipe.param_dtype,
        mesh,
        language_unit=recipe.language_unit,
        style=asked_form(recipe).style.name,
    )
    corpora = Corpora(recipe.drop_bad, recipe.reasoning, say=False)
    for one in chain:
        loaded = with_new_tokens(loaded, one, corpora, None)
        loaded = add_trees(loaded, one, one.lora, seed=recipe.seed)
        is_last = one is phase
        if one.merge and not (is_last and stage == "train"):
            loaded = dataclasses.replace(
                loaded, params=loaded.params.replace(lora={}, lora_scale=1.0)
            )
        if is_last and stage == "remedy":
            loaded = add_trees(loaded, one, one.remedy_lora, seed=recipe.seed)
    return loaded


def _profile(
    plan: StagePlan, loaded: LoadedModel, mesh: jax.sharding.Mesh, steps: int, out: pathlib.Path
) -> Profile:
    params, stage = loaded.params, plan.stage
    trained, frozen = split(params, stage.trees)
    optimizer = make_optimizer(stage.rules_in_force, stage.schedule, trained)
    state = jax.jit(lambda t: make_state(optimizer, jax.tree.map(jnp.copy, t)))(trained)
    shardings = shard_tree(state, mesh)
    state, step = (
        jax.device_put(state, shardings),
        make_step(loaded.config, plan.spec, optimizer, shardings),
    )
    reference = params if stage.retention.is_on else None
    batches = make_batches(plan, loaded.style, loaded.language_unit)
    draw = drawing(plan, batches, loaded, frozen, mesh)
    tokens = []

    def run(n: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(n):
            # what samples answers is device work, and is found as such; what makes rows of documents is the host's
            with jax.profiler.TraceAnnotation(BATCH_MARK):
                batch, _ = draw(state)
                tokens.append(int((batch["segment_ids"] > 0).sum()))
                placed = place_batch(batch, mesh)
            state, metrics = step(state, frozen, reference, placed)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - began

    first = run(1)
    run(WARM_STEPS - 1)
    tokens.clear()
    before = set(out.rglob("*.xplane.pb"))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of Python would be an event
    with jax.profiler.trace(str(out), profiler_options=options):
        seconds = run(steps)
    (trace,) = set(out.rglob("*.xplane.pb")) - before
    device = jax.devices()[0]
    return Profile(
        plan.name,
        f"{stage.batch_size} x {stage.seq_len} tokens",
        f"{mesh.size} x {device.device_kind} ({device.platform})",
        steps,
        seconds,
        sum(tokens) / steps,
        first,
        read_spent(trace),
        trace,
    )


def keep_out_foreign_profilers() -> None:
    """Keeps jax from loading a libtpu whose profiler is not of its version: one that is loaded ends the process by a
    segmentation fault as soon as a trace begins. `medkor plan` wants a newer libtpu than jax pins.

    Call before jax looks for devices. Raises: RuntimeError, with what to do, if that is too late or it is needed.
    """
    if not (found := foreign_libtpu()):
        return
    advice = f"libtpu {found[0]} is installed and this jax traces with {found[1]}: "
    if _is_loaded("libtpu"):
        raise RuntimeError(
            advice
            + "it is loaded already, and a trace would end the process. Start again with JAX_PLATFORMS=cpu (or cuda,cpu)"
        )
    config: Any = jax.config  # which names it has, only some versions of jax tell a type checker
    if platforms := config.jax_platforms:
        if "tpu" in platforms:
            raise RuntimeError(
                advice + "on this TPU, install the one that jax pins: pip install 'jax[tpu]'"
            )
    elif _has_tpu():
        raise RuntimeError(advice + "install the one that jax pins: pip install 'jax[tpu]'")
    else:
        has_gpu = any(pathlib.Path("/dev").glob("nvidia[0-9]*")) and any(
            map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))
        )
        jax.config.update("jax_platforms", "cuda,cpu" if has_gpu else "cpu")


def foreign_libtpu() -> tuple[str, str] | None:
    """Returns (installed, pinned by jax), None if there is no libtpu or it is the one that this jax was built with."""
    try:
        installed = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return None
    wanted: list[Any] = [
        one for one in importlib.metadata.requires("jax") or () if one.startswith("libtpu")
    ]
    pinned = wanted[0].split(";")[0].partition("==")[2].strip().removesuffix(".*") if wanted else ""
    return None if not pinned or f"{installed}.".startswith(f"{pinned}.") else (installed, pinned)


def _is_loaded(library: str) -> bool:
    maps = pathlib.Path("/proc/self/maps")
    return maps.exists() and f"/{library}" in maps.read_text()


def _has_tpu() -> bool:
    return any(
        path.read_text().strip() == "0x1ae0"
        for path in pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    )
