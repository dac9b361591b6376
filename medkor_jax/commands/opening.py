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
from medkor_jax.run.phases import ConfigError

_WEIGHTS_SHARE = 0.6  # of a device, that whole weights may take beside prompts and caches


@contextlib.contextmanager
def open_scorer(
    model: Model,
    *,
    dtype: str,
    batch_size: int,
    style: str = AUTO,
    mesh_shape: MeshShape | None = None,
) -> Iterator[ModelScorer]:
    """Gives the model, loaded as `asking_mesh` lays it, as exams ask for it. style: see `io.loaded_model.style_of`."""
    mesh = asking_mesh(model, dtype, mesh_shape)
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


def check_mesh(shape: MeshShape | None) -> None:
    """Raises: ConfigError if there are not the devices that `shape` asks for; called before anything is fetched or read."""
    if shape is None:
        return
    try:
        shape.resolve(jax.device_count())
    except ValueError as error:
        raise ConfigError(f"--mesh: {error}") from error


def asking_mesh(model: Model, dtype: str, shape: MeshShape | None = None) -> jax.sharding.Mesh:
    """Returns the mesh of `shape`; without one, of all devices (one of a lone CPU): each holds the whole model where that leaves
    it room, else they share it.

    Raises: ConfigError if the weights alone are more than the devices' memory, before they are read.
    """
    if shape is None and jax.default_backend() == "cpu" and hosts.n_processes() == 1:
        return one_device()
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    needed = model.config.n_params * jnp.dtype(dtype).itemsize
    if shape is None:
        is_shared = needed > _WEIGHTS_SHARE * memory
        shape = MeshShape(data=1, fsdp=-1) if is_shared else MeshShape()
    mesh = make_mesh(shape)
    n_shared = mesh.size // mesh.shape["data"]
    if needed > n_shared * memory:
        raise ConfigError(
            f"{model.name} takes {needed / 1e9:.1f} GB in {dtype}, and {n_shared} device{'s that share' if n_shared > 1 else ' that holds'} "
            f"it have {n_shared * memory / 1e9:.1f} GB; take more devices, share it among all of them (--mesh fsdp={mesh.size}), or "
            "--dtype bfloat16"
        )
    return mesh


def shown(name: str, loaded: Loaded) -> list:
    """Returns the rows; prints those left out, and what was noted on reading."""
    for note in loaded.notes:
        say(f"{name}: {note}")
    for row in loaded.bad:
        say(f"left out: {row}")
    return list(loaded.rows)
