"""What a model scores: the exams, the held-out texts and the translations of a phase, each measured once.

    measured = Measurer(recipe, corpora, directory, mesh).measure(phase, loaded, "after")
    measured.reports["english"], measured.stored["watch"]["korean"]["nats"]

Everything measured is in the phase's directory: `measured-WHEN.json` with the numbers, `answers/` and
`translations/` with every text. The same model asked the same things, in this or an earlier phase, is read
from there: found by the digests of the weights and of all that was asked (`lineage`), and only if the files are what
was written. It decides nothing: that is the gate's business.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from medkor_jax.bar import Bar
from medkor_jax.data.contents import file_digest
from medkor_jax.data.question import LETTERS, Question
from medkor_jax.data.rows import Source
from medkor_jax.eval.exam import evaluate
from medkor_jax.eval.judgement import Evidence
from medkor_jax.eval.lines import write_lines
from medkor_jax.eval.report import Report
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.eval.translation import evaluate_translation
from medkor_jax.eval.translation_report import TranslationReport
from medkor_jax.io.files import read_sealed, write_sealed
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.models import Model
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.facts import exam_asked, held_out_asked, pairs_asked
from medkor_jax.run.phases import Phase, Recipe
from medkor_jax.run.summary import phase_lines, read_summary
from medkor_jax.train.text_loss import text_loss

_TRANSLATION_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Measured:
    """reports: by exam. stored: the same as JSON, with losses, translation scores and the files of all texts."""

    reports: Mapping[str, Report]
    stored: Mapping[str, Any]

    @property
    def evidence(self) -> Evidence:
        """What a gate judges by."""
        return Evidence(
            self.reports, {name: loss["nats"] for name, loss in self.stored["watch"].items()}
        )

    def summary(self) -> dict[str, Any]:
        """Returns what a phase keeps of it; files are named from the directory of a phase."""
        files = {
            name: str(pathlib.Path("..") / file) for name, file in self.stored["files"].items()
        }
        return {
            name: self.stored[name] for name in ("digest", "watch", "exams", "translations")
        } | {"answers": files}


def read_evidence(directory: pathlib.Path) -> Evidence:
    """Returns what was measured last of the model that a phase left in its directory."""
    stored = read_summary(directory)["after"]
    reports = {exam: Report.read(directory / stored["answers"][exam]) for exam in stored["exams"]}
    return Evidence(reports, {text: loss["nats"] for text, loss in stored["watch"].items()})


def _asked(question: Question) -> dict[str, Any]:
    """What stands beside the answers for whoever reads them: answers name their questions by id."""
    said = ("id", "question", "options", "language", "year", "exam")
    return {name: getattr(question, name) for name in said} | {"key": LETTERS[question.answer]}


def _nothing(digest: str) -> dict[str, Any]:
    parts = ("asked", "files", "file_digests", "exams", "watch", "translations")
    return {"digest": digest, **{part: {} for part in parts}}


class Measurer:
    """Measures the models of one run."""

    def __init__(
        self, recipe: Recipe, corpora: Corpora, directory: pathlib.Path, mesh: jax.sharding.Mesh
    ) -> None:
        self.recipe, self.corpora, self.directory, self.mesh = recipe, corpora, directory, mesh
        self._kept: set[str] = set()  # exams whose questions are on disk
        self._told: dict[str, set[str]] = {}  # alarms by exam

    def measure(self, phase: Phase, loaded: LoadedModel, when: str) -> Measured:
        """Returns all that is measured in `phase` of the model as it stands, and prints it."""
        recipe, own, digest = self.recipe, self.directory / phase.name, loaded.digest
        stored, reports = _nothing(digest), {}
        for exam in recipe.exams_of(phase):
            name, asked = exam.source.name, exam_asked(recipe, self.corpora, exam)
            self._keep_questions(name)
            if found := self._stored(digest, "exams", name, asked):
                reports[name] = Report.read(self.directory / found["files"][name])
                stored["files"][name] = found["files"][name]
            else:
                reports[name] = self.examine(loaded, name)
                stored["files"][name] = self._write(
                    own / "answers" / f"{name}-{when}.jsonl", reports[name]
                )
                say(f"  {when}, {self._said(name, reports[name])}")
            stored["exams"][name], stored["asked"][f"exams/{name}"] = reports[name].summary(), asked
        for source in recipe.held_out:
            name, asked = source.name, held_out_asked(recipe, self.corpora, source)
            if found := self._stored(digest, "watch", name, asked):
                loss = found["watch"][name]
            else:
                loss = self._held_out_loss(loaded, source)
                say(
                    f"  {when}, {name}: {loss['nats']:.3f} nats a token over {loss['tokens']:.0f} tokens"
                )
            stored["watch"][name], stored["asked"][f"watch/{name}"] = loss, asked
        for source in phase.translations:
            name, asked = source.name, pairs_asked(recipe, self.corpora, source)
            key = f"translations/{name}"  # pairs and an exam may bear the same name
            if found := self._stored(digest, "translations", name, asked):
                stored["translations"][name], stored["files"][key] = (
                    found["translations"][name],
                    found["files"][key],
                )
            else:
                translated = self._translate(loaded, source)
                stored["files"][key] = self._write(
                    own / "translations" / f"{name}-{when}.jsonl", translated
                )
                stored["translations"][name] = translated.summary()
                say(f"  {when}, {translated.table()}")
            stored["asked"][key] = asked
        self._seal(own / f"measured-{when}.json", stored)
        return Measured(reports, stored)

    def _keep_questions(self, name: str) -> None:
        """Writes what an exam asks now, once a run, also where its answers are found: they were given to these questions."""
        if name not in self._kept:
            self._kept.add(name)
            questions = self.corpora.questions(self.recipe.exam(name).source)
            write_lines(self.directory / "questions" / f"{name}.jsonl", map(_asked, questions), {})

    def _said(self, name: str, report: Report) -> str:
        """Returns what is said of an exam: in full with its alarms the first time that they are raised, else in one line."""
        told = self._told.setdefault(name, set())
        is_new = not told.issuperset(report.alarming)
        told.update(report.alarming)
        if is_new:
            return report.table()
        before = f"; ALARM as before: {', '.join(report.alarming)}" if report.alarming else ""
        return phase_lines(name, report) + before

    def candidate(self, phase: Phase, model: Model, load: Callable[[Model], LoadedModel]) -> Report:
        """Returns a candidate's answers to the phase's exam, which are on disk then. load: called only if it was never asked."""
        name, own = phase.exam, self.directory / phase.name
        asked = exam_asked(self.recipe, self.corpora, self.recipe.exam(name))
        if found := self._stored(model.digest, "exams", name, asked):
            return Report.read(self.directory / found["files"][name])
        report, stored = self.examine(load(model), name), _nothing(model.digest)
        say(f"  {model.name}, {phase_lines(name, report)}")
        when = f"candidate-{model.digest[:12]}"
        stored["files"][name] = self._write(own / "answers" / f"{name}-{when}.jsonl", report)
        stored["exams"][name], stored["asked"][f"exams/{name}"] = report.summary(), asked
        self._seal(own / f"measured-{when}.json", stored)
        return report

    def examine(self, loaded: LoadedModel, name: str) -> Report:
        """Returns the model's answers to the exam `name`."""
        exam = self.recipe.exam(name)
        hosts.at(f"exam {name}")
        questions = self.corpora.questions(exam.source)
        shots = self.corpora.questions(exam.fewshot)[: exam.shots] if exam.fewshot else ()
        with Bar(name, total=len(questions), unit="question", on=hosts.is_first()) as bar:
            return evaluate(
                self.scorer(loaded, exam.batch_size),
                questions,
                mode=exam.mode,
                shots=shots,
                source=name,
                split=exam.source.split,
                batch_size=exam.batch_size,
                max_new_tokens=exam.max_new_tokens,
                max_thinking_tokens=exam.max_thinking_tokens,
                form=self.recipe.reasoning,
                on_progress=lambda done, _: bar.to(done),
            )

    def _stored(self, digest: str, kind: str, name: str, asked: str) -> dict[str, Any] | None:
        """Returns what was measured of this very model, asked this very thing; None if that was never done, or is damaged."""
        key = f"{kind}/{name}"
        return hosts.first(
            f"{key} of {digest[:12]}", lambda: self._found(digest, key, kind, name, asked)
        )

    def _found(
        self, digest: str, key: str, kind: str, name: str, asked: str
    ) -> dict[str, Any] | None:
        file = {"exams": name, "translations": key}.get(kind)
        for path in sorted(self.directory.glob("*/measured-*.json")):
            try:
                found = read_sealed(path)
            except ValueError as error:
                say(f"  {error}: what it held is measured again")
                continue
            if (
                found["digest"] == digest
                and found["asked"].get(key) == asked
                and (file is None or self._is_whole(found, file))
            ):
                return found
        return None

    def _is_whole(self, found: dict[str, Any], file: str) -> bool:
        path = self.directory / found["files"][file]
        if path.exists() and file_digest(path) == found["file_digests"][file]:
            return True
        say(f"  {path} is not there any more or was changed: asked again")
        return False

    def _seal(self, path: pathlib.Path, stored: dict[str, Any]) -> None:
        stored["file_digests"] = {
            name: file_digest(self.directory / file) for name, file in stored["files"].items()
        }
        write_sealed(path, stored)

    def _write(self, file: pathlib.Path, report: Report | TranslationReport) -> str:
        report.write(file)
        return str(file.relative_to(self.directory))

    def scorer(self, loaded: LoadedModel, batch_size: int = _TRANSLATION_BATCH) -> ModelScorer:
        """Returns the model as it is asked."""
        return ModelScorer(
            loaded, dtype=jnp.dtype(self.recipe.dtype), mesh=self.mesh, batch_size=batch_size
        )

    def _held_out_loss(self, loaded: LoadedModel, source: Source) -> dict[str, float]:
        stage = self.recipe.phases[0].train
        return text_loss(
            loaded,
            self.mesh,
            self.corpora.examples((source,)),
            self.recipe.compute,
            batch_size=stage.batch_size,
            seq_len=stage.seq_len,
            max_tokens=self.recipe.held_out_tokens,
        )

    def _translate(self, loaded: LoadedModel, source: Source) -> TranslationReport:
        pairs = self.corpora.pairs(source)
        n = 2 * len(pairs)  # both ways
        with Bar(source.name, total=n, unit="translation", on=hosts.is_first()) as bar:
            return evaluate_translation(
                self.scorer(loaded),
                pairs,
                source=source.name,
                split=source.subset or source.split,
                batch_size=_TRANSLATION_BATCH,
                max_new_tokens=self.recipe.max_translation_tokens,
                on_progress=lambda done, _: bar.to(done),
            )
