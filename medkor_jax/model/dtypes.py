"""The dtypes that weights and activations may have, and what is to be said of the one that somebody chose.

    check_dtype("float16")                                          # ValueError: it overflows in Gemma
    if words := slow_here("bfloat16", "--dtype float32"): say(words)

It never chooses in their place: another dtype gives other numbers. The numbers of safetensors files: `io.shards`.
"""

from __future__ import annotations

from typing import Any

DTYPES = ("float32", "bfloat16")


def check_dtype(dtype: Any, what: str = "dtype") -> None:
    """Raises: ValueError unless `dtype`, a name or a NumPy dtype, is one of DTYPES; what: the name of the setting."""
    name = (
        dtype
        if isinstance(dtype, str)
        else getattr(dtype, "name", None) or getattr(dtype, "__name__", dtype)
    )
    if name not in DTYPES:
        raise ValueError(
            f"{what} is {name!r}; expected 'float32' or 'bfloat16' (float16 overflows in Gemma)"
        )


def slow_here(dtype: str, instead: str) -> str:
    """Returns a sentence if `dtype` is slow on this machine, else "". instead: what to write for the quicker one."""
    import jax  # not above: a command line that only names DTYPES need not wait for it

    if dtype != "bfloat16" or jax.default_backend() != "cpu":
        return ""
    return (
        "bfloat16 on a CPU is slow: XLA widens it product by product, and text is written several times slower than in float32 "
        f"(a quarter of torch's speed in bfloat16). Unless it is bfloat16's own numbers you want: {instead}"
    )
