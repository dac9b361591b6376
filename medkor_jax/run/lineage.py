"""What made each phase what it is, and whether all of it still holds.

    lineage = Lineage(recipe, corpora, run_dir)
    lineage.upstream(phase)         # the models it starts from, each with its whole chain checked
    lineage.finished(phase)         # None, or what it left and what has changed since

A phase that ends writes `record.json`: by name, the settings and the contents (digests of rows, prompts, weights) that
decided how it was trained, and those that decided how it was judged. Settings that decide nothing (a title, a licence,
how often to log) are not in it; `ROLES` says for every key of a config which it is. A change of what trained it makes a
phase stale, and all that stands on it: that is refused with the name of what changed. A change of what judged it is
judged again. It trains, measures and writes nothing else.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Mapping

from medkor_jax.data.contents import checksum, content_digest
from medkor_jax.data.pairs import both_ways
from medkor_jax.data.rows import Source
from medkor_jax.eval.exam import READ_VERSION, contexts
from medkor_jax.eval.translation import STOP
from medkor_jax.eval.verdict import GateClosed, amend_digests, read_verdict, require_open
from medkor_jax.io import models
from medkor_jax.io.files import write_sealed
from medkor_jax.io.models import Model
from medkor_jax.io.old_formats import RECORD_FORMAT, upgraded_record
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.named_model import open_model, read_record
from medkor_jax.run.phases import Exam, Phase, Recipe
from medkor_jax.run.roles import JUDGED, TRAINED, roles_of
from medkor_jax.train.stage import Stage


class Stale(GateClosed):
    """Something was made from what has changed since; the message says what, and what to do."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decides how a phase is trained and how it is judged, by name: settings as they are, contents as digests."""

    trained: Mapping[str, Any]
    judged: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a phase left. record: in today's format; seal: digest of the one on disk, which the verdict names.

    judged_otherwise: the names of what would be judged in another way now.
    """

    model: Model
    record: Mapping[str, Any]
    seal: str
    judged_otherwise: tuple[str, ...]


class Lineage:
    """The phases of one run directory, as the recipe has them now against what they were made from."""

    def __init__(self, recipe: Recipe, corpora: Corpora, directory: pathlib.Path, *, accept_changed: bool = False) -> None:
        """accept_changed: what a finished phase was trained on or with may differ from the recipe; it is recorded."""
        self._recipe, self._corpora, self._directory, self._accepts = recipe, corpora, directory, accept_changed
        self._phases = {phase.name: phase for phase in recipe.phases}
        self._facts: dict[str, Facts] = {}
        self._opened: dict[str, Model] = {}

    def facts(self, phase: Phase) -> Facts:
        if phase.name not in self._facts:
            self._facts[phase.name] = facts_of(self._recipe, self._corpora, phase)
        return self._facts[phase.name]

    def upstream(self, phase: Phase) -> list[Model]:
        """Returns the models the phase may start from. Raises: GateClosed if one of them is a phase that may not be."""
        return [self.open(name) if name in self._phases else self._outside(name) for name in self._recipe.upstream_of(phase)]

    def open(self, name: str) -> Model:
        """Returns a finished phase's model, if its verdict opens the next phase and its whole chain is as it was.

        Raises: GateClosed, of the first link that is not.
        """
        if name not in self._opened:
            phase = self._phases[name]
            read_verdict(self._directory / name / "verdict.json")
            finished = self.finished(phase)
            if finished is None:
                raise GateClosed(f"{self._directory / name} was not finished; run {name} first")
            if finished.judged_otherwise:
                raise Stale(f"{name} was judged by something else ({', '.join(finished.judged_otherwise)}); run {name} again: it is judged anew, not trained")
            require_open(self._directory / name / "verdict.json", {"weights": finished.model.digest, "record": finished.seal})
            self._opened[name] = finished.model
        return self._opened[name]

    def finished(self, phase: Phase) -> Finished | None:
        """Returns what the phase left when it ended; None if it never did.

        Raises: Stale if it was made from other models, data or settings than it would be made from now;
        GateClosed if its verdict is damaged.
        """
        directory = self._directory / phase.name
        stored = hosts.first(f"record of {phase.name}", lambda: read_record(directory))
        if stored is None:
            return None
        record = upgraded_record(stored)
        if missing := [name for name in record["upstream"] if name["phase"] and not (self._directory / name["phase"] / "verdict.json").exists()]:
            raise Stale(f"{phase.name} was made from {missing[0]['phase']}, which is not there any more; {self._way_out(phase, accept=False)}")
        now = [model.digest for model in self.upstream(phase)]
        if now != [one["digest"] for one in record["upstream"]]:
            names = " and ".join(self._recipe.upstream_of(phase))
            raise Stale(f"{phase.name} was made from another {names} than the present one; {self._way_out(phase, accept=False)}")
        facts = self.facts(phase)
        accepted = record["accepted"]
        changed = [c for c in changes(record, facts, rounds=record["rounds"]) if accepted.get(c.name, _NEVER) != c.now]
        if changed and not self._accepts:
            raise Stale(f"{phase.name} was trained otherwise: {'; '.join(map(str, changed[:6]))}. {self._way_out(phase, accept=True)}")
        if changed:
            stored = record = self._accept(directory, record, changed)
        model = models.open_model(directory)
        if model.digest != record["model"]:
            raise Stale(f"{phase.name}: its weights on disk are not those it left. {self._way_out(phase, accept=False)}")
        return Finished(model, record, checksum(stored), tuple(c.name for c in _differing(record["judged"], facts.judged)))

    def write_record(
        self, phase: Phase, *, upstream: list[Model], chosen: str, model: str, rounds: int, resumed: Finished | None
    ) -> dict[str, str]:
        """Writes what made the phase; returns the digests that its verdict has to hold.

        chosen, model: digests of the model it started from and of the one it left; resumed: what it had left before it
        was judged anew, and was not trained from the start.
        """
        facts, names = self.facts(phase), self._recipe.upstream_of(phase)
        record = {
            "format": RECORD_FORMAT, "phase": phase.name, "model": model, "chosen": chosen, "rounds": rounds,
            "upstream": [{"phase": name if name in self._phases else "", "digest": m.digest} for name, m in zip(names, upstream)],
            "trained": resumed.record["trained"] if resumed else facts.trained, "judged": facts.judged,
            "accepted": resumed.record["accepted"] if resumed else {},
        }  # fmt: skip
        self._opened.pop(phase.name, None)
        return self._store(self._directory / phase.name, record)

    def _store(self, directory: pathlib.Path, record: dict[str, Any]) -> dict[str, str]:
        write_sealed(directory / "record.json", record)
        settings = {**record["trained"], **record["judged"]}
        contents = {name: settings.pop(name) for name in list(settings) if _is_content(name)}
        digests = {"data": checksum(contents), "config": checksum(settings), "record": checksum(record)}
        return {"weights": record["model"], **digests}

    def _accept(self, directory: pathlib.Path, record: dict[str, Any], changed: list[Change]) -> dict[str, Any]:
        """Records that a person accepts `changed`, in the record and in the verdict that names it."""
        for change in changed:
            say(f"{record['phase']}: accepted although it was trained otherwise: {change}")
        record = record | {"accepted": record["accepted"] | {change.name: change.now for change in changed}}
        amend_digests(directory / "verdict.json", self._store(directory, record))
        return record

    def _way_out(self, phase: Phase, *, accept: bool) -> str:
        later = [p.name for p in self._recipe.phases if self._stands_on(p, phase.name) and (self._directory / p.name).exists()]
        restart = " ".join(f"--restart {name}" for name in (phase.name, *later))
        return f"Run it anew with {restart}" + (", or keep it with --accept-changed" if accept else "")

    def _stands_on(self, phase: Phase, name: str) -> bool:
        names = [n for n in self._recipe.upstream_of(phase) if n in self._phases and n != phase.name]
        return name in names or any(self._stands_on(self._phases[n], name) for n in names)

    def _outside(self, name: str) -> Model:
        if name not in self._opened:
            self._opened[name] = open_model(name)
        return self._opened[name]


def facts_of(recipe: Recipe, corpora: Corpora, phase: Phase) -> Facts:
    """Returns what decides how `phase` is trained and judged, as the recipe and the data are now."""
    trained: dict[str, Any] = dict(roles_of(recipe, TRAINED)) | dict(roles_of(phase, TRAINED))
    for which, stage in (("train", phase.train), ("remedy", phase.remedy)):
        trained |= {f"{which}.{name}": value for name, value in _stage_facts(stage, recipe, corpora)}
    judged: dict[str, Any] = dict(roles_of(phase, JUDGED))
    reference = recipe.reference_of(phase)
    judged["reference"] = reference.name if reference else None
    judged |= {f"exams.{exam.source.name}": exam_asked(recipe, corpora, exam) for exam in recipe.exams_of(phase)}
    judged |= {f"watch.{source.name}": held_out_asked(recipe, corpora, source) for source in recipe.held_out}
    judged |= {f"translations.{source.name}": pairs_asked(recipe, corpora, source) for source in phase.translations}
    return Facts(trained, judged)


def exam_asked(recipe: Recipe, corpora: Corpora, exam: Exam) -> str:
    """Returns a digest of all that is asked in an exam, and of how: what the answers depend on beside the weights."""
    questions = corpora.questions(exam.source)
    shots = corpora.questions(exam.fewshot)[: exam.shots] if exam.fewshot else ()
    reasoned = (exam.max_new_tokens, recipe.reasoning) if exam.mode == "reason" else ()
    said = (READ_VERSION, exam.mode, contexts(questions, exam.mode, shots), content_digest(questions), reasoned)
    return checksum(repr((said, _how(recipe))))


def held_out_asked(recipe: Recipe, corpora: Corpora, source: Source) -> str:
    """The same of a held-out loss. The shape of its batches decides which tokens are the first `held_out_tokens`."""
    stage = recipe.phases[0].train
    shape = (stage.batch_size, stage.seq_len, recipe.held_out_tokens)
    return checksum(repr((corpora.digest(source), shape, _how(recipe))))


def pairs_asked(recipe: Recipe, corpora: Corpora, source: Source) -> str:
    """The same of pairs to translate."""
    pairs = corpora.pairs(source)
    prompts = [text for pair in pairs for example in both_ways(pair) for text, _ in example.parts]
    return checksum(repr((prompts, STOP, content_digest(pairs), recipe.max_translation_tokens, _how(recipe))))


def _how(recipe: Recipe) -> tuple[str, ...]:
    return recipe.dtype, recipe.param_dtype, recipe.language_unit


def _stage_facts(stage: Stage, recipe: Recipe, corpora: Corpora):
    """Yields (name, value) of what decides a stage; a stage that is not trained has one fact."""
    if not stage.steps:
        yield "steps", 0
        return
    yield from roles_of(stage, TRAINED)
    for rule in stage.rules_in_force:
        yield f"rules.{rule.name}", dataclasses.asdict(rule)
    if stage.take == "best":
        yield "validate_every", stage.validate_every
        yield from ((f"validation.{source.name}", corpora.said(source)) for source in stage.validation)
    yield from ((f"data.{source.name}", corpora.said(source)) for source in stage.data)
    if stage.reward.is_on or any(source.kind == "reasoning" for source in stage.data):
        yield "reasoning", dataclasses.asdict(recipe.reasoning)


@dataclasses.dataclass(frozen=True)
class Change:
    """A fact that is not what it was. None: it was not there, or is not any more."""

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} was {self.was if self.was is not None else 'absent'}, is {self.now if self.now is not None else 'absent'}"


_NEVER = object()


def changes(record: Mapping[str, Any], facts: Facts, *, rounds: int) -> list[Change]:
    """Returns what was trained otherwise; the remedy counts where it was trained."""
    found = _differing(record["trained"], facts.trained)
    return [change for change in found if rounds or not change.name.startswith("remedy")]


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    return [Change(name, was.get(name), now.get(name)) for name in {**was, **now} if was.get(name) != now.get(name)]


def _is_content(name: str) -> bool:
    return name.split(".")[0] in ("exams", "watch", "translations") or ".data." in name or ".validation." in name
