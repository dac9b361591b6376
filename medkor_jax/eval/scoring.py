"""What exams and translations ask of a model: questions about token ids, whatever the weights and devices behind them.

    scorer.next_logits([[2, 17, 5]], [236776, 236799])       # float32 [prompts, token_ids]

`scorer.ModelScorer` answers them with a model of ours; tests with whatever they like. What it does not say: how prompts
are made, or what an answer means.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from medkor_jax.data.style import Style


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt. is_whole: it ended by a stop token or stop string, and not by length.

    n_thought: of n_tokens, those of its thought, marks included."""

    text: str
    n_tokens: int  # the stop token included
    is_whole: bool
    n_thought: int = 0


class Scorer(Protocol):
    """What an exam asks of a model. Prompts differ in length; bucketing and padding are the scorer's business."""

    @property
    def style(self) -> Style:
        """The form in which the model is asked, with its tokenizer."""

    @property
    def max_positions(self) -> int | None:
        """Tokens of prompt and answer that the model has room for; None: any number."""

    def next_logits(self, prompts: list[list[int]], token_ids: list[int]) -> np.ndarray:
        """Returns float32 [prompts, token_ids]: the logits after each prompt's last token, at `token_ids`."""

    def generate(
        self, prompts: list[list[int]], *, max_new_tokens: int, stop: tuple[str, ...]
    ) -> list[str]:
        """Returns the greedy continuations as text, of control tokens only the marks of a thought, each cut before its first
        stop string outside of a thought."""

    def complete(
        self, prompts: list[list[int]], *, max_new_tokens: int, stop: tuple[str, ...]
    ) -> list[Continuation]:
        """Returns what `generate` does, with the number of tokens and whether the text ended before the limit."""

    def continuation_nats(
        self, prompts: list[list[int]], continuations: list[list[list[int]]]
    ) -> list[np.ndarray]:
        """Returns for each prompt float64 [its continuations]: the negative log-likelihood of the tokens of each."""
