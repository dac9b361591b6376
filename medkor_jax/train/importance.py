"""How far the decoder that drew samples and the training pass that learns from them are apart.

    weights, gap = importance(batch, samples, cap=2.0)
    if words := gap_alarm(gap): say(words)

Both should be the same policy; in bfloat16, or with tokens that the decoder may not write, they are
not quite. It changes neither: it says how much each token counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medkor_jax.data.packing import Batch
from medkor_jax.train.actor import Sample

SAMPLER_GAP_NATS = 0.05
"""Mean difference a token, between the decoder and the training pass, above which an alarm is
given.
"""


def importance(
    batch: Batch, samples: Sequence[Sample], cap: float
) -> tuple[np.ndarray, dict[str, float]]:
    """Returns the weight of each sampled token [B, M], min(p / q, cap), and how far q (the decoder,
    which drew it) and p (the training pass) are apart. Without a cap, or where the decoder said
    nothing, every weight is 1.

    Source: truncated importance sampling, Ionides 2008; for a sampler unlike the trainer, Yao et
    al. 2025.
    """
    drawn = batch["behaviour_nats"].copy()
    for b, sample in enumerate(samples):
        if sample.nats:
            at = np.flatnonzero(batch["loss_weights"][b] > 0)
            drawn[b, at] = sample.nats[: len(at)]
    is_real = batch["loss_weights"] > 0
    ratio = np.exp(np.where(is_real, drawn - batch["behaviour_nats"], 0.0))
    real = ratio[is_real] if is_real.any() else np.ones(1)
    gap = {
        "sampler_ratio": real.mean(),
        "highest_sampler_ratio": real.max(),
        "sampler_gap_nats": np.abs(np.log(real)).mean(),
        "truncated": (real > cap).mean() if cap else 0.0,
    }
    weights = np.where(is_real, np.minimum(ratio, cap) if cap else 1.0, 1.0).astype(np.float32)
    return weights, {f"rollout/{name}": float(value) for name, value in gap.items()}


def gap_alarm(gap: dict[str, float]) -> str:
    """Returns the sentence for two passes that are two different models, "" where they are not."""
    if gap["rollout/sampler_gap_nats"] <= SAMPLER_GAP_NATS:
        return ""
    return (
        f"ALARM: the decoder and the training pass differ by {gap['rollout/sampler_gap_nats']:.3f} "
        "nats a token (ratios up to "
        f"{gap['rollout/highest_sampler_ratio']:.2f}; expected at most {SAMPLER_GAP_NATS}), and "
        "importance weights correct only "
        "part of that. Likely cause: bfloat16 in a long answer, or tokens that the decoder may not "
        "write; use dtype='float32', "
        "or a lower temperature or max_new_tokens. Said once"
    )
