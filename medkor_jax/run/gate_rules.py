"""What a gate may ask of a phase, known before any file is read.

    check_gates(recipe)       # ValueError with what to write instead

A gate is refused if what it reads is not measured, if it would compare a model with itself, or if it compares with
a score that was itself chosen for being high. Whether its questions are enough is `gate_outlook`'s business.
"""

from __future__ import annotations

from typing import TypeGuard

from medkor_jax.eval.gate import Condition, Gate
from medkor_jax.eval.metric import metric_needs
from medkor_jax.run.phases import Phase, Recipe


def check_gates(recipe: Recipe) -> None:
    """Raises: ValueError, naming phase and condition, if something that a gate asks cannot be meant."""
    for phase in recipe.phases:
        every: tuple[Gate | Condition, ...] = (phase.gate, *phase.gate.requires)
        for asked in every:
            what = f"phase {phase.name!r}: " + (f"condition {asked.name!r}" if isinstance(asked, Condition) else "the gate")
            _check_is_measured(recipe, phase, asked, what)
            if compares(asked):
                _check_comparison(recipe, phase, asked, what)


def compares(asked: Gate | Condition) -> bool:
    return is_of_text(asked) or asked.reading != "absolute"


def is_of_text(asked: Gate | Condition) -> TypeGuard[Condition]:
    return isinstance(asked, Condition) and bool(asked.held_out)


def with_reference(asked: Gate | Condition) -> bool:
    """Whether what is compared with is the reference; where no phase is marked as one, the phase's start stands for it."""
    return isinstance(asked, Gate) or asked.against == "reference"


def exam_of(phase: Phase, asked: Gate | Condition) -> str:
    """Returns the exam that is asked about, "" for a held-out text."""
    return phase.exam if isinstance(asked, Gate) else asked.exam


def exams_asked(phase: Phase) -> set[str]:
    """Returns every exam that has a say in whether the phase's gate opens."""
    return {phase.exam, *(condition.exam for condition in phase.gate.requires if condition.exam)}


def chosen_by(phase: Phase) -> set[str]:
    """Returns the exams whose scores decided which model the phase leaves: a candidate, or the first round that passed."""
    return exams_asked(phase) if phase.chooses else set()


def _check_is_measured(recipe: Recipe, phase: Phase, asked: Gate | Condition, what: str) -> None:
    if is_of_text(asked):
        name, measured = asked.held_out, [source.name for source in recipe.held_out]
    else:
        name, measured = exam_of(phase, asked), [exam.source.name for exam in recipe.exams_of(phase)]
    if name not in measured:
        kind = "held-out texts" if is_of_text(asked) else "exams of this phase"
        raise ValueError(f"{what} asks about {name!r}; {kind}: {', '.join(measured) or 'none'}")
    if not is_of_text(asked) and (said := metric_needs(asked.metric, recipe.exam(name).mode)):
        raise ValueError(f"{what}: {said}")


def _check_comparison(recipe: Recipe, phase: Phase, asked: Gate | Condition, what: str) -> None:
    if phase.candidates:
        raise ValueError(
            f"{what} compares, and the phase chooses among candidates: each would be compared with itself and pass; use reading "
            "'absolute', with the score that a candidate must reach as threshold"
        )
    reference, exam = recipe.reference_of(phase), exam_of(phase, asked)
    if isinstance(asked, Condition) and with_reference(asked) and reference is None:
        raise ValueError(f"{what} compares with the reference, and no phase before has is_reference=True; use against='start'")
    if reference is None or not with_reference(asked):
        if not phase.changes_model and phase.gate.decides:
            raise ValueError(
                f"{what} compares with the phase's own start, and the phase trains nothing before it is judged: it would be "
                "compared with itself; use reading 'absolute', or compare with a phase that has is_reference=True"
            )
        return
    if exam and exam not in [exam.source.name for exam in recipe.exams_of(reference)]:
        raise ValueError(f"{what} compares with {reference.name}, to which exam {exam!r} is not put; name it in that exam's phases")
    if exam in chosen_by(reference) and phase.gate.decides:
        raise ValueError(
            f"{what} compares with {reference.name} by exam {exam!r}, by which {reference.name} chose its model: the reference's "
            "score there is the one that was high enough to stop at, and an equal model would seem to lose. Judge one of the two "
            "phases by other questions (another split or file; or one file twice, with skip and limit)"
        )
