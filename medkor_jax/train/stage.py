"""One stretch of training: every setting of it, written once.

    stage = Stage(steps=2000, trees=("lora",), data=(source,), batch_size=16)
    stage.rules_in_force, stage.schedule, terms_of(stage)

A config's keys are these fields (`configs/common.py`), a phase has two stages (`run.phases`),
`loop.StagePlan` holds one with what was resolved for it, and the step takes from it what a loss is
made of. It reads no data and knows no devices.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from medkor_jax.data.rows import Source
from medkor_jax.data.sources import OF_QUESTIONS
from medkor_jax.train.next_token import NextToken
from medkor_jax.train.policy import Policy
from medkor_jax.train.retention import Retention
from medkor_jax.train.reward_settings import RewardSettings
from medkor_jax.train.terms import Term
from medkor_jax.train.trainable import TRAINABLE_TREES, OptimizerRule, Schedule

DEFAULT_RULES = (
    OptimizerRule("lora", "lora/.*", 2e-4),
    OptimizerRule("lang", "lang/.*", 1e-3),
    OptimizerRule("expand", "expand/.*", 1e-4),
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """The settings of one stretch of training.

    Raises: ValueError if they contradict each other.
    """

    steps: Annotated[int, ">= 0"] = 0
    """Updates of the weights that train. 0: this stage does not train."""
    trees: tuple[str, ...] = ()
    """What trains, of lora, lang and expand; all else is frozen."""
    data: tuple[Source, ...] = ()
    """What it learns from; drawn by weight."""
    batch_size: Annotated[int, ">= 1"] = 16
    """Rows of the global batch, over all devices and microbatches."""
    seq_len: Annotated[int, ">= 4"] = 1024
    """Tokens a row; short documents share one."""
    microbatches: Annotated[int, ">= 1"] = 1
    """Parts a batch is cut into, one after the other, to save memory; changes no result beyond
    rounding.
    """
    loss_positions: Annotated[int, ">= 0"] = 0
    """Predicted positions a row at most. 0: derived from the data."""
    rules: tuple[OptimizerRule, ...] = DEFAULT_RULES
    """Who learns how fast, and by which optimizer; rules of trees that do not train here are not
    read.
    """
    warmup_steps: Annotated[int, ">= 0"] = 20
    """Steps in which the learning rates rise to their full height. 0: they begin there."""
    final_share: Annotated[float, ">= 0", "<= 1"] = 0.1
    """Share of the full learning rates that is left at the last step; they fall along a cosine."""
    clip_norm: Annotated[float, "> 0"] = 1.0
    """Longest gradient, over all leaves that train together; a longer one is shortened to it."""
    dropout: Annotated[float, ">= 0", "< 1"] = 0.0
    """Share of what goes into the adapters that is left out at random. 0: none."""
    next_token_weight: Annotated[float, ">= 0"] = 1.0
    """Weight of the next-token loss. 0: none. Not read with reward.algorithm "grpo", whose loss
    stands in its place.
    """
    retention: Retention = Retention()
    """The "each layer" loss, which holds the model to the one that it is compared with."""
    save_every: Annotated[int, ">= 1"] = 200
    """Steps from one checkpoint to the next; the last step and a signal save too."""
    keep_last: Annotated[int, ">= 1"] = 1
    """How many checkpoints stay on disk, beside the best one where validation measures it."""
    spike_nats: Annotated[float, ">= 0"] = 0.0
    """A loss that is further above the median of the 20 before it is a spike. 0: only one that is not
    finite is.
    """
    on_spike: str = "stop"
    """What happens then, the batch kept: "stop", or "step_back": the stage goes on from its last
    checkpoint without that batch, three times at most.
    """
    validation: tuple[Source, ...] = ()
    """Held-out text whose loss is measured on the way."""
    validate_every: Annotated[int, ">= 0"] = 0
    """Steps from one such measurement to the next. 0: never."""
    take: str = "last"
    """Which checkpoint goes on: "last", or "best" by the loss on `validation`."""
    reward: RewardSettings = RewardSettings()
    """Learning from the model's own answers to the questions of `data`; one answer a row."""

    def __post_init__(self) -> None:
        for tree in self.trees:
            if tree not in TRAINABLE_TREES:
                raise ValueError(f"trees holds {tree!r}; choose from {', '.join(TRAINABLE_TREES)}")
        if self.take not in ("last", "best"):
            raise ValueError(f"take is {self.take!r}; expected 'last' or 'best'")
        if self.on_spike not in ("stop", "step_back"):
            raise ValueError(f"on_spike is {self.on_spike!r}; expected 'stop' or 'step_back'")
        if self.take == "best" and not (self.validate_every and self.validation):
            raise ValueError("take='best' needs validation sources and validate_every above 0")
        if self.steps:
            self._check_that_it_can_train()
            self._check_reward()

    def _check_that_it_can_train(self) -> None:
        if not self.trees:
            raise ValueError(
                f"trees names nothing to train; choose from {', '.join(TRAINABLE_TREES)}, or set "
                "steps to 0"
            )
        if not self.data:
            raise ValueError("data names no source to train on; give one, or set steps to 0")
        if not (self.next_token_weight or self.retention.is_on or self.reward.is_on):
            raise ValueError(
                "next_token_weight and retention.weight are both 0 and there is no reward: nothing "
                "would be learnt"
            )

        self._check_losses()

    def _check_losses(self) -> None:
        """Raises: ValueError if a source carries a loss that is not in force, or one in force is carried by none."""
        if self.reward.is_on:
            on = {"next_token": False, "each_layer": False}  # what is sampled carries all there is
        else:
            on = {"next_token": self.next_token_weight > 0, "each_layer": self.retention.is_on}
        for source in self.data:
            if source.loss and not on[source.loss]:
                weight = {"next_token": "next_token_weight", "each_layer": "retention.weight"}
                why = (
                    "its stage has a reward" if self.reward.is_on else f"{weight[source.loss]} is 0"
                )
                raise ValueError(
                    f"data source {source.name!r} has loss {source.loss!r} and {why}: nothing would "
                    "be learnt from it"
                )
        for loss in (loss for loss, is_on in on.items() if is_on):
            if all(source.loss not in ("", loss) for source in self.data):
                raise ValueError(
                    f"the stage has the loss {loss!r} and no source of its data carries it: give one "
                    "that does, or set its weight to 0"
                )

    def _check_reward(self) -> None:
        if not self.reward.is_on:
            return
        self.reward.rollout.check_shape(self.batch_size, self.seq_len, self.loss_positions)
        if wrong := [source for source in self.data if source.kind not in OF_QUESTIONS]:
            raise ValueError(
                f"reward.algorithm is {self.reward.algorithm!r} and data source {wrong[0].name!r} "
                "of kind "
                f"{wrong[0].kind!r}; only questions can be answered: give sources of kind "
                f"{' or '.join(OF_QUESTIONS)}"
            )
        if wrong := [source for source in self.data if source.orders > 1]:
            raise ValueError(
                f"data source {wrong[0].name!r} has orders {wrong[0].orders}, and with a reward the options "
                "of a question are shuffled at every visit; leave it out"
            )
        if wrong := [source for source in self.data if source.answered_by != "letter"]:
            raise ValueError(
                f"data source {wrong[0].name!r} is answered_by {wrong[0].answered_by!r}, and a reward reads a "
                "letter behind what the model writes itself; leave it out"
            )
        if self.dropout and self.reward.has_policy_loss:
            raise ValueError(
                f"dropout is {self.dropout} and reward.algorithm 'grpo'; what sampled must be what "
                "learns: 0"
            )

    @property
    def rules_in_force(self) -> tuple[OptimizerRule, ...]:
        """The optimizer rules of the trees that train here."""
        return tuple(rule for rule in self.rules if rule.pattern.split("/")[0] in self.trees)

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.warmup_steps, self.final_share, self.clip_norm)


def terms_of(stage: Stage) -> tuple[Term, ...]:
    """Returns what the loss of the stage is the sum of: here is where a term is added (see
    `terms`).
    """
    reward = stage.reward
    terms: tuple[Term, ...] = (
        Policy(reward.policy, reward.rollout.temperature)
        if reward.has_policy_loss
        else NextToken(stage.next_token_weight),
        stage.retention,
    )
    return tuple(term for term in terms if term.is_on)
