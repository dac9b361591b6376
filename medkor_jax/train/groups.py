"""Groups of samples of one question: what they earned, what they teach, and why they may teach nothing.

    rows = list(taught(group, settings))            # (group, sample, advantage); none from a dead group
    rollout_metrics(groups, settings, n_rows=len(rows), refills=0)["rollout/dead_groups"]

It neither samples nor makes batches (`rollout`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from medkor_jax.data.question import LETTERS, Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.train.actor import Sample
from medkor_jax.train.reward_settings import RewardSettings, RolloutSettings
from medkor_jax.train.rewards import Earned, best

_SAME = 1e-6  # rewards closer than this are the same
_STD_FLOOR = 1e-4
FEWEST_ANSWERS = 20  # of which a share of one letter says anything


@dataclasses.dataclass(frozen=True)
class Group:
    """A question as it was asked, and what was answered. prompt: token ids with bos."""

    question: Question
    prompt: list[int]
    samples: list[Sample]
    earned: list[Earned]

    @property
    def rewards(self) -> np.ndarray:
        return np.array([earned.total for earned in self.earned])


class NothingToLearn(RuntimeError):
    """No sample can teach anything, however often other questions are asked; the message says what to change."""


def advantages(rewards: np.ndarray, *, std_normalised: bool) -> np.ndarray | None:
    """Returns how far each sample stands above its group's mean, [G] float32, in its spreads if asked; None if all are the same.

    Source: Shao et al. 2024 (arXiv:2402.03300), section 4.1.2; without the spread, Liu et al. 2025 (arXiv:2503.20783).
    """
    if rewards.max() - rewards.min() < _SAME:
        return None
    above = rewards - rewards.mean()
    return (above / (rewards.std() + _STD_FLOOR) if std_normalised else above).astype(np.float32)


def taught(group: Group, settings: RewardSettings) -> Iterator[tuple[Group, Sample, float]]:
    """Yields (group, sample, advantage) of the samples to learn from; none if the group is dead.

    grpo: all samples, unless all earned the same. rft: those that earned everything, the same tokens once.
    """
    rewards = group.rewards
    if settings.has_policy_loss:
        if (
            values := advantages(rewards, std_normalised=settings.rollout.std_normalised)
        ) is not None:
            yield from (
                (group, sample, float(value)) for sample, value in zip(group.samples, values)
            )
        return
    full = {
        sample.tokens: sample
        for sample, r in zip(group.samples, rewards)
        if r >= best(settings.parts) - _SAME
    }
    yield from ((group, sample, 1.0) for sample in full.values())


def rollout_metrics(
    groups: Sequence[Group], settings: RewardSettings, *, n_rows: int, refills: int
) -> dict[str, float]:
    """Returns what the log keeps of a rollout, over all that was sampled, dead groups too."""
    earned = [one for group in groups for one in group.earned]
    samples = [sample for group in groups for sample in group.samples]
    rewards = np.array([group.rewards for group in groups])
    lengths = [len(sample.tokens) for sample in samples]
    letters = letter_counts(groups)
    n_dead = sum(next(taught(group, settings), None) is None for group in groups)
    values = {
        "reward": rewards.mean(),
        "reward_spread": rewards.std(),
        "group_spread": rewards.std(axis=1).mean(),
        **{
            f"reward_{part}": np.mean([one.parts[part] for one in earned])
            for part in earned[0].parts
        },
        "right": np.mean([one.is_right for one in earned]),
        "in_format": np.mean([one.has_format for one in earned]),
        "one_letter": max(letters) / max(sum(letters), 1),
        "unparsed": np.mean([not one.is_parsed for one in earned]),
        "unfinished": np.mean([not sample.is_finished for sample in samples]),
        "dead_groups": n_dead / len(groups),
        "groups": len(groups),
        "refills": refills,
        "rows": n_rows,
        "new_tokens": np.mean(lengths),
        "new_tokens_longest": max(lengths),
    }
    return {f"rollout/{name}": float(value) for name, value in values.items()}


def letter_counts(groups: Sequence[Group]) -> list[int]:
    """Returns how many of the answers chose A, B, ..., those that cannot be read left out."""
    chosen = [one.letter for group in groups for one in group.earned if one.letter is not None]
    return np.bincount(chosen, minlength=len(LETTERS)).tolist()


def watch_letters(
    earlier: Sequence[list[int]], groups: Sequence[Group], settings: RolloutSettings
) -> list[list[int]]:
    """Returns `letter_counts` of the last batches: of `earlier` ones and of this one's groups.

    Raises: NothingToLearn if they chose one letter nearly always.
    """
    batches = [*earlier, letter_counts(groups)][-settings.patience :]
    chosen = np.sum(batches, axis=0)
    share = chosen.max() / max(chosen.sum(), 1)
    is_told = len(batches) == settings.patience and chosen.sum() >= FEWEST_ANSWERS
    if is_told and 0 < settings.one_letter <= share:
        raise NothingToLearn(
            f"{share:.0%} of the {chosen.sum()} answers of the last {settings.patience} batches are "
            f"{LETTERS[int(chosen.argmax())]}, although the options are shuffled for each: the model answers by place and learns "
            "the form alone. Bind the letter to its option first: train longer on supervised reasoning with its questions in "
            f"several orders (orders=4), or go on regardless (reward.rollout.one_letter, now {settings.one_letter:g}; 0: never stop)"
        )
    return batches


def explain(groups: Sequence[Group], settings: RewardSettings, form: ReasoningFormat) -> str:
    """Returns the sentences for someone whose groups are all dead: what was earned, why probably, what to change."""
    seen = rollout_metrics(groups, settings, n_rows=0, refills=0)
    share = lambda name: seen[f"rollout/{name}"]
    rewards = np.concatenate([group.rewards for group in groups])
    if settings.has_policy_loss:
        found = "in every group all samples earned the same"
    else:
        found = f"none earned all of the reward ({best(settings.parts):.3g})"
    return (
        f"nothing can be learnt: {rewards.size} samples of {len(groups)} questions were drawn and {found}. Rewards lie between "
        f"{rewards.min():.3g} and {rewards.max():.3g}, mean {rewards.mean():.3g}; {share('right'):.0%} right, "
        f"{share('unparsed'):.0%} without one valid letter, {share('in_format'):.0%} in the format, {share('unfinished'):.0%} "
        f"cut off at {settings.rollout.max_new_tokens} tokens. {_likely_cause(groups, settings, form, share)}"
    )


def _likely_cause(
    groups: Sequence[Group], settings: RewardSettings, form: ReasoningFormat, share
) -> str:
    rollout, written = settings.rollout, f"{form.opening} ... {form.closing} and a letter"
    if share("unfinished") > 0.9:
        length = rollout.max_new_tokens
        return f"Answers do not end: train longer on supervised reasoning first, or raise max_new_tokens (now {length})"
    if share("unparsed") > 0.9:
        return f"The model does not write {written}: train longer on supervised reasoning first (the cold start)"
    if rollout.group_size > 1 and all(
        len({sample.tokens for sample in group.samples}) == 1 for group in groups
    ):
        return f"All samples of a question are the same text: raise temperature (now {rollout.temperature})"
    if not any(part.is_on for part in settings.parts if part.name == "answer"):
        return "reward.parts.answer.weight is 0 and the form is learnt already: give the answer a weight above letter and format together"
    if share("right") > 0.9:
        return "The questions are too easy for this model: take others, or leave this phase out"
    if share("right") < 0.1:
        return (
            f"The questions are too hard for it to be right by chance: raise group_size (now {rollout.group_size}) or "
            "max_refills, take easier questions, or train longer on supervised reasoning first"
        )
    return (
        f"Raise group_size (now {rollout.group_size}), temperature (now {rollout.temperature}) or max_refills "
        f"(now {rollout.max_refills})"
    )
