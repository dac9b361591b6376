"""What is to be said of the dtype that somebody chose to compute in.

    if words := slow_here("bfloat16", "--dtype float32"): say(words)

It never chooses in their place: another dtype gives other numbers.
"""

from __future__ import annotations

import jax


def slow_here(dtype: str, instead: str) -> str:
    """Returns a sentence if `dtype` is slow on this machine, else "". instead: what to write for the quicker one."""
    if dtype != "bfloat16" or jax.default_backend() != "cpu":
        return ""
    return (
        "bfloat16 on a CPU is slow: XLA widens it product by product, and text is written several times slower than in float32 "
        f"(a quarter of torch's speed in bfloat16). Unless it is bfloat16's own numbers you want: {instead}"
    )
