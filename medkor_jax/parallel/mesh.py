"""The device mesh and where everything lies on it: weights by one table of rules, batches and activations by their rows.

    mesh = make_mesh(MeshShape(data=-1, fsdp=4, tensor=1))
    with jax.set_mesh(mesh): ...
    shardings = shard_tree(abstract_params, mesh)
    x = spread(x)                                # inside a step: first axis over the batch axes
    block = lay(block, "tensor", None, None)     # gathered from wherever it lay, but for the tensor axis

Axes: `data` and `fsdp` both split the batch; `fsdp` also splits the weights' width, `tensor` their heads,
feed-forward width and vocabulary. A dimension that an axis does not divide stays whole. What a step says of its
activations (`spread`, `lay`, `replicate`) is told to the compiler for the mesh in force, and changes nothing without one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medkor_jax.nearest import nearest

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = (
    "data",
    "fsdp",
)  # over which the rows of a batch are spread, and of whatever is made of it

# The last part(s) of a leaf's path -> the axis of each dimension. Every leaf matches exactly one rule.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(embed|head)", ("tensor", "fsdp")),
    (r"(q|k|v|gate|up)(/values)?", (None, "fsdp", "tensor")),
    (r"(o|down)(/values)?", (None, "tensor", "fsdp")),
    (r"(q|k|v|gate|up)/scale", (None, None, "tensor")),  # of int8 values, by output channel
    (r"(o|down)/scale", (None, None, "fsdp")),
    (r"(q|k|v|gate|up)/a", (None, "fsdp", None)),
    (r"(q|k|v|gate|up)/b", (None, None, "tensor")),
    (r"(o|down)/a", (None, "tensor", None)),
    (r"(o|down)/b", (None, None, "fsdp")),
    (r"vector", (None, None)),
    (r"table", (None, "tensor", "fsdp")),
    (r"input|output", (None, "fsdp")),  # of new tokens
    (r"\w*norm", ()),
)


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; one of them may be -1: all that remain."""

    data: Annotated[int, ">= -1", "!= 0"] = -1
    """Groups of devices that each hold the whole model and take their part of a batch. -1: all that
    remain."""
    fsdp: Annotated[int, ">= -1", "!= 0"] = 1
    """Devices that share the weights' width and a batch between them. -1: all that remain."""
    tensor: Annotated[int, ">= -1", "!= 0"] = 1
    """Devices that share each layer's heads, feed-forward width and the vocabulary. -1: all that
    remain."""

    def resolve(self, n_devices: int) -> tuple[int, int, int]:
        """Returns the three sizes. Raises: ValueError if they do not use exactly `n_devices`."""
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
            raise ValueError(
                f"mesh {self} may hold one -1 (the rest); every other axis is at least 1"
            )
        fixed = int(np.prod([n for n in sizes if n != -1]))
        if -1 in sizes:
            sizes[sizes.index(-1)] = max(n_devices // fixed, 1)
        if int(np.prod(sizes)) != n_devices:
            raise ValueError(
                f"mesh data x fsdp x tensor = {sizes} does not use the {n_devices} devices present: their product must be "
                f"{n_devices}, and an axis of -1 takes all that remain"
            )
        data, fsdp, tensor = sizes
        return data, fsdp, tensor


def read_mesh(text: str) -> MeshShape:
    """Returns the mesh that "data=2,fsdp=4" names; `data` takes what an axis that is not named leaves.

    Raises: ValueError on what is no axis, given twice, or no number of devices.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, number = (word.strip() for word in part.partition("="))
        if axis not in AXES:
            raise ValueError(
                f"{axis!r} is no axis of a mesh; nearest: {nearest(axis, AXES) or 'none'!r}. Expected such as fsdp=8 or "
                f"data=2,fsdp=4, of the axes {', '.join(AXES)}"
            )
        if axis in sizes:
            raise ValueError(f"{axis} is given twice in {text!r}")
        if not re.fullmatch(r"-1|[1-9]\d*", number):
            raise ValueError(
                f"{axis}={number} is given; expected a number of devices, at least 1, or -1: all that remain"
            )
        sizes[axis] = int(number)
    if "data" not in sizes:
        sizes["data"] = 1 if -1 in sizes.values() else -1
    return MeshShape(**sizes)


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    devices = list(jax.devices() if devices is None else devices)
    sizes = shape.resolve(len(devices))
    return jax.make_mesh(sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)


def one_device(device: Any = None) -> Mesh:
    """Returns the mesh of one device, the first if none is given."""
    return make_mesh(MeshShape(data=1), [jax.devices()[0] if device is None else device])


def host_mesh() -> Mesh:
    """Returns one CPU device as a mesh: what is only to be written need not pass through an accelerator's memory."""
    return one_device(jax.local_devices(backend="cpu")[0])


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns where the leaf at `path` ("lora/q/a", also inside optimizer state) lies.

    Raises: ValueError if no rule names it, or for another rank: a new tensor needs a decision, not a default.
    """
    if not shape:
        return PartitionSpec()
    for pattern, axes in RULES:  # noqa: B007  (of the rule that is found)
        if re.search(rf"(^|/){pattern}$", path):
            break
    else:
        raise ValueError(
            f"no sharding rule for {path!r} of shape {shape}; add one to parallel.mesh.RULES"
        )
    if axes and len(axes) != len(shape):
        raise ValueError(
            f"the sharding rule {pattern!r} is for {len(axes)} dimensions; {path!r} has shape {shape}"
        )
    fits = [
        axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape)
    ]
    return PartitionSpec(*fits)


def shard_tree(tree: Any, mesh: Mesh) -> Any:
    """Returns the tree with each leaf (array or ShapeDtypeStruct) replaced by its NamedSharding."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    specs = [spec_of(name, leaf.shape, mesh) for name, (_, leaf) in zip(names, flat)]
    return jax.tree.unflatten(treedef, [NamedSharding(mesh, spec) for spec in specs])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises: ValueError unless every device gets the same number of rows in every microbatch."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * microbatches
    if batch_size % parts:
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of {parts} = data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']} x microbatches {microbatches}"
        )


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the global batch (the same on every process) laid over the mesh by rows."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)
        for name, rows in batch.items()
    }


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


def devices_in_words() -> str:
    """Returns "4 TPU v5e devices", or what there is."""
    devices = jax.devices()
    return f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}"
