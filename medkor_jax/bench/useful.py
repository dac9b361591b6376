"""Useful FLOPs of what is measured, by the hand count of `plan.handcount`: what MFU is made of.

    training_flops(documents, config, rank=16)           # of one step over these documents

Each document counts by itself, with its own length and its own positions that carry loss: padding is no work, nor is what is
computed again, nor what a program looks at and hides.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.bench.documents import Document
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import ADAPTABLE
from medkor_jax.plan.handcount import hand_flops
from medkor_jax.plan.stages import READ, SCORE, STEP, WRITE, Program, Trees
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.retention import Retention
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import step_spec

FORMULA = (
    "MFU = useful FLOPs / seconds / peak. Useful, of every token that is no padding, W and A the parameters of a layer's matrices "
    "and of its adapters: 4 W + 6 A in training (2 W + 2 A forward only); 12 x query width x visible keys (4 forward only); the head "
    "4 D V where there is loss (2 forward only). Computed again or hidden by a mask: nothing"
)


def training_flops(
    documents: Sequence[Document], config: ModelConfig, rank: int, retention: bool = False
) -> float:
    """retention: the each-layer loss at its defaults in place of the text's; every document is a row of its own then."""
    stage = Stage(next_token_weight=0.0, retention=Retention(weight=1.0)) if retention else Stage()
    sizes = collections.Counter(
        (len(document["tokens"]) + 1, sum(document["loss"])) for document in documents
    )
    trees = Trees(LoraSettings(rank=rank, alpha=rank, targets=ADAPTABLE))
    reference = Trees() if retention else None
    return sum(
        n
        * hand_flops(
            _program(STEP, trees, length, positions, stage, trained=("lora",), reference=reference),
            config,
        )
        for (length, positions), n in sizes.items()
    )


def writing_flops(
    prompts: Sequence[Sequence[int]], new_tokens: int, config: ModelConfig, rank: int = 0
) -> float:
    """Returns those of reading the prompts and writing `new_tokens` behind each, the first of them by the pass that reads."""
    trees = Trees(LoraSettings(rank=rank, alpha=rank, targets=ADAPTABLE) if rank else None)
    total = 0.0
    for length, n in collections.Counter(map(len, prompts)).items():
        read = _program(READ, trees, length, 1)
        write = _program(WRITE, trees, length, 1, room=length + new_tokens // 2)
        total += n * (hand_flops(read, config) + (new_tokens - 1) * hand_flops(write, config))
    return total


def scoring_flops(
    prompts: Sequence[Sequence[int]], new_tokens: int, config: ModelConfig, rank: int
) -> float:
    trees = Trees(LoraSettings(rank=rank, alpha=rank, targets=ADAPTABLE))
    lengths = collections.Counter(map(len, prompts))
    return sum(
        n * hand_flops(_program(SCORE, trees, length + new_tokens, new_tokens), config)
        for length, n in lengths.items()
    )


def _program(
    kind: str,
    trees: Trees,
    length: int,
    positions: int,
    stage: Stage = Stage(),
    *,
    trained=(),
    reference=None,
    room=0,
) -> Program:
    spec = step_spec(stage, ComputeSettings("float32", "none"))
    return Program(
        kind,
        trees=trees,
        trained=trained,
        spec=spec,
        rows=1,
        length=length,
        positions=positions,
        param_dtype="float32",
        reference=reference,
        room=room,
    )
