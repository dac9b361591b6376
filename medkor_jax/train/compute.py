"""How a step is computed, beside what it computes: dtype, and what memory and time are traded for.

    ComputeSettings("float32", remat="none")

A recipe says it once for all stages; it decides nothing about what is learnt.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from medkor_jax.model.dtypes import check_dtype
from medkor_jax.model.kernel import check_attention
from medkor_jax.model.remat import check_remat


@dataclasses.dataclass(frozen=True)
class ComputeSettings:
    """How a step is computed: but for dtype, none of it changes a result by more than rounding."""

    dtype: str = "bfloat16"
    """Of activations: "bfloat16" or "float32"; losses, norms and the optimizer are float32 either
    way.
    """
    remat: Annotated[str, check_remat] = "gate_up"
    """What the backward pass makes again to save memory, see `model.remat`."""
    attention: Annotated[str, check_attention] = "auto"
    """Which attention kernel, see `model.kernel`; "auto": by length and device."""
    chunk: Annotated[int, ">= 1"] = 256
    """Positions whose logits exist at once on one part of the batch axes."""

    def __post_init__(self) -> None:
        check_remat(self.remat)
        check_attention(self.attention)
        check_dtype(self.dtype)
