"""The phases in order: each starts from a phase that opened, adapts, trains, is judged, writes its verdict.

    Run(recipe).all()

One phase, as a batch of decisions: open the upstream model (refused unless its verdict passed and still
matches) -> choose among candidates -> add trees -> measure -> train -> merge -> judge -> remedy while the
gate stays closed -> save -> verdict. Every step of it is on disk before the next begins, so the same
command resumes where a killed run stopped, and does nothing twice.

Which phases there are, and what they train on, is data (`phases.Recipe`).
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from medkor_jax.data.contents import checksum
from medkor_jax.data.reading import add_readings
from medkor_jax.eval.gate import said_of
from medkor_jax.eval.judgement import Evidence
from medkor_jax.eval.scoring import Scorer
from medkor_jax.eval.verdict import read_verdict
from medkor_jax.io.bases import open_base
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.loaded_model import LoadedModel, load
from medkor_jax.io.models import Model
from medkor_jax.model.dtypes import float_of, slow_here
from medkor_jax.model.params import Params, Tree
from medkor_jax.parallel import hosts
from medkor_jax.parallel.agreement import require_same, require_shared
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import devices_in_words, make_mesh
from medkor_jax.run.asked_form import asked_form
from medkor_jax.run.candidates import on_demand_of
from medkor_jax.run.choosing import choose, may_run, open_later
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.course import Course, conclude, note, note_missing_end
from medkor_jax.run.final import sit_final
from medkor_jax.run.lineage import Finished, Lineage, Stale
from medkor_jax.run.measurement import Measured, Measurer, read_evidence
from medkor_jax.run.named_model import open_model
from medkor_jax.run.new_tokens import check_reference, with_new_tokens
from medkor_jax.run.pace import heading
from medkor_jax.run.phases import ConfigError, Phase, Recipe
from medkor_jax.run.provenance import note_start
from medkor_jax.run.readiness import make_ready
from medkor_jax.run.stage_plans import stage_plan
from medkor_jax.run.trees import add_trees, merge_held, on_base
from medkor_jax.train.loop import run_stage
from medkor_jax.train.stage import Stage


class Run:
    """One run directory: `all()` for every phase named, `phase(p)` for one."""

    def __init__(self, recipe: Recipe, *, accept_changed: bool = False) -> None:
        """accept_changed: see `lineage.Lineage`."""
        self._form = asked_form(recipe)
        style = self._form.style
        self.recipe = recipe = dataclasses.replace(recipe, style=style.name)
        self.directory = pathlib.Path(recipe.run_dir)
        self.mesh = make_mesh(recipe.mesh)
        self.corpora = Corpora(recipe.drop_bad, recipe.reasoning, style_digest=style.digest)
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
        make_ready(recipe, self.corpora, self.mesh, self._translator)
        require_same(
            "the data",
            {
                phase.name: checksum(dataclasses.asdict(self.lineage.facts(phase)))
                for phase in may_run(recipe)
            },
        )
        say(
            f"run {self.directory}: {', '.join(phase.name for phase in recipe.in_force)} on {devices_in_words()}"
        )
        say(self._form.words)
        if words := slow_here(recipe.dtype, "--config.dtype=float32"):
            say(words)
        with jax.set_mesh(self.mesh):
            for phase in recipe.in_force:
                self.phase(phase)
            sit_final(self.measurer, self.lineage, self._load)

    def phase(self, phase: Phase) -> None:
        """Runs one phase, or what is left of it. Raises: GateClosed, Stale."""
        models = self._candidates(phase)
        first = next(models)
        hosts.at(phase.name)
        finished = self.lineage.finished(phase)
        if finished and not finished.judged_otherwise:
            self.lineage.open(phase.name)
            judged = read_verdict(self.directory / phase.name / "verdict.json")["judgement"]
            words = said_of(judged["words"], phase.gate.on_failure)
            say(f"\n{phase.name}: done before; {words}")
            note_missing_end(self.directory, phase, finished.model.digest)
            return
        say(heading(self.recipe, phase, self.directory))
        if finished:
            others = ", ".join(finished.judged_otherwise)
            say(f"{phase.name} was trained before and is judged again: other {others}")
        began = time.monotonic()
        note(
            self.directory,
            phase,
            "judged again" if finished else "started",
            upstream=[first.digest],
        )
        note_start(self.directory / phase.name, self.recipe)
        course = self._begin(phase, itertools.chain([first], models), finished)
        if finished:
            self._load_trained(course, finished)
        else:
            self._train_first(course)
        self._judge_and_remedy(course)
        conclude(
            course, self.recipe, self.lineage, self.directory, seconds=time.monotonic() - began
        )

    def _candidates(self, phase: Phase) -> Iterator[Model]:
        """Yields what the phase may start from, each opened when it is asked for; what a candidate alone brings runs first.

        Raises: WeightsError, LeakError of one that stands behind others; their results are on disk.
        """
        brought = {one.name: one for one in on_demand_of(phase, self.recipe.phases)}
        for number, name in enumerate(self.recipe.upstream_of(phase)):
            on_demand = brought.get(name)
            if number:
                hosts.at(f"{phase.name}, opening {name}")
                open_later(self.recipe, self.corpora, phase, on_demand.after if on_demand else name)
            if on_demand:
                self.phase(on_demand)
            yield self.lineage.upstream(phase, number)

    def _begin(self, phase: Phase, models: Iterator[Model], finished: Finished | None) -> Course:
        """Returns the phase with the model chosen that it starts from, and measured. The course alone holds that model, so that
        its base is let go when a merge makes another."""
        examine = lambda model: self.measurer.candidate(phase, model, self._load)
        choice = choose(phase, models, examine=examine, load=self._load)
        start = choice.start
        before = self.measurer.measure(phase, start, "before")
        return Course(
            phase,
            choice.tried,
            finished,
            start,
            start,
            before,
            before,
            before,
            self._reference(phase, before),
            choice.looks,
        )

    def _load_trained(self, course: Course, finished: Finished) -> None:
        """Takes what the phase left, to be judged again.

        Raises: Stale if it was made from another candidate.
        """
        name = course.phase.name
        if finished.record["chosen"] != course.start.digest:
            raise Stale(
                f"{name} was made from another of its candidates than the one that is chosen now "
                f"(its exam is another). Run it again with --restart {name}"
            )
        course.loaded, course.rounds = self._load(finished.model), finished.record["rounds"]

    def _train_first(self, course: Course) -> None:
        """Adds the phase's trees, trains them, and merges what it merges."""
        phase, start = course.phase, course.start
        course.loaded = start
        if phase.language.adds_tokens:
            course.loaded = with_new_tokens(start, phase, self.corpora, self.directory)
        course.loaded = add_trees(course.loaded, phase, phase.lora, seed=self.recipe.seed)
        course.loaded = self._train(course, phase.train, "train")
        if phase.merge:
            course.loaded = self._merge(phase, course.loaded)
            base = course.loaded.params.base  # one base in memory
            course.start = dataclasses.replace(start, params=start.params.replace(base=base))

    def _judge_and_remedy(self, course: Course) -> None:
        """Judges what the phase made; trains its remedy while the gate stays closed and rounds are left."""
        phase, changed = course.phase, course.phase.changes_model
        if course.finished or changed:
            course.after = self.measurer.measure(phase, course.loaded, "after")
        course.judged_first = course.after
        judgement = course.judge(
            "judged again" if course.finished else "after training" if changed else "as it stands"
        )
        while not judgement.passed and phase.gate.has_remedy and course.rounds < phase.gate.rounds:
            course.rounds += 1
            course.loaded = add_trees(
                course.loaded, phase, phase.remedy_lora, seed=self.recipe.seed
            )
            course.loaded = self._train(course, phase.remedy, f"remedy{course.rounds}")
            course.after = self.measurer.measure(
                phase, course.loaded, f"after-remedy{course.rounds}"
            )
            judgement = course.judge(f"after remedy round {course.rounds}")

    def _load(self, model: Model) -> LoadedModel:
        """Returns the model on the mesh. Only one base is held: phases that share it share its arrays."""
        digest = model.base.digest
        if digest not in self._bases:
            self._bases.clear()
        loaded = load(
            model,
            self.recipe.param_dtype,
            self.mesh,
            language_unit=self.recipe.language_unit,
            base=self._bases.get(digest),
            style=self.recipe.style,
        )
        if loaded.style.digest != self.corpora.style_digest:
            raise ConfigError(
                f"{model.name} has another chat template than {self.recipe.weights}; all models of a run are asked in one form: "
                "give both the same chat_template.jinja, or set style to 'plain'"
            )
        self._bases[digest] = loaded.params.base
        return loaded

    def _translator(self, name: str) -> Scorer:
        """Returns the weights that translate an exam, on the mesh. It is asked before any phase, and no other base is held then."""
        model = open_model(name)
        if name == self.recipe.weights:
            return self.measurer.scorer(self._load(model))
        return self.measurer.scorer(load(model, self.recipe.param_dtype, self.mesh))

    def _train(self, course: Course, stage: Stage, name: str) -> LoadedModel:
        """Returns the phase's model after a stage."""
        if not stage.steps:
            return course.loaded
        plan = stage_plan(
            self.recipe, self.corpora, course.phase, stage, name, upstream=course.loaded.digest
        )
        reference = None
        if stage.retention.is_on:
            reference = self._reference_params(course)
            check_reference(plan, course.loaded, reference)
        loaded = run_stage(plan, course.loaded, reference, self.mesh)
        read = [self.corpora.translations.read_from(source) for source in stage.data]
        return dataclasses.replace(loaded, read=add_readings(loaded.read, read, by=plan.name))

    def _reference_params(self, course: Course) -> Params:
        """Returns the model retention holds to, which is the one the gate compares with: that of the phase marked as
        reference, else the phase's own start; with the base in hand."""
        phase, loaded = course.phase, course.loaded
        reference = self.recipe.reference_of(phase)
        if reference is None:
            return course.start.params.replace(base=loaded.params.base)
        model = self.lineage.open(reference.name)
        if model.base.digest != loaded.base.digest:
            raise ConfigError(
                f"{phase.name} stands on another base than its reference {reference.name}; retention needs the same one"
            )
        return model.load(jnp.dtype(self.recipe.param_dtype), self.mesh, loaded.params.base)

    def _reference(self, phase: Phase, before: Measured) -> Evidence:
        """Returns what was measured of the model that the gate compares with: the reference at its end, else this phase's start."""
        reference = self.recipe.reference_of(phase)
        if reference is None:
            return before.evidence
        self.lineage.open(reference.name)
        return read_evidence(self.directory / reference.name)

    def _merge(self, phase: Phase, loaded: LoadedModel) -> LoadedModel:
        """Returns the model on its merged base. A base is named by what it is made of and never written over: later
        phases stand on it, and the same merge again finds it."""
        recipe, params = self.recipe, loaded.params
        hosts.at(f"{phase.name}, merging")
        lora, dtype = digest_tree(params.lora), float_of(recipe.param_dtype)
        made_of = checksum([loaded.base.digest, lora, params.lora_scale, dtype])
        directory = self.directory / "bases" / f"{phase.name}-{made_of[:12]}"
        if hosts.first(f"is {directory.name} merged", (directory / "lineage.json").is_file):
            say(f"{phase.name}: merged before, {directory}")
            loaded = on_base(loaded, open_base(directory), recipe.param_dtype, self.mesh)
        else:
            loaded = merge_held(loaded, phase.name, directory, recipe.param_dtype, self.mesh)
        self._bases = {loaded.base.digest: loaded.params.base}
        return loaded
