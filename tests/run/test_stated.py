"""An exam that a liking for what was read would raise is told before anything is trained."""

import pytest

from medkor_jax.data import embedded
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.stated import by_liking, stated_options

from .test_config_file import QUICKSTART

TEXTS = "--config.phase0.data.en-text.subset"
EXAM = "--config.exams.english-choice.source"


def told(*overrides):
    recipe = load_recipe(f"{QUICKSTART}:phase0", overrides)
    return stated_options(recipe, Corpora(recipe.drop_bad, say=False))


def test_an_exam_whose_wrong_options_nothing_states_is_told():
    """As the quick start was for a day: texts about the validation facts, wrong options from the test split as well."""
    said = told(f"{TEXTS}=valid", f"{EXAM}.split=valid", f"{EXAM}.subset=", f"{EXAM}.limit=0")
    assert said.startswith("ALARM: exam english-choice: ") and said.count("ALARM") == 1
    assert "reaches 38" in said or "reaches 37" in said
    assert "(guessing: 20.0%)" in said


@pytest.mark.parametrize("texts", ["valid+test/pathogen,sign,nerve", "train/antidote"])
def test_an_exam_of_which_all_is_stated_or_nothing_is_none(texts):
    assert told(f"{TEXTS}={texts}") == ""


def test_the_quick_start_is_none():
    recipe = load_recipe(f"{QUICKSTART}:phase5d_exam")
    assert stated_options(recipe, Corpora(recipe.drop_bad, say=False)) == ""


def test_the_share_is_that_of_who_takes_any_stated_option():
    questions = embedded.questions("valid", "ko")[:8]
    right = {q.options[q.answer] for q in questions}
    assert by_liking(questions, lambda option: option in right)[0] > 0.9
    assert by_liking(questions, lambda option: True) == by_liking(questions, lambda option: False)
    assert by_liking(questions, lambda option: option not in right)[0] < 0.05
