"""What the gates of a run can tell, said before anything is trained.

    print(gate_outlook(recipe, corpora))        # ConfigError if a gate cannot open for a model as good as its reference

Every gate in force is named with the questions it has and would need, how likely an equal model opens it, how likely
one that is 5 points worse does, and what it does when it stays closed. Weights are not needed, only the exams.
"""

from __future__ import annotations

import statistics

from medkor_jax.data.likeness import content_key
from medkor_jax.data.rows import Source
from medkor_jax.eval.gate import MIN_QUESTIONS, Condition, Gate
from medkor_jax.eval.metric import KNOWING
from medkor_jax.eval.power import LEAST_CHANCE, outlook
from medkor_jax.eval.stats import confidence_of_look
from medkor_jax.run.at_hand import NotHereError
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.gate_rules import chosen_by, compares, exam_of, is_of_text, with_reference
from medkor_jax.run.phases import ConfigError, Phase, Recipe

_FOLLOWS = {
    "retain": "closed, its remedy is trained (each-layer) up to {rounds} times, then the run stops",
    "train": "closed, its remedy is trained up to {rounds} times, then the run stops",
    "stop": "closed, the run stops",
    "continue": "it records only and stops nothing; a remedy is never trained",
}


def gate_outlook(recipe: Recipe, corpora: Corpora) -> str:
    """Returns what each gate of the phases to run can tell; phases that ask the same are named together.

    Raises: ConfigError if a gate that decides cannot open for an equal model (chance below LEAST_CHANCE, or too few
    questions), asks for no more than guessing, or compares by questions that chose its reference.
    """
    told: dict[str, list[str]] = {}
    for phase in recipe.in_force:
        gate = phase.gate
        lines = [f"{_FOLLOWS[gate.on_failure].format(rounds=gate.rounds)}; {_looks(phase)}"]
        every: tuple[Gate | Condition, ...] = (gate, *gate.requires)
        for asked in every:
            try:
                told_of = _told(recipe, corpora, phase, asked)
            except NotHereError as error:
                told_of = f"NOT CHECKED: {error}"
            lines.append(f"    {_said(recipe, phase, asked)}: {told_of}")
        told.setdefault("\n".join(lines), []).append(phase.name)
    paragraphs = [f"  {', '.join(names)}: {text}" for text, names in told.items()]
    return "\n".join(["What the gates can tell (docs/GATES.md):", *paragraphs])


def reference_account(recipe: Recipe, phase: Phase) -> str:
    """Returns where the score comes from that the phase's gate compares with, "" if it compares with none."""
    if not compares(phase.gate):
        return ""
    reference = recipe.reference_of(phase)
    if reference is None:
        return (
            "The reference is the model this phase started from, measured on these questions before training. Where the phase "
            "before it was judged by them too, it may have stopped at a lucky score."
        )
    chose = sorted(chosen_by(reference))
    how = (
        f"it chose its model by {' and '.join(map(repr, chose))}"
        if chose
        else "it chose among nothing"
    )
    also = (
        ", these questions among them"
        if phase.exam in chose
        else "; these questions had no say in it"
    )
    return f"The reference is the model that {reference.name} left, measured once at its end: {how}{also}."


def _told(recipe: Recipe, corpora: Corpora, phase: Phase, asked: Gate | Condition) -> str:
    if is_of_text(asked):
        return "a number over fixed texts, without an interval"
    exam = recipe.exam(exam_of(phase, asked))
    questions = corpora.questions(exam.source)
    n, chance = len(questions), statistics.mean(1 / len(question.options) for question in questions)
    told = outlook(asked, n, 1 / chance, confidence=phase.gate.confidence, looks=phase.looks)
    what = f"{phase.name}, {_said(recipe, phase, asked)}"
    made = corpora.translations.of(exam.source)
    if made:
        what += f" ({made.words})"
    if phase.gate.decides:
        if n < MIN_QUESTIONS:
            raise ConfigError(
                f"{what}: {n} questions can open no gate; give the exam at least {MIN_QUESTIONS}, or set on_failure='continue'"
            )
        if not told.can_open:
            raise ConfigError(
                f"{what}: {told.words}. A gate is refused if an equal model (absolute: a faultless one) opens it in fewer than "
                f"{LEAST_CHANCE:.0%} of first looks. Give it more questions, a wider margin (lower threshold), fewer rounds, "
                "metric='probability' (letter and cloze modes), or reading='relative'; on_failure='continue' lets it record only"
            )
        is_below = (
            asked.reading == "absolute" and asked.metric in KNOWING and asked.threshold <= chance
        )
        if is_below and not asked.allow_chance:
            raise ConfigError(
                f"{what}: the threshold is not above guessing ({chance:.1%}), which opens no gate; ask for more"
            )
        _check_questions_apart(recipe, corpora, phase, asked, what)
    return f"{'at most ' if corpora.translations.is_awaited(exam.source) else ''}{told.words}"


def _check_questions_apart(
    recipe: Recipe, corpora: Corpora, phase: Phase, asked: Gate | Condition, what: str
) -> None:
    """Raises: ConfigError if another exam with the same questions chose the reference."""
    reference = recipe.reference_of(phase)
    if not compares(asked) or not with_reference(asked) or reference is None:
        return
    mine = _known(corpora, recipe.exam(exam_of(phase, asked)).source)
    for name in sorted(chosen_by(reference)):
        shared = mine & _known(corpora, recipe.exam(name).source)
        if shared:
            raise ConfigError(
                f"{what}: {len(shared)} of its questions are in exam {name!r} too, by which {reference.name} chose its model; a "
                "reference is measured by questions that did not choose it (skip and limit, another split or file)"
            )


def _known(corpora: Corpora, source: Source) -> set[str]:
    """Returns what names each question: a translation is the question that it was made from."""
    return {question.origin or content_key(question) for question in corpora.questions(source)}


def _said(recipe: Recipe, phase: Phase, asked: Gate | Condition) -> str:
    reference = recipe.reference_of(phase)
    than = reference.name if reference and with_reference(asked) else "the phase's start"
    if is_of_text(asked):
        return f"{asked.name}: loss on {asked.held_out!r} at most {asked.rise_nats:g} nats above {than}"
    bound = {
        "absolute": f"at least {asked.threshold:.1%}",
        "relative": f"at least {asked.threshold:.1%} of that of {than}",
        "non_inferior": f"at most {100 * (1 - asked.threshold):.1f} points below {than}",
    }[asked.reading]
    named = f"{asked.name}: " if isinstance(asked, Condition) else ""
    return f"{named}{asked.metric} on {exam_of(phase, asked)!r} {bound}"


def _looks(phase: Phase) -> str:
    confidence = phase.gate.confidence
    if phase.looks == 1:
        return f"one look, at {confidence:.0%}"
    each = confidence_of_look(confidence, phase.looks)
    return f"up to {phase.looks} looks, each at {each:.2%}, so that all together err as rarely as one at {confidence:.0%}"
