"""What would make a plan fit: changes tried one after another, the one that costs least speed first.

    change = first_that_fits(failing, shape, config, topology, say)      # Change(words="remat full, 2 microbatches"), or None

On the mesh as it is, then with all weights sharded: more made again in the backward pass, then more microbatches, then
half the batch. A change is not compiled for where what lies in memory throughout is already too much.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.remat import KEPT
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.plan.compiling import machine, sharded_bytes
from medkor_jax.plan.lowering import traceable
from medkor_jax.plan.measuring import measure
from medkor_jax.plan.stages import STEP, Program
from medkor_jax.plan.topology import GIB, Topology

MOST_MICROBATCHES = 16


@dataclasses.dataclass(frozen=True)
class Change:
    """remat "": as each program has it. microbatches: at least; rows: the batch is divided by this."""

    shape: MeshShape
    mesh_words: str = ""
    remat: str = ""
    microbatches: int = 1
    rows: int = 1

    @property
    def words(self) -> str:
        parts = [
            self.mesh_words,
            f"remat={self.remat!r}" if self.remat else "",
            f"microbatches={self.microbatches}" if self.microbatches > 1 else "",
            f"batch_size divided by {self.rows}" if self.rows > 1 else "",
        ]
        return ", ".join(part for part in parts if part)

    def of(self, program: Program) -> Program:
        """Returns the program as it would be. Programs without a backward pass know neither remat nor microbatches."""
        program = dataclasses.replace(program, rows=program.rows // self.rows)
        if program.kind != STEP:
            return program
        micro = max(program.spec.microbatches, self.microbatches)
        compute = dataclasses.replace(
            program.spec.compute, remat=self.remat or program.spec.compute.remat
        )
        return dataclasses.replace(
            program, spec=dataclasses.replace(program.spec, compute=compute, microbatches=micro)
        )


def changes(programs: Sequence[Program], shape: MeshShape, n_devices: int) -> Iterator[Change]:
    """Yields the changes to try, those that cannot be divided over the devices left out."""
    now = max((program.spec.compute.remat for program in programs), key=list(KEPT).index)
    stronger = list(KEPT)[list(KEPT).index(now) + 1 :]
    sharded = MeshShape(
        1, n_devices // max(shape.resolve(n_devices)[2], 1), shape.resolve(n_devices)[2]
    )
    meshes = [(shape, "")]
    if shape.resolve(n_devices)[1] != sharded.fsdp:
        meshes.append((sharded, f"mesh data=1, fsdp={sharded.fsdp}, tensor={sharded.tensor}"))
    for mesh, words in meshes:
        data, fsdp, _ = mesh.resolve(n_devices)
        tried = [Change(mesh, words)] if words else []
        tried += [Change(mesh, words, remat) for remat in stronger]
        last = stronger[-1] if stronger else ""
        counts = [2**i for i in range(1, MOST_MICROBATCHES.bit_length())]
        tried += [Change(mesh, words, last, n) for n in counts]
        tried += [Change(mesh, words, last, n, rows) for rows in (2, 4) for n in (1, *counts)]
        for change in tried:
            changed = [change.of(program) for program in programs]
            ways = data * fsdp
            whole = all(
                program.rows % (ways * (program.spec.microbatches if program.kind == STEP else 1))
                == 0
                for program in changed
            )
            if whole and (changed != list(programs) or words):
                yield change


def first_that_fits(
    failing: Sequence[Program],
    shape: MeshShape,
    config: ModelConfig,
    topology: Topology,
    say: Callable[[str], None],
) -> tuple[Change | None, list[str]]:
    """Returns the first change under which all of `failing` fit (None if none does), and what was tried, in words."""
    tried: list[str] = []
    for change in changes(failing, shape, topology.n_chips):
        with machine(topology, change.shape) as mesh:
            why = _why_not([change.of(program) for program in failing], config, mesh, topology)
        tried.append(f"{change.words}: {why or 'fits'}")
        say(f"tried {tried[-1]}")
        if not why:
            return change, tried
    return None, tried


def _why_not(programs: Sequence[Program], config: ModelConfig, mesh, topology: Topology) -> str:
    """Returns why a program does not fit, "" if all do."""
    for program in dict.fromkeys(programs):
        throughout = sum(
            sharded_bytes(part) for part in traceable(program, config, mesh).parts.values()
        )
        if throughout > topology.chip.memory_bytes:
            return f"{throughout / GIB:.1f} GiB lie there throughout, of {topology.chip.memory_bytes / GIB:.1f}"
    for program in dict.fromkeys(programs):
        found = measure(program, config, mesh, topology)
        if not found.fits:
            return f"{program.kind} needs {found.memory['total'] / GIB:.1f} GiB"
    return ""
