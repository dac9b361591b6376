"""Exams whose right options are stated by what is trained on more often than the wrong ones: they rise without learning.

    print(stated_options(recipe, corpora))      # "ALARM: ... whoever takes any of these options reaches 37.9%", "" if all is well

A model prefers what it has read, whatever is asked (measured: docs/EVALUATION.md, "What was read, and what was learnt"). What is
looked for is each option as it is spelled, in the text that carries loss. What it does not do: understand a paraphrase, or read
sources that are too large to be held in memory; where there is one, nothing is said.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from medkor_jax.data.question import Question
from medkor_jax.data.stored import StoredExamples
from medkor_jax.eval.gate import MIN_QUESTIONS
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.phases import Recipe

LEAST_GAIN = 0.05  # above guessing, from which it is an alarm


def stated_options(recipe: Recipe, corpora: Corpora) -> str:
    """Returns a sentence an exam that a liking for what was read would raise; "" if there is none."""
    text = _learnt_text(recipe, corpora)
    if text is None:
        return ""
    lines = []
    for exam in (*recipe.exams, *recipe.final):
        questions = corpora.questions(exam.source)
        liked, guessed = by_liking(questions, lambda option: option.casefold() in text)
        if len(questions) >= MIN_QUESTIONS and liked > guessed + LEAST_GAIN:
            lines.append(
                f"ALARM: exam {exam.source.name}: what is trained on states its right options more often than its wrong ones. "
                f"Whoever takes any option that is stated, whatever is asked, reaches {liked:.1%} (guessing: {guessed:.1%}): a gain "
                "up to there is no knowledge. Ask questions whose every option is stated, or none (docs/EVALUATION.md)"
            )
    return "\n".join(lines)


def by_liking(
    questions: Sequence[Question], is_stated: Callable[[str], bool]
) -> tuple[float, float]:
    """Returns (the share that is right for whoever takes any stated option, and guesses where there is none; that of guessing)."""
    liked, guessed = [], []
    for question in questions:
        stated = [is_stated(option) for option in question.options]
        guessed.append(1 / len(stated))
        liked.append(stated[question.answer] / sum(stated) if any(stated) else guessed[-1])
    return statistics.mean(liked), statistics.mean(guessed)


def _learnt_text(recipe: Recipe, corpora: Corpora) -> str | None:
    """Returns what the stages learn to say, casefolded; None if a source is too large to be held."""
    stages = [
        stage for phase in recipe.phases for stage in (phase.train, phase.remedy) if stage.steps
    ]
    sources = dict.fromkeys(source for stage in stages for source in stage.data)
    told: list[str] = []
    for _, examples in corpora.examples(tuple(sources)):
        if isinstance(examples, StoredExamples):
            return None
        told += (text for example in examples for text, has_loss in example.parts if has_loss)
    return "\n".join(told).casefold()
