"""Everything that refuses a run before it trains: what `medkor run` asks first, and `medkor data check` shows whole.

    for check in checks(recipe, corpora, mesh).values(): check()        # raises at the first that does not hold
    report = check_recipe(recipe)                                       # all of them, with what is in the data

Both ask the same functions of the same data, so that what is clean for one is clean for the other.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from functools import partial

import jax
from jax.sharding import Mesh

from medkor_jax.data.check import TRAINED, DataReport, check
from medkor_jax.data.licences import licence_notes, licence_of
from medkor_jax.data.pairs import DIRECTIONS, translation_ids
from medkor_jax.data.parts import check_parts
from medkor_jax.data.rows import BadDataError
from medkor_jax.data.thinking import switch
from medkor_jax.eval.harness import MAX_NEW_TOKENS
from medkor_jax.eval.scoring import Scorer
from medkor_jax.eval.verdict import GateClosed, require_passed
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import check_batch
from medkor_jax.run import translated
from medkor_jax.run.asked_form import asked_form
from medkor_jax.run.at_hand import is_at_hand
from medkor_jax.run.candidates import ON
from medkor_jax.run.choosing import check_order, may_run, told
from medkor_jax.run.corpora import Corpora, LeakError, uses_of
from medkor_jax.run.gate_outlook import gate_outlook
from medkor_jax.run.named_model import open_model
from medkor_jax.run.new_tokens import check_new_tokens
from medkor_jax.run.phases import ConfigError, Exam, Phase, Recipe
from medkor_jax.run.stage_plans import stage_plan
from medkor_jax.run.stated import stated_options
from medkor_jax.run.translating import translate_all
from medkor_jax.train.drawing import make_batches
from medkor_jax.train.stage import Stage

LEAKS, LICENCES, GATES, TRANSLATIONS = "leaks", "licences", "gates", "translations"
OPTIONS = "options"


def make_ready(
    recipe: Recipe, corpora: Corpora, mesh: Mesh, scorer_of: Callable[[str], Scorer]
) -> None:
    """Makes all checks, says what they say, and translates what the run translates for itself (`translated`).

    An exam that is still to be translated is checked by its questions as they are given, and then by the rows that passed.

    Raises: as `require_upstream`, before anything of the data is read; then as `checks`.
    """
    require_upstream(recipe)
    pending = translated.find_translations(recipe, corpora)
    _ask(checks(recipe, corpora, mesh))
    if pending:
        with jax.set_mesh(mesh):
            translate_all(recipe, corpora, pending, scorer_of)
        by_rows = {
            LEAKS,
            OPTIONS,
            GATES,
            *_stages_with(recipe, {source.name for source in pending}),
        }
        again = checks(recipe, corpora, mesh)
        _ask({name: again[name] for name in again if name in by_rows})


def require_upstream(recipe: Recipe) -> None:
    """Looks for the verdicts of the phases that the run starts from and does not run itself.

    Raises: GateClosed, naming the phase, if one is not there or did not pass.
    """
    others = {phase.name for phase in recipe.phases if phase not in recipe.in_force}
    for phase in recipe.in_force:
        certain = recipe.upstream_of(phase)[0]  # those behind it may never be opened
        if certain not in others:
            continue
        try:
            require_passed(pathlib.Path(recipe.run_dir) / certain / "verdict.json")
        except GateClosed as error:
            raise GateClosed(f"{phase.name} starts from {certain}: {error}") from error


def _ask(asked: dict[str, Callable[[], str | None]]) -> None:
    for ask in asked.values():
        if words := ask():
            say(words)


def _stages_with(recipe: Recipe, names: set[str]) -> Iterator[str]:
    """Yields the checks of the stages that read one of these sources."""
    for phase, stage, name in _stages(recipe):
        if names & {source.name for source in (*stage.data, *stage.validation)}:
            yield f"{phase.name}/{name}"


def _stages(recipe: Recipe) -> Iterator[tuple[Phase, Stage, str]]:
    for phase in may_run(recipe):
        for stage, name in ((phase.train, "train"), (phase.remedy, "remedy")):
            if stage.steps:
                yield phase, stage, name


def checks(
    recipe: Recipe, corpora: Corpora, mesh: Mesh | None = None
) -> dict[str, Callable[[], str | None]]:
    """Returns the checks by name, in the order in which a run makes them. Each returns what is to be said, if anything.

    mesh None: batches are not compared with the devices.

    Raises, when called: ConfigError, BadDataError, corpora.LeakError, WeightsError, ValueError.
    """
    found: dict[str, Callable[[], str | None]] = {
        "order": partial(_check_upstream, recipe),
        "parts": partial(check_parts, [use.source for use in uses_of(recipe)]),
        LICENCES: partial(_told_licences, recipe),
        TRANSLATIONS: partial(translated.told, recipe, corpora),
        LEAKS: partial(corpora.refuse_leaks, recipe),
        OPTIONS: partial(stated_options, recipe, corpora),
        GATES: partial(gate_outlook, recipe, corpora),
        "lengths": partial(_check_lengths, recipe, corpora),
    }
    for phase in may_run(recipe):
        if phase.language.adds_tokens:
            found[f"{phase.name}/new tokens"] = partial(check_new_tokens, recipe, corpora, phase)
    for phase, stage, name in _stages(recipe):
        found[f"{phase.name}/{name}"] = partial(
            _check_stage, recipe, corpora, mesh, phase, stage, name
        )
    if not any(use.source.translated_to for use in uses_of(recipe)):
        del found[TRANSLATIONS]
    return found


def check_recipe(recipe: Recipe) -> DataReport:
    """Returns what is in the recipe's sources, and everything that would refuse a run of it before it trains.

    Rows that cannot be read are listed, and the rest is looked at without them.
    """
    corpora = Corpora(True, recipe.reasoning, say=False)
    translated.find_translations(recipe, corpora)
    obstacles: dict[str, list[str]] = {}
    try:
        before = corpora.read_before(recipe)
    except LeakError as error:
        before, obstacles[str(error)] = [], [LEAKS]
    report = check(
        uses_of(recipe),
        asked_form(recipe).style,
        allowed=recipe.allow_leaks,
        form=recipe.reasoning,
        load=corpora.of_use,
        compared=corpora.compared,
        read_before=before,
    )
    unreadable = {str(bad) for source in report.sources for bad in source.bad}
    for name, ask in checks(recipe, corpora).items():
        if name == LEAKS:
            continue
        try:
            ask()
        except ValueError as error:
            if not (
                isinstance(error, BadDataError) and {str(bad) for bad in error.bad} <= unreadable
            ):  # these are said already
                obstacles.setdefault(str(error), []).append(name)
    return dataclasses.replace(
        report,
        obstacles=tuple(f"{', '.join(names)}: {words}" for words, names in obstacles.items()),
    )


def _check_upstream(recipe: Recipe) -> str:
    """Returns what is tried only if something before it does not pass."""
    names = [phase.name for phase in recipe.phases]
    for phase in recipe.in_force:
        for name in filter(
            None, (phase.after, *[c for c in phase.candidates if c.startswith("phase")])
        ):
            if name not in names and ON not in name:
                raise ConfigError(
                    f"{phase.name} starts from {name!r}, which is none of {', '.join(names)}"
                )
        check_order(recipe, phase)
    return told(recipe)


def _told_licences(recipe: Recipe) -> str | None:
    """Returns what the licences of what is trained on, or the weights have read, make of the model, if anything."""
    read = [use.source for use in uses_of(recipe) if use.purpose == TRAINED]
    if is_at_hand(recipe.weights):
        read += [reading.source for reading in open_model(recipe.weights).read]
    notes = licence_notes([{"name": s.name, "licence": licence_of(s)} for s in read])
    return "\n".join(f"licences: {note}" for note in notes) or None


def _check_stage(
    recipe: Recipe, corpora: Corpora, mesh: Mesh | None, phase: Phase, stage: Stage, name: str
) -> None:
    """Builds a stage's batches once, so that data that does not fit is found before any training."""
    if mesh is not None:
        check_batch(stage.batch_size, stage.microbatches, mesh)
    make_batches(
        stage_plan(recipe, corpora, phase, stage, name),
        asked_form(recipe).style,
        recipe.language_unit,
    )


def _check_room(exam: Exam, name: str, style: str, room: int) -> None:
    thinking = exam.max_thinking_tokens
    try:
        switch(thinking, style)
    except ValueError as error:
        raise ValueError(f"exam {exam.source.name!r}: {error}") from error
    said = MAX_NEW_TOKENS if exam.mode == "harness" else exam.max_new_tokens
    if exam.mode == "harness" and not thinking and said >= room:
        raise ValueError(
            f"exam {exam.source.name!r}: harness mode writes up to {said} tokens, and {name} has {room} positions for "
            "prompt and answer; ask in letter mode, which generates nothing"
        )
    if (exam.mode == "reason" or thinking) and said + thinking >= room:
        thought = f" and max_thinking_tokens {thinking}" if thinking else ""
        raise ValueError(
            f"exam {exam.source.name!r}: max_new_tokens is {said}{thought}, and {name} has {room} positions for "
            "prompt and answer; ask for fewer"
        )


def _check_lengths(recipe: Recipe, corpora: Corpora) -> None:
    """Raises: ValueError if an exam or a pair that judges has no room in the model that the run starts from."""
    model = open_model(recipe.weights)
    style, room = asked_form(recipe).style, model.config.max_positions
    for exam in (*recipe.exams, *recipe.final):
        _check_room(exam, model.name, style.name, room)
    for source in dict.fromkeys(
        source for phase in recipe.in_force for source in phase.translations
    ):
        asked = [
            (pair, getattr(pair, given), given, to)
            for pair in corpora.pairs(source)
            for given, to in DIRECTIONS
        ]
        for pair, text, given, to in asked:
            n_tokens = len(translation_ids(style, text, given, to))
            if n_tokens + recipe.max_translation_tokens > room:
                raise ValueError(
                    f"{source.name}: {pair.id} has {n_tokens} tokens as a prompt; with max_translation_tokens "
                    f"{recipe.max_translation_tokens} that is more than the {room} positions of {model.name}"
                )
