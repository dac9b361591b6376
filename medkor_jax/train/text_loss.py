"""The loss on held-out text: what a stage is validated by, and what a gate may ask about.

    text_loss(loaded, mesh, corpus, compute, batch_size=16, seq_len=1024, max_tokens=65536)["nats"]

Where a model has new tokens, its loss is still said a token of the base: a token that stands for three of them counts three. So it
can be compared with the loss of a model without them, whose tokens are those. Which batches are "the first" is then not quite
the same; a text that is read whole (`max_tokens` 0, or not reached) is.

Two models that read the same text in the same shape are compared piece by piece (`report.comparing`): a document, or the part
of it that a row holds.

It trains nothing and judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from medkor_jax.data.batches import one_pass
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.model.params import Params
from medkor_jax.parallel.mesh import place_batch
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.stage_plan import Corpus
from medkor_jax.train.step import make_divergence, make_evaluation
from medkor_jax.train.terms import Batch


def text_loss(
    loaded: LoadedModel,
    mesh: Mesh,
    corpus: Corpus,
    compute: ComputeSettings,
    *,
    batch_size: int,
    seq_len: int,
    max_tokens: int,
    reference: Params | None = None,
) -> dict[str, Any]:
    """Returns {"nats": mean cross entropy a predicted token of the base, "tokens": how many, "pieces": [[nats, tokens], ...]}, over the
    head of `corpus`: a pair of sums a piece, in the order they are read.

    Reads whole batches until `max_tokens` tokens were predicted (0: all of it). reference: what is measured is then
    KL(reference || model) of each predicted token, in place of its cross entropy; a model with the same head and tokenizer.
    """
    evaluate = _measure(loaded, compute, reference)
    pieces: list[list[float]] = []
    for batch in one_pass(
        cast("Any", corpus),  # documents: no stage with a reward validates
        loaded.style,
        batch_size=batch_size,
        seq_len=seq_len,
        language_unit=loaded.language_unit,
        drop_bad=True,
    ):
        nats = np.asarray(evaluate(loaded.params, place_batch(batch, mesh)), np.float64)
        counts = batch["loss_weights"] * loaded.tokenizer.n_replaced[batch["targets"]]
        pieces += _pieces(batch, nats, counts)
        if max_tokens and sum(n for _, n in pieces) >= max_tokens:
            break
    loss, tokens = np.sum(pieces, axis=0) if pieces else (0.0, 0.0)
    return {
        "nats": float(loss / max(tokens, 1.0)),
        "tokens": float(tokens),
        "pieces": [[round(nats, 4), n] for nats, n in pieces],
    }


def _measure(
    loaded: LoadedModel, compute: ComputeSettings, reference: Params | None
) -> Callable[[Params, Batch], jax.Array]:
    """Returns what gives the nats [B, M] of a batch."""
    if reference is None:
        return make_evaluation(loaded.config, compute)
    diverge = make_divergence(loaded.config, compute)
    return lambda params, batch: diverge(params, reference, batch)


def _pieces(
    batch: dict[str, np.ndarray], nats: np.ndarray, counts: np.ndarray
) -> list[list[float]]:
    """Returns [nats, tokens] of every segment of a batch that carries loss. nats, counts: [B, M]."""
    found = []
    for row, weights in enumerate(batch["loss_weights"]):
        segments = batch["segment_ids"][row, batch["loss_positions"][row]]
        for segment in np.unique(segments[weights > 0]):
            here = (segments == segment) & (weights > 0)
            found.append([float((nats[row] * weights)[here].sum()), float(counts[row][here].sum())])
    return found
