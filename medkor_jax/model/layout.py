"""Where activations lie on the mesh in force, told to the compiler; without a mesh everything here changes nothing.

    x = spread(x)                                # first axis over the batch axes
    block = lay(block, "tensor", None, None)     # gathered from wherever it lay, but for the tensor axis

Weights and batches are laid out by `parallel.mesh`, which is not known here: these are its axes' names.
"""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")  # mesh axes over which the batch is spread


def ways(*axes: str) -> int:
    """Returns into how many parts these axes of the mesh divide together: 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in axes)


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": of the mesh in force, which may be of devices that are not here, else of this process."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is None:
        return jax.default_backend()
    kind = device.device_kind.lower()
    return "tpu" if "tpu" in kind else "cpu" if "cpu" in kind else "gpu"


def batch_ways() -> int:
    """Returns over how many parts `spread` lays a batch: 1 without a mesh."""
    return ways(*BATCH_AXES)


def spread(x: jax.Array) -> jax.Array:
    """Returns x with its first axis laid over the batch axes of the mesh in force (none: unchanged)."""
    return lay(x, BATCH_AXES, *[None] * (x.ndim - 1))


def lay(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Returns x with each dimension over the mesh axes named for it, whole in those that are None."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def replicate(x: jax.Array) -> jax.Array:
    """Returns x whole on every device, so that every process can read it."""
    return lay(x, *[None] * x.ndim)
