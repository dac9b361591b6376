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
import hashlib
import json
import pathlib
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp

from medkor_jax.corpora import Corpora
from medkor_jax.eval.gate import Evidence, Judgement, judge, judge_all
from medkor_jax.eval.scores import Report
from medkor_jax.eval.verdict import GateClosed, read_verdict, require_open, waive, write_verdict
from medkor_jax.final import sit_final
from medkor_jax.gate_outlook import gate_outlook, reference_account
from medkor_jax.io.files import write_json
from medkor_jax.io.models import Model, open_model, read_ledger, save_model
from medkor_jax.measurement import Measured, Measurer
from medkor_jax.model.params import Params, Tree
from medkor_jax.parallel.mesh import check_batch, make_mesh
from medkor_jax.phases import ConfigError, Phase, Recipe, Stage
from medkor_jax.report.summary import closing_table
from medkor_jax.standing import Standing, add_trees, merge_lora
from medkor_jax.train.loop import StagePlan, make_batches, run_stage, seed_of
from medkor_jax.train.step import StepSpec
from medkor_jax.train.trainable import Schedule


class Run:
    """One run directory: `all()` for every phase named, `phase(p)` for one."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.directory = pathlib.Path(recipe.run_dir)
        self.mesh = make_mesh(recipe.mesh)
        self.corpora = Corpora(recipe.drop_bad, recipe.reasoning)
        self.measurer = Measurer(recipe, self.corpora, self.directory, self.mesh)
        self._bases: dict[str, Tree] = {}

    def all(self) -> None:
        """Runs the phases the recipe names, in order.

        Raises: GateClosed when a gate stays closed; ConfigError, BadDataError, WeightsError before any
        training when something does not fit.
        """
        recipe = self.recipe
        self.corpora.refuse_leaks(recipe)
        print(gate_outlook(recipe, self.corpora))
        for phase in recipe.in_force:
            self._check_upstream_is_known(phase)
        self.check_stages()
        print(f"run {self.directory}: {', '.join(phase.name for phase in recipe.in_force)} on {_devices()}")
        with jax.set_mesh(self.mesh):
            for phase in recipe.in_force:
                self.phase(phase)
            sit_final(self)
        print(closing_table(self.directory, [phase.name for phase in recipe.phases]))

    def phase(self, phase: Phase) -> None:
        directory = self.directory / phase.name
        upstream = self._upstream(phase)
        if self._is_done(phase, upstream):
            print(f"\n{phase.name}: done before; {read_verdict(directory / 'verdict.json')['judgement']['words']}")
            return
        print(f"\n== {phase.name}: {phase.title}")
        started = time.time()
        self._note(phase, "started", upstream=[model.digest for model in upstream])

        standing, measured, looks = self._choose(phase, upstream)
        before = self.measurer.measure(phase, standing, "before", measured)
        standing = add_trees(standing, phase, phase.lora, seed=self.recipe.seed)
        standing = self._train(phase, standing, phase.train, "train")
        if phase.merge:
            standing = self._merge(phase, standing)
        start, reference = before.evidence, self._reference(phase, before)
        after = self.measurer.measure(phase, standing, "after") if phase.changes_model else before
        judged_first, rounds = after, 0
        judgement = self._judge(phase, after, start, reference, "after training" if phase.changes_model else "as it stands", looks)
        while not judgement.passed and phase.gate.has_remedy and rounds < phase.gate.rounds:
            rounds += 1
            standing = add_trees(standing, phase, phase.remedy_lora, seed=self.recipe.seed)
            standing = self._train(phase, standing, phase.remedy, f"remedy{rounds}")
            after = self.measurer.measure(phase, standing, f"after-remedy{rounds}")
            judgement = self._judge(phase, after, start, reference, f"after remedy round {rounds}", looks)
        self._conclude(phase, standing, looks, reference, before, judged_first, after, rounds, time.time() - started)

    def _judge(self, phase: Phase, found: Measured, start: Evidence, reference: Evidence, what: str, looks: list) -> Judgement:
        """Returns the judgement, says it, and adds it to the looks of this phase."""
        judgement = judge_all(phase.gate, phase.exam, found.evidence, start, reference, looks=phase.looks)
        looks.append((what, judgement))
        print(f"{phase.name}, {what}: {judgement.words}")
        return judgement

    def _check_upstream_is_known(self, phase: Phase) -> None:
        names = [p.name for p in self.recipe.phases]
        for name in filter(None, (phase.after, *[c for c in phase.candidates if c.startswith("phase")])):
            if name not in names:
                raise ConfigError(f"{phase.name} starts from {name!r}, which is none of {', '.join(names)}")

    def check_stages(self) -> None:
        """Builds every stage's batches once, so that data that does not fit is found before any training."""
        tokenizer = open_model(self.recipe.weights).tokenizer
        for phase in self.recipe.in_force:
            for stage, name in ((phase.train, "train"), (phase.remedy, "remedy")):
                if stage.steps:
                    check_batch(stage.batch_size, stage.microbatches, self.mesh)
                    make_batches(self.plan(phase, stage, name), tokenizer)

    def _upstream(self, phase: Phase) -> list[Model]:
        """Returns the models the phase may start from. Raises: GateClosed if one of them is a phase that may not be."""
        names = phase.candidates or (phase.after or self.recipe.weights,)
        return [self._open_phase(name) if self._is_phase(name) else open_model(name) for name in names]

    def _is_phase(self, name: str) -> bool:
        return name in [phase.name for phase in self.recipe.phases]

    def _open_phase(self, name: str) -> Model:
        """Returns a finished phase's model, if its verdict opens the next phase and is about this very model."""
        verdict = self.directory / name / "verdict.json"
        read_verdict(verdict)
        model = open_model(self.directory / name)
        phase = next(phase for phase in self.recipe.phases if phase.name == name)
        require_open(verdict, {"weights": model.digest, "config": self._config_digest(phase), "data": self._data_digest(phase)})
        return model

    def _is_done(self, phase: Phase, upstream: list[Model]) -> bool:
        if not (self.directory / phase.name / "verdict.json").exists():
            return False
        try:
            self._open_phase(phase.name)
        except GateClosed:
            return False
        record = json.loads((self.directory / phase.name / "summary.json").read_text(encoding="utf-8"))
        return record["upstream"] == [model.digest for model in upstream]

    def _choose(self, phase: Phase, upstream: list[Model]) -> tuple[Standing, dict[str, Report], list[tuple[str, Judgement]]]:
        """Returns the smallest candidate that opens the gate, else the best, with its report and all looks; says why in words."""
        looks: list[tuple[str, Judgement]] = []
        if len(upstream) == 1:
            return self._load(upstream[0]), {}, looks
        scored: list[tuple[float, Model, Report]] = []
        for model in sorted(upstream, key=lambda m: m.config.n_params):
            standing = self._load(model)
            report = self.measurer.examine(standing, phase.exam)
            judgement = judge(phase.gate, report, looks=phase.looks)
            looks.append((f"candidate {model.name}", judgement))
            scored.append((judgement.score, model, report))
            print(f"{phase.name}: candidate {model.name} ({model.config.n_params / 1e9:.2f}B): {judgement.words}")
            if judgement.passed:
                print(f"{phase.name}: {model.name} is taken, the smallest that passes")
                return standing, {phase.exam: report}, looks
            self._bases.clear()
        _, model, report = max(scored, key=lambda item: item[0])
        print(f"{phase.name}: no candidate passes; {model.name} is taken, the best of {len(scored)}")
        return self._load(model), {phase.exam: report}, looks

    def _load(self, model: Model) -> Standing:
        """Returns the model on the mesh. Only one base is held: phases that share it share its arrays."""
        digest = model.base.digest
        if digest not in self._bases:
            self._bases.clear()
        params = model.load(jnp.dtype(self.recipe.param_dtype), self.mesh, self._bases.get(digest))
        self._bases[digest] = params.base
        return Standing(params, model.base, model.config, model.tokenizer)

    def _train(self, phase: Phase, standing: Standing, stage: Stage, name: str) -> Standing:
        if not stage.steps:
            return standing
        plan = self.plan(phase, stage, name, upstream=standing.digest)
        reference = self._reference_params(phase, standing) if stage.retention.weight > 0 else None
        params = run_stage(plan, standing.params, reference, standing.config, standing.tokenizer, self.mesh)
        return dataclasses.replace(standing, params=params)

    def plan(self, phase: Phase, stage: Stage, name: str, *, upstream: str = "") -> StagePlan:
        """Returns the stage with its data loaded and its numbers resolved."""
        recipe, rollout = self.recipe, stage.reward.rollout(self.recipe.reasoning)
        train = self.corpora.examples(stage.data) if rollout is None else [(s, self.corpora.questions(s)) for s in stage.data]
        return StagePlan(
            name=f"{phase.name}/{name}",
            directory=self.directory / phase.name / name,
            trees=stage.trees,
            spec=self._spec(stage, seed_of(recipe.seed, phase.name, name)),
            schedule=Schedule(stage.steps, stage.warmup_steps, stage.final_share, stage.clip_norm),
            groups=stage.groups_in_force(),
            train=train,
            validation=self.corpora.examples(stage.validation),
            batch_size=stage.batch_size,
            seq_len=stage.seq_len,
            loss_positions=stage.loss_positions,
            route=recipe.route,
            save_every=stage.save_every,
            keep_last=stage.keep_last,
            validate_every=stage.validate_every,
            take=stage.take,
            log_every=recipe.log_every,
            drop_bad=recipe.drop_bad,
            upstream=upstream,
            rollout=rollout,
        )

    def _spec(self, stage: Stage, seed: int) -> StepSpec:
        recipe, policy = self.recipe, stage.reward.policy()
        return StepSpec(
            dtype=recipe.dtype, next_token_weight=stage.next_token_weight if policy is None else 0.0, policy=policy,
            retention=stage.retention,
            microbatches=stage.microbatches, remat=recipe.remat, dropout=stage.dropout, chunk=recipe.chunk, seed=seed,
        )  # fmt: skip

    def _reference_params(self, phase: Phase, standing: Standing) -> Params:
        """Returns the model retention holds to: the base in hand with the reference's own small tree."""
        name = self._reference_name(phase)
        if name is None:
            return Params(standing.params.base)
        model = self._open_phase(name)
        if model.base.digest != standing.base.digest:
            raise ConfigError(f"{phase.name} stands on another base than its reference {name}; retention needs the same one")
        return model.load(jnp.dtype(self.recipe.param_dtype), self.mesh, standing.params.base)

    def _reference_name(self, phase: Phase) -> str | None:
        """The latest phase before this one that later gates compare with."""
        names = []
        for earlier in self.recipe.phases:
            if earlier.name == phase.name:
                break
            if earlier.is_reference:
                names.append(earlier.name)
        return names[-1] if names else None

    def _reference(self, phase: Phase, before: Measured) -> Evidence:
        """Returns what was measured of the model that the gate compares with: the reference at its end, else this phase's start."""
        name = self._reference_name(phase)
        if name is None:
            return before.evidence
        stored = json.loads((self.directory / name / "summary.json").read_text(encoding="utf-8"))["after"]
        reports = {exam: Report.read(self.directory / name / stored["answers"][exam]) for exam in stored["exams"]}
        return Evidence(reports, {text: loss["nats"] for text, loss in stored["watch"].items()})

    def _merge(self, phase: Phase, standing: Standing) -> Standing:
        recipe, directory = self.recipe, self.directory / phase.name / "base"
        standing = merge_lora(standing, phase.name, directory, dtype=recipe.dtype, param_dtype=recipe.param_dtype)
        self._bases = {standing.base.digest: standing.params.base}
        return standing

    def _conclude(self, phase, standing, looks, reference: Evidence, before, judged_first, after, rounds, seconds) -> None:
        directory, judgement = self.directory / phase.name, looks[-1][1]
        model = save_model(directory, standing.params, standing.base, self.recipe.route)
        if jax.process_index() == 0:
            write_json(directory / "summary.json", {
                "phase": phase.name, "title": phase.title, "model": model.digest, "rounds": rounds, "seconds": round(seconds, 1),
                "upstream": [m.digest for m in self._upstream(phase)], "gate": dataclasses.asdict(phase.gate),
                "sources": self._sources(phase, rounds), "before": before.summary(), "before_remedy": judged_first.summary(), "after": after.summary(),
            })  # fmt: skip
            write_verdict(
                directory / "verdict.json", phase=phase.name, gate=phase.gate, looks=looks,
                report=after.reports[phase.exam], reference=reference.reports.get(phase.exam),
                reference_account=reference_account(self.recipe, phase),
                digests={"weights": model.digest, "data": self._data_digest(phase), "config": self._config_digest(phase)},
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
        if jax.process_index() == 0:
            entry = {"phase": phase.name, "event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **what}
            write_json(self.directory / "ledger.json", [*read_ledger(self.directory), entry])

    def _config_digest(self, phase: Phase) -> str:
        """Digest of all that decides what this phase does, except where the run lies."""
        recipe = self.recipe
        said = (phase, recipe.exam(phase.exam), recipe.weights, recipe.dtype, recipe.param_dtype, recipe.route, recipe.seed)
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def _data_digest(self, phase: Phase) -> str:
        """Digest of the questions the phase is judged by."""
        return hashlib.sha256(repr(self.corpora.questions(self.recipe.exam(phase.exam).source)).encode()).hexdigest()


def restart(run_dir: pathlib.Path, phase: str) -> pathlib.Path | None:
    """Moves a phase's directory aside, so that it runs anew; returns where it is now. Nothing is deleted."""
    directory = run_dir / phase
    if not directory.exists():
        return None
    number = 1
    while (aside := run_dir / f"{phase}.before-{number}").exists():
        number += 1
    shutil.move(directory, aside)
    return aside


def _devices() -> str:
    devices = jax.devices()
    return f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}"
