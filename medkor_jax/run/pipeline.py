"""The phases in order: each starts from a phase that opened, adapts, trains, is judged, writes its verdict.

    Run(recipe).all()

One phase, as a batch of decisions: open the upstream model (refused unless its verdict passed and still
matches) -> choose among candidates -> add trees -> measure -> train -> merge -> judge -> remedy while the
gate stays closed -> save -> verdict. Every step of it is on disk before the next begins, so the same
command goes on where a killed run stood, and does nothing twice.

Which phases there are, and what they train on, is data (`phases.Recipe`).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from medkor_jax.data.contents import checksum
from medkor_jax.data.reading import add_readings
from medkor_jax.eval.judgement import Evidence, Judgement, judge, judge_all
from medkor_jax.eval.report import Report
from medkor_jax.eval.verdict import GateClosed, read_verdict, waive, write_verdict
from medkor_jax.io.bases import open_base
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.files import write_json
from medkor_jax.io.loaded_model import LoadedModel, load
from medkor_jax.io.models import Model, read_ledger, save_model
from medkor_jax.model.dtypes import slow_here
from medkor_jax.model.params import Params, Tree
from medkor_jax.nearest import nearest
from medkor_jax.parallel import hosts
from medkor_jax.parallel.agreement import require_same, require_shared
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import make_mesh, shard_tree
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.final import sit_final
from medkor_jax.run.gate_outlook import reference_account
from medkor_jax.run.lineage import Finished, Lineage, Stale
from medkor_jax.run.measurement import Measured, Measurer
from medkor_jax.run.phases import ConfigError, Phase, Recipe
from medkor_jax.run.readiness import checks
from medkor_jax.run.stage_plans import stage_plan
from medkor_jax.run.summary import closing_table
from medkor_jax.run.trees import add_trees, merge_lora
from medkor_jax.train.loop import run_stage
from medkor_jax.train.stage import Stage


class Run:
    """One run directory: `all()` for every phase named, `phase(p)` for one."""

    def __init__(self, recipe: Recipe, *, accept_changed: bool = False) -> None:
        """accept_changed: see `lineage.Lineage`."""
        self.recipe = recipe
        self.directory = pathlib.Path(recipe.run_dir)
        self.mesh = make_mesh(recipe.mesh)
        self.corpora = Corpora(recipe.drop_bad, recipe.reasoning)
        self.lineage = Lineage(recipe, self.corpora, self.directory, accept_changed=accept_changed)
        self.measurer = Measurer(recipe, self.corpora, self.directory, self.mesh)
        self._bases: dict[str, Tree] = {}

    def all(self) -> None:
        """Runs the phases the recipe names, in order.

        Raises: GateClosed when a gate stays closed or a phase is stale; ConfigError, BadDataError, WeightsError before
        any training when something does not fit.
        """
        recipe = self.recipe
        require_same("the config", checksum(repr(dataclasses.replace(recipe, run_dir=""))))
        require_shared(self.directory)
        for check in checks(recipe, self.corpora, self.mesh).values():
            if words := check():
                say(words)
        require_same("the data", {phase.name: checksum(dataclasses.asdict(self.lineage.facts(phase))) for phase in recipe.in_force})
        say(f"run {self.directory}: {', '.join(phase.name for phase in recipe.in_force)} on {_devices()}")
        if words := slow_here(recipe.dtype, "--config.dtype=float32"):
            say(words)
        with jax.set_mesh(self.mesh):
            for phase in recipe.in_force:
                self.phase(phase)
            sit_final(self.measurer, self.lineage, self._load)
        say(closing_table(self.directory, [phase.name for phase in recipe.phases]))

    def phase(self, phase: Phase) -> None:
        hosts.at(phase.name)
        upstream = self.lineage.upstream(phase)
        finished = self.lineage.finished(phase)
        if finished and not finished.judged_otherwise:
            self.lineage.open(phase.name)
            say(f"\n{phase.name}: done before; {read_verdict(self._verdict(phase))['judgement']['words']}")
            return
        say(f"\n== {phase.name}: {phase.title}")
        if finished:
            say(f"{phase.name} was trained before and is judged anew: other {', '.join(finished.judged_otherwise)}")
        started = time.time()
        self._note(phase, "judged anew" if finished else "started", upstream=[model.digest for model in upstream])

        start, measured, looks = self._choose(phase, upstream)
        before = self.measurer.measure(phase, start, "before", measured)
        if finished:
            self._require_same_start(phase, finished, start)
            loaded, rounds = self._load(finished.model), finished.record["rounds"]
        else:
            loaded, rounds = add_trees(start, phase, phase.lora, seed=self.recipe.seed), 0
            loaded = self._train(phase, start, loaded, phase.train, "train")
            if phase.merge:
                loaded = self._merge(phase, loaded)
                start = dataclasses.replace(start, params=start.params.replace(base=loaded.params.base))  # one base in memory
        at_start, reference = before.evidence, self._reference(phase, before)
        after = self.measurer.measure(phase, loaded, "after") if finished or phase.changes_model else before
        judged_first = after
        what = "judged anew" if finished else "after training" if phase.changes_model else "as it stands"
        judgement = self._judge(phase, after, at_start, reference, what, looks)
        while not judgement.passed and phase.gate.has_remedy and rounds < phase.gate.rounds:
            rounds += 1
            loaded = add_trees(loaded, phase, phase.remedy_lora, seed=self.recipe.seed)
            loaded = self._train(phase, start, loaded, phase.remedy, f"remedy{rounds}")
            after = self.measurer.measure(phase, loaded, f"after-remedy{rounds}")
            judgement = self._judge(phase, after, at_start, reference, f"after remedy round {rounds}", looks)
        self._conclude(phase, upstream, start, finished, loaded, looks, reference, before, judged_first, after, rounds, time.time() - started)

    def _judge(self, phase: Phase, found: Measured, start: Evidence, reference: Evidence, what: str, looks: list) -> Judgement:
        """Returns the judgement, says it, and adds it to the looks of this phase."""
        judgement = judge_all(phase.gate, phase.exam, found.evidence, start, reference, looks=phase.looks)
        looks.append((what, judgement))
        say(f"{phase.name}, {what}: {judgement.words}")
        return judgement

    def _require_same_start(self, phase: Phase, finished: Finished, start: LoadedModel) -> None:
        if finished.record["chosen"] != start.digest:
            raise Stale(
                f"{phase.name} was made from another of its candidates than the one that is chosen now (its exam is another). "
                f"Run it anew with --restart {phase.name}"
            )

    def _verdict(self, phase: Phase) -> pathlib.Path:
        return self.directory / phase.name / "verdict.json"

    def _choose(self, phase: Phase, upstream: list[Model]) -> tuple[LoadedModel, dict[str, Report], list[tuple[str, Judgement]]]:
        """Returns the smallest candidate that opens the gate, else the best, with its report and all looks; says why in words."""
        looks: list[tuple[str, Judgement]] = []
        if len(upstream) == 1:
            return self._load(upstream[0]), {}, looks
        scored: list[tuple[float, Model, Report]] = []
        for model in sorted(upstream, key=lambda m: m.config.n_params):
            loaded = self._load(model)
            report = self.measurer.examine(loaded, phase.exam)
            judgement = judge(phase.gate, report, looks=phase.looks)
            looks.append((f"candidate {model.name}", judgement))
            scored.append((judgement.score, model, report))
            say(f"{phase.name}: candidate {model.name} ({model.config.n_params / 1e9:.2f}B): {judgement.words}")
            if judgement.passed:
                say(f"{phase.name}: {model.name} is taken, the smallest that passes")
                return loaded, {phase.exam: report}, looks
            self._bases.clear()
        _, model, report = max(scored, key=lambda item: item[0])
        say(f"{phase.name}: no candidate passes; {model.name} is taken, the best of {len(scored)}")
        return self._load(model), {phase.exam: report}, looks

    def _load(self, model: Model) -> LoadedModel:
        """Returns the model on the mesh. Only one base is held: phases that share it share its arrays."""
        digest = model.base.digest
        if digest not in self._bases:
            self._bases.clear()
        loaded = load(model, self.recipe.param_dtype, self.mesh, language_unit=self.recipe.language_unit, base=self._bases.get(digest))
        self._bases[digest] = loaded.params.base
        return loaded

    def _train(self, phase: Phase, start: LoadedModel, loaded: LoadedModel, stage: Stage, name: str) -> LoadedModel:
        """Returns the model after a stage. start: as the phase began, which retention holds to without a reference."""
        if not stage.steps:
            return loaded
        plan = stage_plan(self.recipe, self.corpora, phase, stage, name, upstream=loaded.digest)
        reference = self._reference_params(phase, start, loaded) if stage.retention.is_on else None
        loaded = run_stage(plan, loaded, reference, self.mesh)
        return dataclasses.replace(loaded, read=add_readings(loaded.read, stage.data, by=plan.name))

    def _reference_params(self, phase: Phase, start: LoadedModel, loaded: LoadedModel) -> Params:
        """Returns the model retention holds to, which is the one the gate compares with: that of the phase marked as
        reference, else the phase's own start; with the base in hand."""
        reference = self.recipe.reference_of(phase)
        if reference is None:
            return start.params.replace(base=loaded.params.base)
        model = self.lineage.open(reference.name)
        if model.base.digest != loaded.base.digest:
            raise ConfigError(f"{phase.name} stands on another base than its reference {reference.name}; retention needs the same one")
        return model.load(jnp.dtype(self.recipe.param_dtype), self.mesh, loaded.params.base)

    def _reference(self, phase: Phase, before: Measured) -> Evidence:
        """Returns what was measured of the model that the gate compares with: the reference at its end, else this phase's start."""
        reference = self.recipe.reference_of(phase)
        if reference is None:
            return before.evidence
        self.lineage.open(reference.name)
        own = self.directory / reference.name
        stored = json.loads((own / "summary.json").read_text(encoding="utf-8"))["after"]
        reports = {exam: Report.read(own / stored["answers"][exam]) for exam in stored["exams"]}
        return Evidence(reports, {text: loss["nats"] for text, loss in stored["watch"].items()})

    def _merge(self, phase: Phase, loaded: LoadedModel) -> LoadedModel:
        """Returns the model on its merged base. A base is named by what it is made of and never written over: later
        phases stand on it, and the same merge again finds it."""
        recipe, params = self.recipe, loaded.params
        hosts.at(f"{phase.name}, merging")
        made_of = checksum([loaded.base.digest, digest_tree(params.lora), params.lora_scale, recipe.param_dtype])
        directory = self.directory / "bases" / f"{phase.name}-{made_of[:12]}"
        if hosts.first(f"is {directory.name} merged", (directory / "lineage.json").is_file):
            base = open_base(directory)
            merged = base.load(jnp.dtype(recipe.param_dtype), shard_tree(params.base, self.mesh))
            say(f"{phase.name}: merged before, {directory}")
            loaded = dataclasses.replace(loaded, params=params.replace(base=merged, lora={}, lora_scale=1.0), base=base)
        else:
            loaded = merge_lora(loaded, phase.name, directory, param_dtype=recipe.param_dtype)
        self._bases = {loaded.base.digest: loaded.params.base}
        return loaded

    def _conclude(
        self, phase, upstream, start, finished, loaded, looks, reference: Evidence, before, judged_first, after, rounds, seconds
    ) -> None:
        directory, judgement = self.directory / phase.name, looks[-1][1]
        hosts.at(f"{phase.name}, concluding")
        model = save_model(directory, loaded.params, loaded.base, loaded.language_unit, loaded.read)
        write_json(directory / "summary.json", {
            "phase": phase.name, "title": phase.title, "model": model.digest, "rounds": rounds, "seconds": round(seconds, 1),
            "upstream": [m.digest for m in upstream], "gate": dataclasses.asdict(phase.gate),
            "sources": self._sources(phase, rounds), "before": before.summary(), "before_remedy": judged_first.summary(), "after": after.summary(),
        })  # fmt: skip
        digests = self.lineage.write_record(
            phase, upstream=upstream, chosen=start.digest, model=model.digest, rounds=rounds, resumed=finished
        )
        write_verdict(
            directory / "verdict.json", phase=phase.name, gate=phase.gate, looks=looks,
            report=after.reports[phase.exam], reference=reference.reports.get(phase.exam),
            reference_account=reference_account(self.recipe, phase), digests=digests,
            replaced=read_verdict(self._verdict(phase)) if finished else None,
        )  # fmt: skip
        if not judgement.passed and phase.gate.on_failure == "continue":
            waive(directory / "verdict.json", "the config says gate.on_failure='continue'")
        self._note(phase, "finished", passed=judgement.passed, words=judgement.words, model=model.digest)
        if not judgement.passed and phase.gate.on_failure != "continue":
            raise GateClosed(f"{phase.name}: {judgement.words} No later phase may start; train further, or waive {directory}/verdict.json with a reason (medkor waive)")

    def _sources(self, phase: Phase, rounds: int) -> list[dict[str, str]]:
        """What the phase read, with its licence as configured: a model card has to say so."""
        trained = (*phase.train.data, *(phase.remedy.data if rounds else ()))
        judged = tuple(exam.source for exam in self.recipe.exams_of(phase))
        uses = {"trained on": trained if phase.train.steps or rounds else (), "judged by": judged}
        return [
            {"use": use, **{name: getattr(source, name) for name in ("name", "kind", "path", "split", "licence")}}
            for use, sources in uses.items() for source in sources
        ]  # fmt: skip

    def _note(self, phase: Phase, event: str, **what: Any) -> None:
        entry = {"phase": phase.name, "event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **what}
        write_json(self.directory / "ledger.json", [*read_ledger(self.directory), entry])


def restart(recipe: Recipe, names: Sequence[str]) -> list[pathlib.Path]:
    """Moves the phases' directories aside, so that they run anew; returns where they are now. Nothing is deleted, and the
    merged bases stay: whatever stands on them goes on to.

    Raises: ConfigError, before anything is moved, for a name that is no phase of the config.
    """
    known = [phase.name for phase in recipe.phases]
    for name in names:
        if name not in known:
            near = nearest(name, known) or "none"
            raise ConfigError(f"--restart {name}: no such phase in this config; nearest: {near!r}. It has {', '.join(known)}")
    moved = []
    for directory in (pathlib.Path(recipe.run_dir) / name for name in names):
        if aside := hosts.first(f"restart {directory.name}", lambda directory=directory: _move_aside(directory)):
            moved.append(pathlib.Path(aside))
    return moved


def _move_aside(directory: pathlib.Path) -> str:
    """Returns where the directory is now; "" if there was none."""
    if not directory.exists():
        return ""
    number = 1
    while (aside := directory.with_name(f"{directory.name}.before-{number}")).exists():
        number += 1
    shutil.move(directory, aside)
    return str(aside)


def _devices() -> str:
    devices = jax.devices()
    return f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}"
