"""What a compiled step has to hold: its trained parameters and its FLOPs by hand (`plan.handcount`).

    step_flops(config, batch_size=4, seq_len=512, loss_positions=512, rank=16)

Scores count as the attention here computes them (`kernel.n_scores`), also those that it then hides. What the backward pass
computes again (attention scores, the adapters' low product) does not, so a compiled step may have up to `RECOMPUTED_SHARE` more.
"""

from __future__ import annotations

import functools

from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.kernel import choose, n_scores
from medkor_jax.model.params import ADAPTABLE, matrix_sizes
from medkor_jax.parallel.mesh import platform
from medkor_jax.plan.handcount import hand_flops
from medkor_jax.plan.stages import STEP, Program, Trees
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import step_spec

RECOMPUTED_SHARE = 0.1


def lora_parameters(config: ModelConfig, rank: int) -> int:
    return config.n_layers * rank * sum(i + o for i, o in matrix_sizes(config))


def step_flops(
    config: ModelConfig, batch_size: int, seq_len: int, loss_positions: int, rank: int
) -> float:
    """Returns the FLOPs of a LoRA step on all seven matrices; rank 0 is a step without adapters."""
    kernel = choose("auto", t=seq_len, head_dim=config.head_dim, platform=platform())
    trees, trained = (
        (Trees(LoraSettings(rank, rank, ADAPTABLE)), ("lora",)) if rank else (Trees(), ())
    )
    program = Program(
        STEP,
        trees,
        trained,
        step_spec(Stage(), ComputeSettings("float32", "none")),
        batch_size,
        seq_len,
        loss_positions,
        "float32",
    )
    return hand_flops(program, config, functools.partial(n_scores, kernel))
