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

from medkor_jax.adapt.language import make_language
from medkor_jax.adapt.lora import make_lora, merge
from medkor_jax.corpora import Corpora
from medkor_jax.eval.exam import evaluate
from medkor_jax.eval.gate import Gate, Judgement, judge
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.eval.scores import Report
from medkor_jax.eval.verdict import GateClosed, read_verdict, require_open, waive, write_verdict
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.files import write_json
from medkor_jax.io.models import ADAPTER_TREES, Model, model_digest, open_model, read_ledger, save_base, save_model
from medkor_jax.io.weights import Weights
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params, Tree
from medkor_jax.parallel.mesh import make_mesh, place_batch
from medkor_jax.phases import ConfigError, LoraRecipe, Phase, Recipe, Stage
from medkor_jax.report.summary import closing_table, phase_lines
from medkor_jax.train.loop import StagePlan, make_batches, run_stage, seed_of, text_loss
from medkor_jax.train.step import StepSpec
from medkor_jax.train.trainable import Schedule

MERGE_PARITY_BOUND = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest logit difference between merged and adapted model that a merge may show, by param_dtype."""


@dataclasses.dataclass
class Standing:
    """The model as it stands: its parameters and what they rest on."""

    params: Params
    base: Weights
    config: Any
    tokenizer: Any

    @property
    def digest(self) -> str:
        trees = {name: getattr(self.params, name) for name in ADAPTER_TREES}
        trees = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
        return model_digest(self.base.digest, digest_tree(trees) if trees else "", self.params.lora_scale)


class Run:
    """One run directory: `all()` for every phase named, `phase(p)` for one."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.directory = pathlib.Path(recipe.run_dir)
        self.mesh = make_mesh(recipe.mesh)
        self.corpora = Corpora(recipe.drop_bad)
        self._bases: dict[str, Tree] = {}

    # ---- the walk -----------------------------------------------------------------------------

    def all(self) -> None:
        """Runs the phases the recipe names, in order.

        Raises: GateClosed when a gate stays closed; ConfigError, BadDataError, WeightsError before any
        training when something does not fit.
        """
        recipe = self.recipe
        self.corpora.refuse_leaks(recipe)
        for phase in recipe.in_force:
            self._check_upstream_is_known(phase)
        print(f"run {self.directory}: {', '.join(phase.name for phase in recipe.in_force)} on {_devices()}")
        with jax.set_mesh(self.mesh):
            for phase in recipe.in_force:
                self.phase(phase)
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

        standing, measured = self._choose(phase, upstream)
        before = self._measure(phase, standing, "before", measured)
        standing = self._adapt(phase, standing, phase.lora)
        standing = self._train(phase, standing, phase.train, "train")
        if phase.merge:
            standing = self._merge(phase, standing)
        reference = self._reference_report(phase, before)
        after = self._measure(phase, standing, "after", {}) if phase.train.steps or phase.merge else before
        judgement = judge(phase.gate, after["reports"][phase.exam], reference)
        print(f"{phase.name}: {judgement.words}")
        judged_first, rounds = after, 0
        while not judgement.passed and phase.gate.on_failure in ("retain", "train") and rounds < phase.gate.rounds:
            rounds += 1
            standing = self._adapt(phase, standing, phase.remedy_lora)
            standing = self._train(phase, standing, phase.remedy, f"remedy{rounds}")
            after = self._measure(phase, standing, f"after-remedy{rounds}", {})
            judgement = judge(phase.gate, after["reports"][phase.exam], reference)
            print(f"{phase.name}, after remedy round {rounds}: {judgement.words}")
        self._conclude(phase, standing, judgement, reference, before, judged_first, after, rounds, time.time() - started)

    # ---- where a phase starts -----------------------------------------------------------------

    def _check_upstream_is_known(self, phase: Phase) -> None:
        names = [p.name for p in self.recipe.phases]
        for name in filter(None, (phase.after, *[c for c in phase.candidates if c.startswith("phase")])):
            if name not in names:
                raise ConfigError(f"{phase.name} starts from {name!r}, which is none of {', '.join(names)}")

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

    def _choose(self, phase: Phase, upstream: list[Model]) -> tuple[Standing, dict[str, Report]]:
        """Returns the smallest candidate that opens the gate, else the best, with its report; says why in words."""
        if len(upstream) == 1:
            return self._load(upstream[0]), {}
        scored: list[tuple[float, Model, Report]] = []
        for model in sorted(upstream, key=lambda m: m.config.n_params):
            standing = self._load(model)
            report = self._examine(phase, standing, phase.exam, f"candidate-{model.digest[:8]}")
            judgement = judge(phase.gate, report, report)
            scored.append((report.overall.accuracy, model, report))
            print(f"{phase.name}: candidate {model.name} ({model.config.n_params / 1e9:.2f}B): {judgement.words}")
            if judgement.passed:
                print(f"{phase.name}: {model.name} is taken, the smallest that passes")
                return standing, {phase.exam: report}
            self._bases.clear()
        _, model, report = max(scored, key=lambda item: item[0])
        print(f"{phase.name}: no candidate passes; {model.name} is taken, the best of {len(scored)}")
        return self._load(model), {phase.exam: report}

    def _load(self, model: Model) -> Standing:
        """Returns the model on the mesh. Only one base is held: phases that share it share its arrays."""
        digest = model.base.digest
        if digest not in self._bases:
            self._bases.clear()
        params = model.load(jnp.dtype(self.recipe.param_dtype), self.mesh, self._bases.get(digest))
        self._bases[digest] = params.base
        return Standing(params, model.base, model.config, model.tokenizer)

    # ---- what a phase does --------------------------------------------------------------------

    def _adapt(self, phase: Phase, standing: Standing, lora: LoraRecipe) -> Standing:
        """Adds the trees the phase names, where the model does not have them yet."""
        params, config = standing.params, standing.config
        if lora.rank and params.lora:
            held = {name: pair["a"].shape[-1] for name, pair in params.lora.items()}
            if held != dict.fromkeys(lora.targets, lora.rank) or params.lora_scale != lora.scale:
                raise ConfigError(
                    f"{phase.name} asks for LoRA rank {lora.rank} on {', '.join(lora.targets)} at scale {lora.scale}; the "
                    f"model it starts from has {held} at {params.lora_scale}. Make them the same"
                )
        elif lora.rank:
            key = jax.random.key(seed_of(self.recipe.seed, phase.name, "lora"))
            tree = make_lora(params.base, key, rank=lora.rank, targets=lora.targets)
            params = params.replace(lora=tree, lora_scale=lora.scale)
        kind = phase.language.kind
        if kind and params.lang and kind not in params.lang:
            raise ConfigError(f"{phase.name} asks for language embeddings of kind {kind!r}; the model has {sorted(params.lang)}")
        if kind and not params.lang:
            params = params.replace(lang=make_language(config, kind=kind))
        return dataclasses.replace(standing, params=params)

    def _train(self, phase: Phase, standing: Standing, stage: Stage, name: str) -> Standing:
        if not stage.steps:
            return standing
        plan = self.plan(phase, stage, name, upstream=standing.digest)
        reference = self._reference_params(phase, standing) if stage.retention.weight > 0 else None
        params = run_stage(plan, standing.params, reference, standing.config, standing.tokenizer, self.mesh)
        return dataclasses.replace(standing, params=params)

    def plan(self, phase: Phase, stage: Stage, name: str, *, upstream: str = "") -> StagePlan:
        """Returns the stage with its data loaded and its numbers resolved."""
        recipe = self.recipe
        return StagePlan(
            name=f"{phase.name}/{name}",
            directory=self.directory / phase.name / name,
            trees=stage.trees,
            spec=self._spec(stage, seed_of(recipe.seed, phase.name, name)),
            schedule=Schedule(stage.steps, stage.warmup_steps, stage.final_share, stage.clip_norm),
            groups=stage.groups_in_force(),
            train=self.corpora.examples(stage.data),
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
        )

    def _spec(self, stage: Stage, seed: int) -> StepSpec:
        recipe = self.recipe
        return StepSpec(
            dtype=recipe.dtype, next_token_weight=stage.next_token_weight, retention=stage.retention,
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

    def _reference_report(self, phase: Phase, before: dict[str, Any]) -> Report:
        name = self._reference_name(phase)
        if name is None:
            return before["reports"][phase.exam]
        summary = json.loads((self.directory / name / "summary.json").read_text(encoding="utf-8"))
        return Report.read(self.directory / name / summary["after"]["answers"][phase.exam])

    def _merge(self, phase: Phase, standing: Standing) -> Standing:
        """Folds LoRA into a new base on disk, with its lineage and the measured parity, and goes on from there."""
        directory = self.directory / phase.name / "base"
        params = standing.params
        merged = merge(params.base, params.lora, scale=params.lora_scale)
        parity = self._parity(standing, params.replace(base=merged, lora={}))
        bound = MERGE_PARITY_BOUND[self.recipe.param_dtype]
        print(f"{phase.name}: merged against adapted, largest logit difference {parity:.2e} (bound {bound})")
        if not parity <= bound:
            raise FloatingPointError(f"{phase.name}: merging changed a logit by {parity:.3g}, more than {bound}; nothing was written")
        rank = next(iter(params.lora.values()))["a"].shape[-1]
        lineage = {
            "made_by": f"{phase.name}: merge of LoRA into its base", "base": standing.base.name,
            "base_digest": standing.base.digest, "lora_digest": digest_tree(params.lora), "rank": rank,
            "scale": params.lora_scale, "targets": sorted(params.lora), "largest_logit_difference": parity,
        }  # fmt: skip
        base = save_base(directory, merged, standing.config, standing.tokenizer, lineage)
        self._bases = {base.digest: merged}
        return dataclasses.replace(standing, params=params.replace(base=merged, lora={}, lora_scale=1.0), base=base)

    def _parity(self, standing: Standing, merged: Params) -> float:
        """Returns the largest difference of any logit at 64 positions of the first training text of the watch or phase."""
        rows = min(4, self.mesh.size) if self.mesh.size > 1 else 1
        tokens = jax.random.randint(jax.random.key(0), (rows * 4, 64), 3, standing.tokenizer.vocab_size)
        inputs = Inputs(tokens, jnp.broadcast_to(jnp.arange(64), tokens.shape), jnp.ones_like(tokens), jnp.zeros_like(tokens))
        last = jax.jit(lambda p: project_logits(p.base, forward(p, standing.config, inputs, dtype=jnp.dtype(self.recipe.dtype))[:, ::16]))
        return float(jnp.max(jnp.abs(last(standing.params) - last(merged))))

    # ---- what a phase is measured by ----------------------------------------------------------

    def _measure(self, phase: Phase, standing: Standing, when: str, known: dict[str, Report]) -> dict[str, Any]:
        """Returns exam reports and watched losses of the model as it stands, from disk if they are there."""
        path = self.directory / phase.name / f"measured-{when}.json"
        digest = standing.digest
        asked = hashlib.sha256(repr((self.recipe.exams, self.recipe.watch, self.recipe.watch_tokens, self.recipe.dtype)).encode()).hexdigest()
        if (found := self._measured_before(digest, asked)) is not None:
            write_json(path, found)
            answers = {name: self.directory / file for name, file in found["files"].items()}
            return found | {"reports": {name: Report.read(file) for name, file in answers.items()}, "answers": self._relative(phase, answers)}
        reports = {
            exam.source.name: known.get(exam.source.name) or self._examine(phase, standing, exam.source.name, when)
            for exam in self.recipe.exams
        }
        for name, report in reports.items():
            print(f"  {when}, {report.table() if report.alarms else phase_lines(name, report)}")
        watched = {source.name: self._watch(standing, source) for source in self.recipe.watch}
        for name, loss in watched.items():
            print(f"  {when}, {name}: {loss['nats']:.3f} nats a token over {loss['tokens']:.0f} tokens")
        files = {}
        for name, report in reports.items():
            file = self.directory / phase.name / "answers" / f"{name}-{when}.jsonl"
            report.write(file)
            files[name] = str(file.relative_to(self.directory))
        stored = {
            "digest": digest, "asked": asked, "watch": watched, "files": files,
            "exams": {name: report.summary() for name, report in reports.items()},
        }  # fmt: skip
        write_json(path, stored)
        answers = {name: self.directory / file for name, file in files.items()}
        return stored | {"reports": reports, "answers": self._relative(phase, answers)}

    def _measured_before(self, digest: str, asked: str) -> dict[str, Any] | None:
        """The same model asked the same things, in this or an earlier phase: measured once."""
        for path in sorted(self.directory.glob("*/measured-*.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            if (found["digest"], found["asked"]) == (digest, asked) and all((self.directory / f).exists() for f in found["files"].values()):
                return found
        return None

    def _relative(self, phase: Phase, answers: dict[str, pathlib.Path]) -> dict[str, str]:
        return {name: str(pathlib.Path("..") / file.relative_to(self.directory)) for name, file in answers.items()}

    def _examine(self, phase: Phase, standing: Standing, name: str, when: str) -> Report:
        exam = self.recipe.exam(name)
        questions = self.corpora.questions(exam.source)
        shots = self.corpora.questions(exam.fewshot)[: exam.shots] if exam.fewshot else ()
        scorer = ModelScorer(
            standing.params, standing.config, standing.tokenizer, dtype=jnp.dtype(self.recipe.dtype), mesh=self.mesh,
            batch_size=exam.batch_size, route=self.recipe.route,
        )  # fmt: skip
        return evaluate(
            scorer, standing.tokenizer, questions, mode=exam.mode, shots=shots, source=name, split=exam.source.split,
            batch_size=exam.batch_size, max_positions=standing.config.max_positions,
        )  # fmt: skip

    def _watch(self, standing: Standing, source: Any) -> dict[str, float]:
        stage = self.recipe.phases[0].train
        return text_loss(
            standing.params, standing.config, standing.tokenizer, self.mesh, self.corpora.examples((source,)),
            StepSpec(dtype=self.recipe.dtype, chunk=self.recipe.chunk), route=self.recipe.route,
            batch_size=stage.batch_size, seq_len=stage.seq_len, max_tokens=self.recipe.watch_tokens,
        )  # fmt: skip

    # ---- what a phase leaves ------------------------------------------------------------------

    def _conclude(self, phase, standing, judgement: Judgement, reference, before, judged_first, after, rounds, seconds) -> None:
        directory = self.directory / phase.name
        model = save_model(directory, standing.params, standing.base, self.recipe.route)
        if jax.process_index() == 0:
            keep = lambda m: {name: m[name] for name in ("digest", "watch", "exams", "answers")}  # noqa: E731
            write_json(directory / "summary.json", {
                "phase": phase.name, "title": phase.title, "model": model.digest, "rounds": rounds, "seconds": round(seconds, 1),
                "upstream": [m.digest for m in self._upstream(phase)], "gate": dataclasses.asdict(phase.gate),
                "sources": self._sources(phase, rounds), "before": keep(before), "before_remedy": keep(judged_first), "after": keep(after),
            })  # fmt: skip
            write_verdict(
                directory / "verdict.json", phase=phase.name, gate=phase.gate, judgement=judgement,
                report=after["reports"][phase.exam], reference=reference,
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
        judged = tuple(exam.source for exam in self.recipe.exams)
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


def check_stages(run: Run) -> None:
    """Builds every stage's batches once, so that data that does not fit is found before any training."""
    for phase in run.recipe.in_force:
        for stage, name in ((phase.train, "train"), (phase.remedy, "remedy")):
            if stage.steps:
                make_batches(run.plan(phase, stage, name), open_model(run.recipe.weights).tokenizer)


def _devices() -> str:
    devices = jax.devices()
    return f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}"
