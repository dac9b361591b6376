"""The exams that a run translates for itself: which, by which weights, whether that was done, and what is to be done.

    pending = find_translations(recipe, corpora)        # those that are there are read from now on
    print(told(recipe, corpora))

A source with `translated_to` gives the rows of the exam that it names, put into that language by the run's own weights, as they
are before any training, or by its `translator`. What is there is read if it was made by the same weights, prompts and settings
of the same rows (RUN_DIR/translated/NAME.json). What it does not do: translate (`translating`).
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.contents import checksum, file_digest
from medkor_jax.data.pairs import translation_ids
from medkor_jax.data.question import Question
from medkor_jax.data.rows import Source, file_label
from medkor_jax.data.style import Style
from medkor_jax.eval.exam_translation import (
    MAX_NEW_TOKENS,
    lines_of,
    other_language,
    settings_of,
)
from medkor_jax.io.loaded_model import style_of
from medkor_jax.io.models import Model
from medkor_jax.parallel import hosts
from medkor_jax.run.asked_form import asked_form
from medkor_jax.run.at_hand import is_at_hand
from medkor_jax.run.corpora import Corpora, uses_of
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import ConfigError, Recipe
from medkor_jax.run.translation_files import (
    DIRECTORY,
    LANGUAGE_NAMES,
    Translation,
    as_translated,
    read_report,
    report_words,
)

BATCH_SIZE = 16  # questions; fixed, so that a row depends on no machine
_LONGEST = 8  # lines, by their letters, whose tokens are counted


def translated_sources(recipe: Recipe) -> list[Source]:
    """Returns every source that is translated, each once."""
    found = [use.source for use in uses_of(recipe) if use.source.translated_to]
    return list({as_translated(source): source for source in reversed(found)}.values())[::-1]


def translators_of(recipe: Recipe) -> dict[str, list[Source]]:
    """Returns the weights that translate, the run's own last, each with what it translates."""
    found: dict[str, list[Source]] = {}
    for source in translated_sources(recipe):
        found.setdefault(translator_of(recipe, source), []).append(source)
    own = {recipe.weights: found.pop(recipe.weights)} if recipe.weights in found else {}
    return found | own


def translator_of(recipe: Recipe, source: Source) -> str:
    return source.translator or recipe.weights


def file_of(recipe: Recipe, source: Source) -> pathlib.Path:
    return pathlib.Path(recipe.run_dir) / DIRECTORY / f"{source.name}.jsonl"


def originals_of(corpora: Corpora, source: Source) -> Sequence[Question]:
    """Returns the questions as they are given. Raises: ConfigError if some are in the other language already; BadDataError."""
    questions = corpora.questions(source.original)
    if done := [question for question in questions if question.language == source.translated_to]:
        raise ConfigError(
            f"{source.name}: {len(done)} of its {len(questions)} questions are in {source.translated_to!r} already, the first "
            f"{done[0].id}; name the language of the rows that are to be translated "
            f"(language={other_language(source.translated_to)!r}), or leave out translated_to"
        )
    return questions


def find_translations(recipe: Recipe, corpora: Corpora) -> list[Source]:
    """Lets `corpora` read every translation that is there and still what would be made; returns the sources that have none."""
    pending = []
    for source in translated_sources(recipe):
        look = functools.partial(_found, recipe, corpora, source)
        if made := hosts.first(f"translation {source.name}", look):
            take(recipe, corpora, source, made)
        else:
            pending.append(source)
    return pending


def told(recipe: Recipe, corpora: Corpora) -> str:
    """Returns what is translated, from what and by which weights, and what was translated before; "" if nothing is.

    Raises: ConfigError if it cannot be meant: a language that the rows have already, two that would share a file, a line without
    room in the model.
    """
    lines, named = [], set[str]()
    for source in translated_sources(recipe):
        if source.name in named:
            raise ConfigError(
                f"two sources named {source.name!r} are translated otherwise, and would share {file_of(recipe, source)}: give one "
                "of them another name"
            )
        named.add(source.name)
        name = translator_of(recipe, source)
        if made := corpora.translations.of(source):
            report = read_report(made.path.with_suffix(".json"))
            lines.append(
                f"  {report_words(report)}" if report else f"  {source.name}: {made.words}"
            )
            continue
        by = f"{name}{', as it is before any training' if name == recipe.weights else ''}"
        head = f"  {source.name}: {file_label(source)} into {LANGUAGE_NAMES[source.translated_to]} by {by}"
        if not corpora.has(source.original):
            lines.append(f"{head}; how many questions is not known before it is fetched")
            continue
        questions = originals_of(corpora, source)
        asked = [
            line for question in questions for line in lines_of(question, source.translated_to)
        ]
        _check_room(recipe, source, name, asked)
        lines.append(f"{head}: {len(questions):,} questions, {len(asked):,} lines")
    return (
        "\n".join(["Translated by the run, once, before anything is trained:", *lines])
        if lines
        else ""
    )


def _check_room(recipe: Recipe, source: Source, name: str, lines: Sequence[str]) -> None:
    """Raises: ConfigError if a line has no room in the model that translates it, as far as that model is here."""
    if not is_at_hand(name):
        return
    model = open_model(name)
    style, room = _style(recipe, name, model), model.config.max_positions
    given = other_language(source.translated_to)
    for line in sorted(lines, key=len)[-_LONGEST:]:
        n_tokens = len(translation_ids(style, line, given, source.translated_to))
        if n_tokens + MAX_NEW_TOKENS > room:
            raise ConfigError(
                f"{source.name}: a line of {n_tokens} tokens and the {MAX_NEW_TOKENS} of its translation are more than the {room} "
                f"positions of {name}: {line[:60]!r}; name another translator"
            )


def _style(recipe: Recipe, name: str, model: Model) -> Style:
    """Returns the form in which it is asked: the run's own weights as the run asks them, others as they were made to be."""
    return asked_form(recipe).style if name == recipe.weights else style_of(model)


def settings_for(
    recipe: Recipe, source: Source, questions: Sequence[Question], model: Model
) -> dict[str, Any]:
    """Returns what decides what is written: weights, their form and precision, the prompt, and the questions."""
    to = source.translated_to
    style = _style(recipe, translator_of(recipe, source), model)
    how: dict[str, Any] = dict(to=to, batch_size=BATCH_SIZE, max_new_tokens=MAX_NEW_TOKENS)
    return settings_of(model.digest, style, questions, dtype=recipe.dtype, **how) | {
        "held_in": recipe.param_dtype,
        "template": style.digest,
        "prompt": checksum(translation_ids(style, "1", other_language(to), to)),
    }


def take(recipe: Recipe, corpora: Corpora, source: Source, report: dict[str, Any]) -> None:
    made = Translation(file_of(recipe, source), report["n_questions"], report["n_passed"])
    corpora.translations.take(source, made)


def _found(recipe: Recipe, corpora: Corpora, source: Source) -> dict[str, Any] | None:
    """Returns the report of a whole translation of these rows by these weights; None if there is none."""
    out, name = file_of(recipe, source), translator_of(recipe, source)
    report = read_report(out.with_suffix(".json"))
    if not report or not report["digest"] or not out.is_file():
        return None
    if file_digest(out) != report["digest"]:
        return None
    if is_at_hand(name) and corpora.has(source.original):
        now = settings_for(recipe, source, originals_of(corpora, source), open_model(name))
        return report if report["made_by"] == now else None
    # What it was made by, or from, need not be fetched again to read what came of it.
    return report if (report["by"], report["to"]) == (name, source.translated_to) else None
