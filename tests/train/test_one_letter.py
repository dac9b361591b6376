"""A stage that learns from its own answers stops when these are one letter."""

import json

import pytest

from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.train.groups import NothingToLearn

from .test_rollout import SETTINGS, Told, changed_to, one_right
from .test_rollout import make as make


@pytest.mark.parametrize(("threshold", "stops"), [(0.9, True), (1.0, True), (0.0, False)])
def test_a_model_that_always_says_one_letter_is_stopped_if_asked(threshold, stops, make, letters):
    """Options move from visit to visit: such answers know nothing of them. Group spread keeps the groups alive."""
    settings = changed_to(SETTINGS, one_letter=threshold, patience=4)
    rollouts = make(settings)
    actor = Told(letters, lambda group, sample: "A" if sample else "A...")
    for _ in range(3):
        rollouts.next(0.0, actor)
    again = make(settings)  # what was chosen before a stop counts after it
    again.set_state(json.loads(json.dumps(rollouts.get_state())))
    for batches in (rollouts, again):
        before = batches.get_state()
        if stops:
            with pytest.raises(NothingToLearn, match="100% of the .* answers .* are A, although"):
                batches.next(0.0, actor)
            assert batches.get_state() == before
        else:
            _, metrics = batches.next(0.0, actor)
            assert metrics["rollout/one_letter"] == 1.0


def test_letters_that_follow_their_options_stop_nothing(make, letters):
    rollouts = make(changed_to(SETTINGS, one_letter=0.9, patience=2))
    actor = Told(letters, one_right)
    shares = [rollouts.next(0.0, actor)[1]["rollout/one_letter"] for _ in range(6)]
    assert max(shares) < 0.9


def test_when_to_give_up_makes_no_finished_stage_stale():
    known = changed_to(SETTINGS, one_letter=0.9).in_force(ReasoningFormat())
    assert known == changed_to(SETTINGS, one_letter=0.0).in_force(ReasoningFormat())
