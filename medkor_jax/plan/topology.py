"""Machines by name, and what a chip of each can do.

    topology = parse_topology("v5e:4x4")        # also "cpu:8", "cpu:8x4GB", "gpu:8x80GB"
    topology.n_chips, topology.chip.memory_bytes, topology.ici_bytes_per_s

Peaks are the published ones, so that a time computed from them is a bound from below. Memory is what the compiler lets a
program have of it.
"""

from __future__ import annotations

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: bfloat16 products a second; main_bytes_per_s: to and from its memory; link_bytes_per_s: one link, one way.

    ring_from: the
    least length of a side of a slice at which its ends are joined.
    """

    name: str
    memory_bytes: float
    flops: float
    main_bytes_per_s: float
    link_bytes_per_s: float
    ring_from: int = 16


# Source: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e} for FLOPs and memory rates; one link, one way, from "How to scale your
# model" (jax-ml.github.io/scaling-book/tpus), table 1: 45, 90, 90 GB/s. Memory: what libtpu's compiler says a program may
# have ("exceeds available HBM (15.75G)").
CHIPS = {
    "v5e": Chip("v5e", 15.75 * GIB, 197e12, 819e9, 45e9),
    "v5p": Chip("v5p", 95.73 * GIB, 459e12, 2765e9, 90e9, ring_from=4),
    "v6e": Chip("v6e", 31.24 * GIB, 918e12, 1640e9, 90e9),
}

# Source: NVIDIA's data sheets, dense bfloat16, SXM parts; 900 GB/s of NVLink both ways are 450 one way. A process keeps about 3 % of the memory
# for its context and libraries.
GPU_SHARE = 0.97
GPUS = {
    80: Chip("gpu 80GB (H100)", 80e9 * GPU_SHARE, 989e12, 3350e9, 450e9),
    40: Chip("gpu 40GB (A100)", 40e9 * GPU_SHARE, 312e12, 1555e9, 300e9),
    24: Chip("gpu 24GB (L4)", 24e9 * GPU_SHARE, 121e12, 300e9, 32e9),
    16: Chip("gpu 16GB (T4)", 16e9 * GPU_SHARE, 65e12, 300e9, 16e9),
    141: Chip("gpu 141GB (H200)", 141e9 * GPU_SHARE, 989e12, 4800e9, 450e9),
}

# What jax calls a device (`device_kind`) -> the chip. Without regard to memory: an A100 of 80 GB multiplies as one of 40.
_KINDS = (
    (r"TPU v5( lite|e|litepod)", CHIPS["v5e"]),
    (r"TPU v5p?$", CHIPS["v5p"]),
    (r"TPU v6( lite|e)", CHIPS["v6e"]),
    (r"\bH200\b", GPUS[141]),
    (r"\bH100\b(?!.*(PCIe|NVL))", GPUS[80]),
    (r"\bA100\b", GPUS[40]),
    (r"\bL4\b", GPUS[24]),
    (r"\bT4\b", GPUS[16]),
)

AUTO = (
    "v5e:1x1",
    "v5e:2x2",
    "v5e:2x4",
    "v5e:4x4",
    "v5e:4x8",
    "v6e:1x1",
    "v6e:2x2",
    "v6e:2x4",
    "v6e:4x4",
    "v5p:2x2x1",
    "v5p:2x2x2",
    "v5p:2x2x4",
    "gpu:1x80GB",
    "gpu:2x80GB",
    "gpu:4x80GB",
    "gpu:8x80GB",
)
"""What `--topology auto` tries, one kind of chip after another, each from its smallest slice on."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """name: as it was asked for; sides: of the slice, (8,) for eight devices of one host."""

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def n_chips(self) -> int:
        return math.prod(self.sides)

    @property
    def kind(self) -> str:
        return self.name.split(":")[0]

    @property
    def ici_bytes_per_s(self) -> float:
        """What the chip with the fewest neighbours can receive: one link in each direction the slice extends, two where it is a ring."""
        if self.kind not in CHIPS:
            return self.chip.link_bytes_per_s
        # without a ring, a slice of side 2 has one link; a corner of a longer one too
        links = sum(2 if side >= self.chip.ring_from else 1 for side in self.sides if side > 1)
        return self.chip.link_bytes_per_s * max(links, 1)


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip that jax calls `device_kind`; None if nothing is published of it here."""
    return next((chip for pattern, chip in _KINDS if re.search(pattern, device_kind)), None)


def parse_topology(text: str) -> Topology:
    """Returns the machine called `text`.

    Raises: ValueError naming the forms there are.
    """
    kind, _, size = text.partition(":")
    if kind in CHIPS and re.fullmatch(r"\d+(x\d+){1,2}", size):
        return Topology(text, CHIPS[kind], tuple(int(n) for n in size.split("x")))
    if kind == "gpu" and (found := re.fullmatch(r"(\d+)x(\d+)GB", size)):
        if int(found[2]) in GPUS:
            return Topology(text, GPUS[int(found[2])], (int(found[1]),))
        raise ValueError(
            f"topology {text!r}: no GPU of {found[2]} GB is known; expected {', '.join(f'{n}GB' for n in sorted(GPUS))}"
        )
    if kind == "cpu" and (found := re.fullmatch(r"(\d+)(?:x(\d+)GB)?", size)):
        # of a CPU nothing is published that would bound a step: what a core of today multiplies and reads at best
        memory = int(found[2] or 4) * 1e9
        return Topology(text, Chip("cpu", memory, 2e12, 50e9, 10e9), (int(found[1]),))
    raise ValueError(
        f"topology {text!r} is not understood; expected a TPU slice such as v5e:4x4, v6e:2x4 or v5p:2x2x2, GPUs such as gpu:8x80GB, "
        "cpu:8, or auto"
    )
