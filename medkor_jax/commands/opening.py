"""A model opened to be asked, and rows as they were read: what several commands begin with.

    with open_scorer(open_model("runs/quickstart"), dtype="float32", batch_size=16) as scorer:
        scorer.generate(prompts, max_new_tokens=64, stop=(".",))

What it does not do: make prompts, or read answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from medkor_jax.data.rows import Loaded
from medkor_jax.data.style import AUTO
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.io.loaded_model import load
from medkor_jax.io.models import Model
from medkor_jax.model.dtypes import slow_here
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import MeshShape, make_mesh, one_device

_WEIGHTS_SHARE = 0.6  # of a device, that whole weights may take beside prompts and caches


@contextlib.contextmanager
def open_scorer(
    model: Model, *, dtype: str, batch_size: int, style: str = AUTO
) -> Iterator[ModelScorer]:
    """Gives the model, loaded onto all devices (one of a lone CPU), as exams ask for it.

    style: see `io.loaded_model.style_of`.
    """
    mesh = asking_mesh(model, dtype)
    if words := slow_here(dtype, "--dtype float32"):
        say(words)
    with jax.set_mesh(mesh):
        yield ModelScorer(
            load(model, dtype, mesh, style=style),
            dtype=jnp.dtype(dtype),
            mesh=mesh,
            batch_size=batch_size,
        )


def base_of(model: Model) -> Model:
    """Returns the base alone that a model stands on."""
    return dataclasses.replace(
        model, directory=None, lora_scale=1.0, adapters_digest="", style=model.base.style
    )


def asking_mesh(model: Model, dtype: str) -> jax.sharding.Mesh:
    """Returns a mesh of all devices: each holds the whole model where that leaves it room, else they share it."""
    if jax.default_backend() == "cpu" and hosts.n_processes() == 1:
        return one_device()
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    is_shared = model.config.n_params * jnp.dtype(dtype).itemsize > _WEIGHTS_SHARE * memory
    return make_mesh(MeshShape(data=1, fsdp=-1) if is_shared else MeshShape())


def shown(name: str, loaded: Loaded) -> list:
    """Returns the rows; prints those left out, and what was noted on reading."""
    for note in loaded.notes:
        say(f"{name}: {note}")
    for row in loaded.bad:
        say(f"left out: {row}")
    return list(loaded.rows)
