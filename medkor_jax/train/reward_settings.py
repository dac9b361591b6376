"""What a config says of learning from one's own answers: what they earn, how they are drawn, how
they are learnt from.

    reward = RewardSettings("grpo", rollout=RolloutSettings(group_size=8))
    reward.is_on, reward.has_policy_loss

Settings alone: `rewards` scores, `rollout` samples, `policy` has the loss.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.train.policy import PolicyLoss
from medkor_jax.train.rewards import DEFAULT_PARTS, RewardPart, check_parts, in_order

ALGORITHMS = ("grpo", "rft")


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How answers are drawn and what becomes of them."""

    group_size: Annotated[int, ">= 1"] = 8
    """Answers drawn of each question; grpo compares them, so it needs at least 2."""
    temperature: Annotated[float, "> 0"] = 1.0
    """Of the sampling, and of the probabilities that the policy loss reads."""
    max_new_tokens: Annotated[int, ">= 1"] = 128
    """Longest answer, in tokens; one that is cut off there earns nothing."""
    std_normalised: bool = True
    """grpo: advantages are divided by the spread of rewards in their group (Dr. GRPO does not)."""
    updates_per_batch: Annotated[int, ">= 1"] = 1
    """Optimizer updates on one batch of answers."""
    max_refills: Annotated[int, ">= 0"] = 4
    """How often other questions are asked in place of groups that teach nothing, a batch. 0: rows
    stay empty.
    """
    patience: Annotated[int, ">= 1"] = 3
    """After how many batches in a row that stayed empty through all refills the stage gives up; also
    over how many `one_letter` looks."""
    importance_cap: Annotated[float, ">= 0"] = 2.0
    """grpo: the most that a token counts whose sampler was less sure of it (`policy`, departure 8).
    0: all count 1.
    """
    one_letter: Annotated[float, ">= 0", "<= 1"] = 0.9
    """Share of one letter among the answers of the last batches from which the stage stops: options
    are shuffled for each visit, so such a model answers by place, and learns the form alone. 0:
    never."""

    def __post_init__(self) -> None:
        if (
            min(self.group_size, self.max_new_tokens, self.updates_per_batch, self.patience) < 1
            or self.max_refills < 0
        ):
            raise ValueError(
                "group_size, max_new_tokens, updates_per_batch and patience must be at least 1 and "
                "max_refills at least 0; "
                f"got {self.group_size}, {self.max_new_tokens}, {self.updates_per_batch}, "
                f"{self.patience}, {self.max_refills}"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; samples of a question must differ, so it must "
                "be above 0"
            )

    def facts(self) -> dict[str, Any]:
        """Returns what decides what is learnt; when a stage gives up is no part of that."""
        said = dataclasses.asdict(self)
        del said["one_letter"]
        return said

    def check_shape(self, batch_size: int, seq_len: int, loss_positions: int) -> None:
        """Raises: ValueError if batches of that shape (loss_positions 0: derived) hold no groups or
        no answer.
        """
        if batch_size % self.group_size:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of group_size {self.group_size}: "
                "groups stay whole"
            )
        if self.max_new_tokens + 2 > seq_len:
            raise ValueError(
                f"seq_len {seq_len} has no room for a prompt and max_new_tokens "
                f"{self.max_new_tokens}"
            )
        if 0 < loss_positions < self.max_new_tokens:
            raise ValueError(
                f"loss_positions is {loss_positions}, below max_new_tokens {self.max_new_tokens}; "
                "set it to 0"
            )


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """Learning from the model's own answers to the questions of a stage's data."""

    algorithm: str = ""
    """"grpo": answers that earn more than others to their question become likelier; "rft": those
    that earn all there is to earn are imitated. "": the stage learns from documents, and nothing
    else here is read."""
    parts: tuple[RewardPart, ...] = DEFAULT_PARTS
    """What an answer earns, by the name of the part; the answer must be worth more than all else
    together, or 0.
    """
    rollout: RolloutSettings = RolloutSettings()
    """How answers are drawn and what becomes of them."""
    policy: PolicyLoss = PolicyLoss()
    """grpo: the loss that they are learnt by; rft does not read it."""

    def __post_init__(self) -> None:
        # a config keeps no order; of the parts it counts, to the last bit of their sum
        object.__setattr__(self, "parts", in_order(self.parts))
        if not self.is_on:
            return
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm is {self.algorithm!r}; expected {' or '.join(ALGORITHMS)}")
        if self.has_policy_loss and self.rollout.group_size < 2:
            raise ValueError(
                f"group_size is {self.rollout.group_size}; grpo compares samples of a question, at "
                "least 2"
            )
        check_parts(self.parts)

    @property
    def is_on(self) -> bool:
        return bool(self.algorithm)

    @property
    def has_policy_loss(self) -> bool:
        return self.algorithm == "grpo"

    def in_force(self, form: ReasoningFormat) -> dict[str, Any] | None:
        """Returns, as plain data, all that decides which answers are learnt from; None if it is
        documents.
        """
        if not self.is_on:
            return None
        return {
            "algorithm": self.algorithm,
            "rollout": self.rollout.facts(),
            "form": dataclasses.asdict(form),
            "parts": {part.name: part.facts() for part in self.parts if part.is_on},
        }
