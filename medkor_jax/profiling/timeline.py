"""The events of a trace, put together to time by kind: at every moment, what was running.

    spent = read_spent("out/plugins/profile/.../host.xplane.pb")
    spent.seconds["attention"]

Where several instructions run at once, the moment is shared between them, so that kinds add up to the time that the device
was busy. A loop counts only where nothing inside it runs. Several accelerators are averaged; the devices of a CPU share its
cores and are taken as one.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator

from jax.profiler import ProfileData

from medkor_jax.profiling.programs import Op, read_programs

PRODUCTS, ATTENTION, HEAD, OPTIMIZER = "matrix products", "attention", "head and loss", "optimizer"
SAMPLING, COLLECTIVES, REST = "sampling", "collectives", "norms, rotations, copies"
BATCHES = "making batches, device idle"
KINDS = (PRODUCTS, ATTENTION, HEAD, OPTIMIZER, SAMPLING, COLLECTIVES, REST, BATCHES)
BATCH_MARK = "medkor batch"
"""The annotation around what makes a batch."""

_SCOPES = {"attention": ATTENTION, "head": HEAD, "optimizer": OPTIMIZER, "sampling": SAMPLING}  # `jax.named_scope`s of the model
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_CONTAINERS = ("while", "call", "conditional")
_REMADE = "rematted_computation"
_UNKNOWN = Op("", "", False)


@dataclasses.dataclass(frozen=True)
class Spent:
    """Seconds, of the whole trace. seconds: by kind, as `KINDS`; programs: by compiled program; remade: what the backward pass
    computed again, whatever its kind."""

    seconds: dict[str, float]
    programs: dict[str, float]
    remade: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Event:
    """weight: 2 an instruction, 1 one that only holds others, 0 the host's. Times in nanoseconds."""

    start: float
    end: float
    kind: str
    program: str = ""
    is_remade: bool = False
    weight: int = 2


def kind_of(op: Op) -> str:
    if op.opcode.startswith(_COLLECTIVES):
        return COLLECTIVES
    scopes = re.split(r"[/()]", op.where)
    named = [_SCOPES[scope] for scope in scopes if scope in _SCOPES]
    return named[-1] if named else PRODUCTS if op.has_product else REST


def read_spent(path: pathlib.Path) -> Spent:
    """Returns where the time of the trace at `path` went.

    Raises: ValueError if no instruction of a program is in it.
    """
    raw = path.read_bytes()
    programs, planes = read_programs(raw), list(ProfileData.from_serialized_xspace(raw).planes)
    host = [event for plane in planes if plane.name.startswith("/host:") for event in _host_events(plane)]
    on_devices = [list(_device_events(plane, programs)) for plane in planes if plane.name.startswith("/device:")]
    on_devices = [events for events in on_devices if events] or [
        [event for plane in planes if plane.name == "/host:CPU" for event in _cpu_events(plane, programs)]
    ]
    if not on_devices[0]:
        raise ValueError(f"{path} holds no instruction of a compiled program; planes: {', '.join(plane.name for plane in planes)}")
    each = [share_out([*events, *host]) for events in on_devices]
    mean = lambda parts: {k: sum(part.get(k, 0.0) for part in parts) / len(each) for k in dict.fromkeys(k for part in parts for k in part)}  # noqa: E731
    return Spent(mean([one.seconds for one in each]), mean([one.programs for one in each]), sum(one.remade for one in each) / len(each))


def share_out(events: Iterable[Event]) -> Spent:
    """Returns the time during which anything of the greatest weight present ran, each moment shared between those that did."""
    events = list(events)
    edges = sorted((time, is_start, i) for i, e in enumerate(events) for time, is_start in ((e.start, True), (e.end, False)))
    running: tuple[set[int], ...] = (set(), set(), set())
    seconds: dict[str, float] = collections.defaultdict(float)
    programs: dict[str, float] = collections.defaultdict(float)
    remade, before = 0.0, 0.0
    for time, is_start, i in edges:
        if now := running[2] or running[1] or running[0]:
            share = (time - before) / len(now) / 1e9
            for event in (events[j] for j in now):
                seconds[event.kind] += share
                programs[event.program] += share if event.program else 0.0
                remade += share if event.is_remade else 0.0
        before = time
        (running[events[i].weight].add if is_start else running[events[i].weight].discard)(i)
    programs.pop("", None)
    return Spent(dict(seconds), dict(programs), remade)


def _cpu_events(plane, programs: dict[str, dict[str, Op]]) -> Iterator[Event]:
    for line in plane.lines:
        for event in line.events:
            stats = dict(event.stats)
            if "hlo_op" in stats and event.duration_ns > 0:
                yield _event(event, stats, programs)


def _device_events(plane, programs: dict[str, dict[str, Op]]) -> Iterator[Event]:
    """A TPU has its instructions on one line; a GPU has a line for each of its streams, of kernels that say whose they are."""
    lines = {line.name: line for line in plane.lines}
    chosen = [lines["XLA Ops"]] if "XLA Ops" in lines and not any(n.startswith("Stream") for n in lines) else []
    for line in chosen or [line for name, line in lines.items() if name.startswith("Stream")]:
        for event in line.events:
            if event.duration_ns > 0:
                yield _event(event, dict(event.stats), programs)


def _host_events(plane) -> Iterator[Event]:
    for line in plane.lines:
        for event in line.events:
            if event.name == BATCH_MARK:
                yield Event(event.start_ns, event.start_ns + event.duration_ns, BATCHES, weight=0)


def _event(event, stats: dict, programs: dict[str, dict[str, Op]]) -> Event:
    name = str(stats.get("hlo_op") or re.match(r"%?([\w.-]*)", event.name)[1])
    program = f"{stats.get('hlo_module', '')}({stats.get('program_id', '')})"
    if name not in programs.get(program, ()):  # not said whose it is: the one program that has it, as far as that can be told
        program = next((p for p, ops in programs.items() if name in ops), str(stats.get("hlo_module", "")))
    op = programs.get(program, {}).get(name, _UNKNOWN)
    if not op.where and "tf_op" in stats:
        op = dataclasses.replace(op, where=str(stats["tf_op"]))
    weight = 1 if op.opcode in _CONTAINERS else 2
    return Event(event.start_ns, event.start_ns + event.duration_ns, kind_of(op), program.split("(")[0], _REMADE in op.where, weight)
