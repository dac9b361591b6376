"""What a compiler said of a program, kept by the program's own text: nothing is compiled twice, not even by another run.

    key = key_of(lowered.as_text(), "v5e:4x4", 1.0)
    if (said := read(key)) is None: write(key, said := ...)

The key holds the whole program as it goes into the compiler, the machine, and the versions of jax and of the compiler. Files
lie beside the other caches (`MEDKOR_CACHE`); deleting them costs time alone.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pathlib
from typing import Any

from medkor_jax.data.contents import cache_directory, sha256_of
from medkor_jax.plan.program import Cost, Kernel
from medkor_jax.plan.traffic import Collective

FORMAT = 3  # of what is read from a program's text: raised when `program` or `traffic` reads it otherwise


def key_of(text: str, *told: Any) -> str:
    """Returns the name under which a program is kept; told: whatever else decides what is found."""
    versions = [f"{name} {_version(name)}" for name in ("jax", "jaxlib", "libtpu")]
    return sha256_of([json.dumps([FORMAT, versions, [str(one) for one in told], text])])


def _version(name: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return "none"


def read(key: str) -> dict[str, Any] | None:
    """Returns what `write` was given, None if there is nothing whole of that name. "cost" is a Cost again."""
    try:
        said = json.loads(_file(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    collectives = {tuple(one.pop("key")): Collective(**one) for one in said["cost"]["collectives"]}
    kernels = tuple(
        Kernel(**one | {"shapes": tuple(map(tuple, one["shapes"])), "grid": tuple(one["grid"])})
        for one in said["cost"]["kernels"]
    )
    return said | {
        "cost": Cost(said["cost"]["flops"], said["cost"]["main_bytes"], collectives, kernels)
    }


def write(key: str, said: dict[str, Any]) -> None:
    """Keeps `said`: JSON, and a Cost under "cost"."""
    cost: Cost = said["cost"]
    collectives = [{"key": list(name), **vars(one)} for name, one in cost.collectives.items()]
    plain = {
        "flops": cost.flops,
        "main_bytes": cost.main_bytes,
        "collectives": collectives,
        "kernels": [vars(one) for one in cost.kernels],
    }
    file = _file(key)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(said | {"cost": plain}), encoding="utf-8")
    part.replace(file)


def _file(key: str) -> pathlib.Path:
    return cache_directory() / "plan" / f"{key}.json"
