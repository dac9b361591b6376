"""One program compiled for a machine that is not there: what a chip would hold and do.

    with machine(topology, MeshShape(fsdp=-1)) as mesh:
        found = compile_program(program, config, mesh, topology)
    found.memory["total"], found.cost.flops, found.fits

A TPU slice is compiled for by its own compiler (libtpu). `cpu:N` is compiled for N devices of this host. GPUs are not
compiled for (`arithmetic`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from medkor_jax.model.config import ModelConfig
from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.plan import kept
from medkor_jax.plan.handcount import costly_share, hand_flops, kernel_flops
from medkor_jax.plan.lowering import traceable
from medkor_jax.plan.program import Cost, read_program
from medkor_jax.plan.stages import WRITE, Program
from medkor_jax.plan.topology import CHIPS, GIB, Topology

# How libtpu says that a program needs more than there is: 0.0.52, and earlier ones. "G" is GiB.
_REFUSALS = (
    r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Found:
    """What one program is on a machine, all of it of one chip.

    memory: bytes by what they are; "total" is all of it. cost: of one run (of one token, for the program that writes).
    hand: useful FLOPs by hand. how: "compiled" or "by arithmetic". refused: what the compiler said if it did not fit.
    """

    memory: dict[str, float]
    cost: Cost
    hand: float
    how: str
    seconds: float
    memory_limit: float
    refused: str = ""

    @property
    def fits(self) -> bool:
        return not self.refused and self.memory["total"] <= self.memory_limit


def prepare(topology: Topology) -> None:
    """Sets the process up to compile for a machine it does not have. Call before anything touches a device.

    Raises: ModuleNotFoundError without the TPU's compiler.
    """
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    # the TPU's compiler ends the process at a flag that only a CPU's knows
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(f for f in flags if not f.startswith("--xla_cpu_"))
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # nothing compiled here can be run here
    if topology.kind in CHIPS and importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            f"planning for {topology.name} needs the TPU compiler, which is not installed: pip install 'medkor-jax[plan]' (or plan "
            "for gpu:NxMGB, by arithmetic)"
        )
    if topology.kind not in CHIPS:
        with contextlib.suppress(
            RuntimeError
        ):  # too late to ask for devices: `machine` says so if there are too few
            jax.config.update("jax_num_cpu_devices", topology.n_chips)


@contextlib.contextmanager
def machine(topology: Topology, shape: MeshShape) -> Iterator[Mesh]:
    """Yields the mesh of the machine, in force.

    Raises: ValueError if there is no such slice, or the mesh does not use all of it.
    """
    if topology.kind in CHIPS:
        from jax.experimental import topologies

        try:
            devices = topologies.get_topology_desc(topology.name, "tpu").devices
        except Exception as error:  # a bare RuntimeError of the library, without a type of its own
            raise ValueError(
                f"the TPU compiler knows no slice {topology.name!r}: {str(error).splitlines()[0]}"
            ) from error
    else:
        devices = jax.devices("cpu")[: topology.n_chips]
        if len(devices) < topology.n_chips:
            raise ValueError(
                f"{topology.name} needs {topology.n_chips} devices of this host and the process was started with {len(devices)}; unset XLA_FLAGS"
            )
    mesh = make_mesh(shape, devices)
    with jax.set_mesh(mesh):
        yield mesh


@dataclasses.dataclass(frozen=True)
class Started:
    """A program that was lowered and waits for its compiler."""

    program: Program
    config: ModelConfig
    lowered: Any
    topology: Topology
    memory: dict[str, float]
    hand: float
    open_trips: float | None
    costly_share: float


def compile_program(program: Program, config: ModelConfig, mesh: Mesh, topology: Topology) -> Found:
    """Returns what `program` needs and does on a chip of `mesh`, which is in force."""
    return finish(start(program, config, mesh, topology))


def start(program: Program, config: ModelConfig, mesh: Mesh, topology: Topology) -> Started:
    """Returns the program lowered for `mesh`, which is in force; `finish` may then run in another thread."""
    asked = traceable(program, config, mesh)
    memory = {name: sharded_bytes(part) for name, part in asked.parts.items()}
    hand = hand_flops(program, config) / mesh.size
    return Started(
        program,
        config,
        asked.lower(),
        topology,
        memory,
        hand,
        1.0 if program.kind == WRITE else None,
        costly_share(program, config),
    )


def finish(started: Started) -> Found:
    """Returns what the compiler says of the program; from the disk, if it was asked this before (`kept`)."""
    began = time.perf_counter()
    key = kept.key_of(
        started.lowered.as_text(), started.topology.name, started.open_trips, started.costly_share
    )
    if (said := kept.read(key)) is None:
        said = _compile(started)
        kept.write(key, said)
    memory, seconds = {**started.memory, **said["memory"]}, time.perf_counter() - began
    seen = [
        (kernel, kernel_flops(kernel, started.program, started.config))
        for kernel in said["cost"].kernels
    ]
    cost = dataclasses.replace(
        said["cost"],
        flops=said["cost"].flops + sum(flops or 0.0 for _, flops in seen),
        kernels=tuple(kernel for kernel, flops in seen if flops is None),
    )
    return Found(
        memory,
        cost,
        started.hand,
        "compiled",
        seconds,
        started.topology.chip.memory_bytes,
        said["refused"],
    )


def _compile(started: Started) -> dict[str, Any]:
    try:
        compiled = started.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not (used := _used(str(error))):
            raise
        return {
            "memory": {"total": used},
            "cost": Cost(),
            "refused": f"the compiler needs {_refusal(str(error))}",
        }
    sizes = compiled.memory_analysis()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "temporary": sizes.temp_size_in_bytes,
        "not aliased": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
    }
    memory["total"] = sum(memory.values())
    return {
        "memory": memory,
        "cost": read_program(
            compiled.as_text(), open_trips=started.open_trips, costly_share=started.costly_share
        ),
        "refused": "",
    }


def sharded_bytes(tree: Any) -> float:
    """Returns the bytes of a tree of abstract arrays on one device."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        total += leaf.dtype.itemsize * math.prod(shape)
    return total


def _used(message: str) -> float:
    """Returns the bytes that the compiler says it would have needed, 0 if its complaint is another."""
    for form in _REFUSALS:
        if found := re.search(form, message):
            return float(found[1]) * _UNITS[found[2]]
    return 0.0


def _refusal(message: str) -> str:
    """Returns what the compiler said, without its codes and addresses."""
    found = next(found for form in _REFUSALS if (found := re.search(form, message)))
    return f"{found[1]}{found[2]}iB of {found[3]}{found[4]}iB"
