"""What decides how a phase is trained and how it is judged, by name; and what of it is not what it was.

    facts = facts_of(recipe, corpora, phase)
    facts.trained["train.steps"], facts.judged["exams.english"]         # 4000, a digest
    changes(record, facts, rounds=0)                                    # Change("train.steps", 2000, 4000), ...

Settings are here as they are, contents as digests. What decides nothing (a title, a licence, how often to log) is left
out; `roles` says for every key which it is. What it does not do: judge whether a change may be (`lineage`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from medkor_jax.data.contents import checksum, content_digest
from medkor_jax.data.pairs import both_ways
from medkor_jax.data.rows import Source
from medkor_jax.data.thinking import SWITCH
from medkor_jax.eval.asked import contexts, systems
from medkor_jax.eval.exam import READ_VERSION
from medkor_jax.eval.translation import STOP
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.phases import Exam, Phase, Recipe
from medkor_jax.run.roles import JUDGED, TRAINED, roles_of
from medkor_jax.train.stage import Stage


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decides how a phase is trained and how it is judged, by name: settings as they are, contents as digests."""

    trained: Mapping[str, Any]
    judged: Mapping[str, Any]


def facts_of(recipe: Recipe, corpora: Corpora, phase: Phase) -> Facts:
    """Returns what decides how `phase` is trained and judged, as the recipe and the data are now."""
    trained: dict[str, Any] = dict(roles_of(recipe, TRAINED)) | dict(roles_of(phase, TRAINED))
    if corpora.style_digest:
        trained["style"] = corpora.style_digest
    for which, stage in (("train", phase.train), ("remedy", phase.remedy)):
        trained |= {
            f"{which}.{name}": value for name, value in _stage_facts(stage, recipe, corpora)
        }
    judged: dict[str, Any] = dict(roles_of(phase, JUDGED))
    reference = recipe.reference_of(phase)
    judged["reference"] = reference.name if reference else None
    if len(phase.candidates) > 1:  # each is a look: how sure one has to be depends on their number
        judged["candidates"] = len(phase.candidates)
    judged |= {
        f"exams.{exam.source.name}": exam_asked(recipe, corpora, exam)
        for exam in recipe.exams_of(phase)
    }
    judged |= {
        f"watch.{source.name}": held_out_asked(recipe, corpora, source)
        for source in recipe.held_out
    }
    judged |= {
        f"translations.{source.name}": pairs_asked(recipe, corpora, source)
        for source in phase.translations
    }
    return Facts(trained, judged)


def exam_asked(recipe: Recipe, corpora: Corpora, exam: Exam) -> str:
    """Returns a digest of all that is asked in an exam, and of how: what the answers depend on beside the weights."""
    questions = corpora.questions(exam.source)
    shots = corpora.questions(exam.fewshot)[: exam.shots] if exam.fewshot else ()
    reasoned = (exam.max_new_tokens, recipe.reasoning) if exam.mode == "reason" else ()
    limit = exam.max_thinking_tokens  # not said where it is 0, as before there was one
    thinking = ((limit, SWITCH),) if limit else ()
    in_front = [text for text in systems(questions, exam.mode) if text]
    said = (
        READ_VERSION,
        exam.mode,
        in_front + contexts(questions, exam.mode, shots),
        content_digest(questions),
        reasoned,
        *thinking,
    )
    return checksum(repr((said, _how(recipe, corpora))))


def held_out_asked(recipe: Recipe, corpora: Corpora, source: Source) -> str:
    """The same of a held-out loss. The shape of its batches decides which tokens are the first `held_out_tokens`."""
    stage = recipe.phases[0].train
    shape = (stage.batch_size, stage.seq_len, recipe.held_out_tokens)
    return checksum(repr((corpora.digest(source), shape, _how(recipe, corpora))))


def pairs_asked(recipe: Recipe, corpora: Corpora, source: Source) -> str:
    """The same of pairs to translate."""
    pairs = corpora.pairs(source)
    prompts = [text for pair in pairs for example in both_ways(pair) for text, _ in example.parts]
    return checksum(
        repr(
            (
                prompts,
                STOP,
                content_digest(pairs),
                recipe.max_translation_tokens,
                _how(recipe, corpora),
            )
        )
    )


def _how(recipe: Recipe, corpora: Corpora) -> tuple[str, ...]:
    """Plain prompts are in the texts; a template is told by its digest."""
    chat = (corpora.style_digest,) if corpora.style_digest else ()
    return recipe.dtype, recipe.param_dtype, recipe.language_unit, *chat


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
        yield from (
            (f"validation.{source.name}", corpora.said(source)) for source in stage.validation
        )
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


def changes(record: Mapping[str, Any], facts: Facts, *, rounds: int) -> list[Change]:
    """Returns what was trained otherwise; the remedy counts where it was trained."""
    found = differing(record["trained"], facts.trained)
    return [change for change in found if rounds or not change.name.startswith("remedy")]


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    return [
        Change(name, was.get(name), now.get(name))
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]


def is_content(name: str) -> bool:
    return (
        name.split(".")[0] in ("exams", "watch", "translations")
        or ".data." in name
        or ".validation." in name
    )
