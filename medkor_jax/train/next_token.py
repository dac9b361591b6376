"""The next-token term: cross entropy at the positions of documents that carry loss.

    NextToken(1.0).loss(sums, norms)        # nats a loss token of the whole global batch

Which positions those are is the data's business (`data.packing`), how cross entropy is computed
that of `losses`.
"""

from __future__ import annotations

import dataclasses

import jax

from medkor_jax.train.losses import LossSums, cross_entropy, gather_positions
from medkor_jax.train.terms import Batch, Norms, Seen


@dataclasses.dataclass(frozen=True)
class NextToken:
    weight: float

    @property
    def is_on(self) -> bool:
        return self.weight > 0

    def sums(self, seen: Seen, batch: Batch, *, chunk: int) -> LossSums:
        hidden = gather_positions(seen.hidden, batch["loss_positions"])
        return cross_entropy(
            hidden,
            seen.table,
            batch["targets"],
            batch["loss_weights"],
            chunk=chunk,
            new=seen.new_rows,
        )

    def loss(self, sums: LossSums, norms: Norms) -> jax.Array:
        return self.weight * sums.loss / norms["loss_tokens"]

    def metrics(self, sums: LossSums, norms: Norms) -> dict[str, jax.Array]:
        return {
            "next_token_nats": sums.loss / norms["loss_tokens"],
            "next_token_correct": sums.correct / norms["loss_tokens"],
        }
