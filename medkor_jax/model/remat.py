"""How much of a layer's forward pass is kept for the backward pass, as named policies.

    jax.checkpoint(run, policy=policy("gate_up"), prevent_cse=False)

A policy is named by what is made again. What a layer has to make again costs FLOPs, what it keeps costs memory; by
FLOPs for each byte kept, the down projection stands first (a sum over F), then what reads D, then the rest. Bytes a
token and layer in bfloat16, and FLOPs of the matrices, of a 4B:

    none            68 kB    1.00     attention's scores and what is elementwise: cheaper to make than to read, in every policy
    gate_up         28 kB    1.28     also the two products of width F, more than half of what `none` keeps
    all_but_down    14 kB    1.36     everything but the down projection and attention's output
    full             5 kB    1.50     everything: only the layer's input is kept

All give the same numbers. Moving kept values to the host's memory is left out on purpose: a layer of the 4B makes 68 kB
in 190 MFLOP a token, 1 us of a chip, and takes more than that to cross a PCIe bus of 16-64 GB/s twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from medkor_jax.model.layers import ADAPTABLE
from medkor_jax.nearest import nearest

ATTENDED = "attended"  # the name under which attention's output is kept; a matrix's product has the matrix's own name

KEPT: dict[str, tuple[str, ...]] = {
    "none": (ATTENDED, *ADAPTABLE),
    "gate_up": (ATTENDED, *(name for name in ADAPTABLE if name not in ("gate", "up"))),
    "all_but_down": (ATTENDED, "down"),
    "full": (),
}


def check_remat(name: Any) -> None:
    """Raises: ValueError unless `name` is a policy's; a boolean is told what it was."""
    if str(name) in ("True", "False"):
        was = "full" if str(name) == "True" else "none"
        raise ValueError(f'remat is {name}; it is a name now: use "{was}" (or one of {_names()})')
    if not isinstance(name, str) or name not in KEPT:
        raise ValueError(
            f"remat is {name!r}; expected one of {_names()}; nearest: {nearest(name, KEPT)!r}"
        )


def policy(name: str) -> Callable[..., Any]:
    """Returns the policy for `jax.checkpoint` around a layer. Raises: ValueError as `check_remat`."""
    check_remat(name)
    return jax.checkpoint_policies.save_only_these_names(*KEPT[name])


def _names() -> str:
    return ", ".join(KEPT)
