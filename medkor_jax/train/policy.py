"""The loss of GRPO: tokens of samples that earned more than their group become likelier, within a clip.

    term = Policy(PolicyLoss(clip_low=0.2, clip_high=0.28), temperature=1.0)
    term.loss(term.sums(seen, batch, chunk=256), norms)

    ratio = exp(behaviour_nats - nats)
    loss of a token = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) + kl_weight * KL(policy || reference)

Where this, and the samples it is given (`rollout`), depart from the papers (GRPO arXiv:2402.03300, DAPO
arXiv:2503.14476, Dr. GRPO arXiv:2503.20783):
1. The sum over all sampled tokens is divided by their number in the whole batch, as in DAPO; GRPO takes the mean of
   each sample first, and so makes a token of a long wrong answer cheap.
2. The clip is asymmetric, as in DAPO. There is no dual clip.
3. A group whose samples all earn the same is dropped before the batch is made and other questions are asked, as in
   DAPO, but at most `max_refills` times; rows that stay empty are padding. DAPO samples on without a bound.
4. Advantages are (r - mean) / (std + 1e-4) of the group, as in GRPO; `std_normalised=False` leaves the division
   out, as Dr. GRPO does. Its other change, a constant in place of the number of tokens, is not taken: see 1.
5. kl_weight is 0 unless asked for, as in DAPO and Dr. GRPO. The reference is the model at the start of the stage and
   never follows; the estimator is GRPO's (always positive, unbiased in value).
6. A sample that the length cut off earns nothing and stays in the loss; DAPO leaves it out of the loss.
7. The options of a question are shuffled again for each visit, the same for its whole group. No paper does; it keeps
   a letter from being learnt in place of an answer.
8. What the behaviour policy thought of its tokens is computed by the training forward pass, so that the first update's
   ratio is 1. The decoder that drew them is, in bfloat16, not quite that policy: its own probabilities q are kept, and
   each token counts min(p / q, importance_cap) (truncated importance sampling, as others do whose sampler is another
   program). p / q is logged as `rollout/sampler_ratio`. Both are divided by the sampling temperature.
9. Every update takes the whole batch: `updates_per_batch` of them, 1 by default, without minibatches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import jax
import jax.numpy as jnp
from flax import struct

from medkor_jax.train.losses import gather_positions, token_losses
from medkor_jax.train.terms import Batch, Norms, Seen

if TYPE_CHECKING:
    from jaxtyping import Float

_MAX_LOG_RATIO = 20.0  # e^20: far outside any clip, and far from overflow


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """The loss of sampled answers."""

    clip_low: Annotated[float, "> 0", "< 1"] = 0.2
    """How far below 1 the ratio of new to old probability still pushes a token."""
    clip_high: Annotated[float, "> 0"] = 0.28
    """How far above 1 it does."""
    kl_weight: Annotated[float, ">= 0"] = 0.0
    """Weight of KL(policy || reference), in nats a token; the reference is the model at the start of the stage. 0: none."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1 or self.clip_high <= 0:
            raise ValueError(
                f"clip_low {self.clip_low} must lie in (0, 1) and clip_high {self.clip_high} above 0"
            )
        if self.kl_weight < 0:
            raise ValueError(f"kl_weight {self.kl_weight} must be at least 0")


@struct.dataclass
class PolicySums:
    """Sums over sampled tokens, float32 scalars, but for `highest_ratio`, the largest of them.

    loss: to be made small; clipped: tokens whose gradient the clip stopped; nats: of the tokens under the policy as
    it stands; kl_behaviour, kl_reference: estimates in nats of KL(behaviour || policy) and KL(policy || reference).
    """

    loss: jax.Array
    clipped: jax.Array
    nats: jax.Array
    kl_behaviour: jax.Array
    kl_reference: jax.Array
    highest_ratio: jax.Array

    def __add__(self, other: PolicySums) -> PolicySums:
        highest = jnp.maximum(self.highest_ratio, other.highest_ratio)
        return jax.tree.map(jnp.add, self, other).replace(highest_ratio=highest)


@dataclasses.dataclass(frozen=True)
class Policy:
    """The term of a stage that samples: in place of the next-token term, since wrong samples are not to be imitated.

    temperature: of the sampling, by which logits are divided.
    """

    settings: PolicyLoss
    temperature: float

    @property
    def is_on(self) -> bool:
        return True

    def nats(self, seen: Seen, batch: Batch, *, chunk: int) -> jax.Array:
        """Returns -log p of each target [B, M]; what the samples are scored by before they are learnt from."""
        hidden = gather_positions(seen.hidden, batch["loss_positions"])
        return token_losses(
            hidden,
            seen.table,
            batch["targets"],
            chunk=chunk,
            temperature=self.temperature,
            new=seen.new_rows,
        ).nats

    def sums(self, seen: Seen, batch: Batch, *, chunk: int) -> PolicySums:
        return policy_sums(self.nats(seen, batch, chunk=chunk), batch, self.settings)

    def loss(self, sums: PolicySums, norms: Norms) -> jax.Array:
        return sums.loss / norms["loss_tokens"]

    def metrics(self, sums: PolicySums, norms: Norms) -> dict[str, jax.Array]:
        names = ("loss", "clipped", "nats", "kl_behaviour", "kl_reference")
        means = {f"policy/{name}": getattr(sums, name) / norms["loss_tokens"] for name in names}
        return means | {"policy/highest_ratio": sums.highest_ratio}


def policy_sums(
    nats: Float[jax.Array, "B M"], batch: Mapping[str, jax.Array], policy: PolicyLoss
) -> PolicySums:
    """Returns the sums over a batch's tokens. Differentiable in `nats` [B, M], the loss of each sampled token.

    batch: loss_weights, advantages, behaviour_nats, importance and, with a KL weight, reference_nats; all [B, M] float32.
    Source: Shao et al. 2024 (arXiv:2402.03300), eq. 3 and 4; Yu et al. 2025 (arXiv:2503.14476), eq. 8.
    """
    weights, advantages = batch["loss_weights"].astype(jnp.float32), batch["advantages"]
    is_real = weights > 0
    log_ratio = jnp.where(is_real, batch["behaviour_nats"] - nats, 0.0)
    ratio = jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    clipped = jnp.clip(ratio, 1.0 - policy.clip_low, 1.0 + policy.clip_high)
    loss = -batch["importance"] * jnp.minimum(ratio * advantages, clipped * advantages)
    kl_reference = jnp.zeros_like(loss)
    if policy.kl_weight > 0:
        kl_reference = _divergence(jnp.where(is_real, nats - batch["reference_nats"], 0.0))
        loss = loss + policy.kl_weight * kl_reference
    is_clipped = (clipped * advantages < ratio * advantages) & is_real
    total = lambda x: jnp.sum(weights * x)
    return PolicySums(
        loss=total(loss),
        clipped=total(is_clipped.astype(jnp.float32)),
        nats=total(nats),
        kl_behaviour=total(_divergence(log_ratio)),
        kl_reference=total(kl_reference),
        highest_ratio=jnp.max(jnp.where(is_real, ratio, 0.0)),
    )


def _divergence(log_ratio: jax.Array) -> jax.Array:
    """Returns r - 1 - log r, [B, M]: never below 0, and in the mean over samples of p, KL(p || q) where r = q / p.

    Source: Schulman 2020, "Approximating KL divergence", k3.
    """
    log_ratio = jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return jnp.expm1(log_ratio) - log_ratio
