"""The dtypes that weights and activations may have, and what is to be said of the one that somebody chose.

    check_dtype("float16")                                          # ValueError: it overflows in Gemma
    check_param_dtype("int8")                                       # weights may be held in it, see `model.quantized`
    if words := slow_here("bfloat16", "--dtype float32"): say(words)

It never chooses in their place: another dtype gives other numbers. The numbers of safetensors files: `io.shards`.
"""

from __future__ import annotations

from typing import Any

DTYPES = ("float32", "bfloat16")
QUANTIZED = "int8"
PARAM_DTYPES = (*DTYPES, QUANTIZED)
"""What a frozen base may be held in."""

_FOUR_BITS = ("int4", "uint4", "nf4", "fp4", "4bit", "float4_e2m1fn")


def check_dtype(dtype: Any, what: str = "dtype") -> None:
    """Raises: ValueError unless `dtype`, a name or a NumPy dtype, is one of DTYPES; what: the name of the setting."""
    if (name := _name_of(dtype)) not in DTYPES:
        raise ValueError(
            f"{what} is {name!r}; expected 'float32' or 'bfloat16' (float16 overflows in Gemma)"
            + (
                "; int8 is for frozen weights alone: param_dtype='int8'"
                if name == QUANTIZED
                else ""
            )
        )


def check_param_dtype(dtype: Any, what: str = "param_dtype") -> None:
    """Raises: ValueError unless a frozen base may be held in `dtype`, a name or a NumPy dtype; what: the name of the setting."""
    name = _name_of(dtype)
    if str(name).lower() in _FOUR_BITS:
        raise ValueError(
            f"{what} is {name!r}; weights are held in 8 bits at least: rounded to 4 bits a channel they are another, worse "
            f"model (docs/RESULTS.md). Use {QUANTIZED!r}"
        )
    if name not in PARAM_DTYPES:
        raise ValueError(
            f"{what} is {name!r}; expected 'float32', 'bfloat16' or {QUANTIZED!r} (float16 overflows in Gemma)"
        )


def float_of(param_dtype: Any) -> str:
    """Returns the dtype of all that is not quantised beside weights held in `param_dtype`, and of what is merged and written."""
    name = _name_of(param_dtype)
    return "bfloat16" if name == QUANTIZED else name


def is_quantized(param_dtype: Any) -> bool:
    return _name_of(param_dtype) == QUANTIZED


def slow_here(dtype: str, instead: str) -> str:
    """Returns a sentence if `dtype` is slow on this machine, else "". instead: what to write for the quicker one."""
    import jax  # not above: a command line that only names DTYPES need not wait for it

    if dtype != "bfloat16" or jax.default_backend() != "cpu":
        return ""
    return (
        "bfloat16 on a CPU is slow: XLA widens it product by product, and text is written several times slower than in float32 "
        f"(a quarter of torch's speed in bfloat16). Unless it is bfloat16's own numbers you want: {instead}"
    )


def _name_of(dtype: Any) -> Any:
    if isinstance(dtype, str):
        return dtype
    return getattr(dtype, "name", None) or getattr(dtype, "__name__", dtype)
