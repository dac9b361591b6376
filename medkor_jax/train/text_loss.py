"""The loss on held-out text: what a stage is validated by, and what a gate may ask about.

    text_loss(loaded, mesh, corpus, compute, batch_size=16, seq_len=1024, max_tokens=65536)["nats"]

It trains nothing and judges nothing.
"""

from __future__ import annotations

from typing import Any, cast

from jax.sharding import Mesh

from medkor_jax.data.batches import one_pass
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.parallel.mesh import place_batch
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.stage_plan import Corpus
from medkor_jax.train.step import make_evaluation


def text_loss(
    loaded: LoadedModel,
    mesh: Mesh,
    corpus: Corpus,
    compute: ComputeSettings,
    *,
    batch_size: int,
    seq_len: int,
    max_tokens: int,
) -> dict[str, float]:
    """Returns {"nats": mean cross entropy a predicted token, "tokens": how many}, over the head of
    `corpus`.

    Reads whole batches until `max_tokens` tokens were predicted (0: all of it).
    """
    evaluate = make_evaluation(loaded.config, compute)
    loss = tokens = 0.0
    for batch in one_pass(
        cast("Any", corpus),  # documents: no stage with a reward validates
        loaded.style,
        batch_size=batch_size,
        seq_len=seq_len,
        language_unit=loaded.language_unit,
        drop_bad=True,
    ):
        sums = evaluate(loaded.params, place_batch(batch, mesh))
        loss, tokens = loss + float(sums.loss), tokens + float(sums.weight)
        if max_tokens and tokens >= max_tokens:
            break
    return {"nats": loss / max(tokens, 1.0), "tokens": tokens}
