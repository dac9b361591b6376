"""Steps whose loss cannot be trusted: which they are, what they learnt from, and what becomes of it.

    watch = Watch(plan, start=120, saved=lambda: 100)
    watch.look(121, loss, batch)            # Spike, once the batch is kept in bad-batch-121.npz
    leave_out(plan, spike)                  # on_spike='step_back': from the last checkpoint on, the step takes the next batch
    left_out(plan.directory)                # {121: 1}

A loss that is not finite is one; so is a loss `spike_nats` above the median of those before it, if a config asks for that. What is left
out is on disk before the stage goes on, and so a stage that is killed later leaves out the same. It does not look at gradients.
"""

from __future__ import annotations

import collections
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from medkor_jax.io.files import read_json_file, write_json
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.train.metrics import read_metrics
from medkor_jax.train.stage_plan import StagePlan

MOST = 3
"""Batches that a stage may leave out; more is no accident."""
N_BEFORE = 20
_FEW = 5  # losses; a median of fewer says little
FILE = "left-out.json"


class Spike(FloatingPointError):
    """The loss of step `step` is not finite, or far above those before it. found: that, without the advice."""

    def __init__(self, found: str, advice: str, step: int) -> None:
        super().__init__(f"{found}. {advice}")
        self.found, self.step = found, step


class Watch:
    """Looks at each loss of a stage, in order. saved: the step of the last checkpoint."""

    def __init__(self, plan: StagePlan, start: int, saved: Callable[[], int]) -> None:
        self._plan, self._saved = plan, saved
        rows = read_metrics(plan.directory) if plan.stage.spike_nats else []
        before = [
            row["loss"] for row in rows if row["step"] <= start and row.get("loss") is not None
        ]
        self._losses = collections.deque(
            hosts.first("the losses before", lambda: before[-N_BEFORE:]), maxlen=N_BEFORE
        )

    def look(self, number: int, loss: Any, batch: Mapping[str, np.ndarray]) -> None:
        """Raises: Spike if step `number` is one, with its batch kept."""
        value, most = float(loss), self._plan.stage.spike_nats
        usual = statistics.median(self._losses) if len(self._losses) >= _FEW else value
        if np.isfinite(value) and not (most and value > usual + most):
            self._losses.append(value)
            return
        path = self._plan.directory / f"bad-batch-{number}.npz"
        kept = {name: np.asarray(part) for name, part in batch.items()}
        hosts.first(path, lambda: np.savez(path, allow_pickle=False, **kept))
        above = f", the {len(self._losses)} before it had {usual:.3g}" if np.isfinite(value) else ""
        raise Spike(
            f"{self._plan.name}: the loss is {value:.6g} at step {number}{above}. What it learnt from is kept in {path}; "
            f"the last checkpoint is at step {self._saved()}",
            "Lower the learning rate, or mend the data, then start the phase again with --restart; or set on_spike='step_back', "
            "and the same command goes on without this batch",
            number,
        )


def left_out(directory: pathlib.Path) -> dict[int, int]:
    """Returns how many batches a step leaves out before the one that it takes. Raises: ValueError if the file is damaged."""
    path = directory / FILE

    def read() -> dict[str, int]:
        said = read_json_file(path) if path.exists() else {}
        if not all(step.isdigit() and isinstance(n, int) for step, n in said.items()):
            raise ValueError(f"{path} is damaged: expected counts by step; put it back")
        return said

    return {int(step): n for step, n in hosts.first(path.name, read).items()}


def leave_out(plan: StagePlan, spike: Spike) -> None:
    """Notes that the step of the spike takes another batch. Raises: the spike, unless the stage may step back once more."""
    before = left_out(plan.directory)
    if plan.stage.on_spike != "step_back":
        raise spike
    if sum(before.values()) >= MOST:
        raise Spike(
            f"{spike.found}, and {MOST} batches were left out before",
            "Lower the learning rate, or mend the data, then start the phase again with --restart",
            spike.step,
        )
    said = before | {spike.step: before.get(spike.step, 0) + 1}
    write_json(plan.directory / FILE, {str(step): n for step, n in sorted(said.items())})
    say(f"{spike.found}. The stage goes back there, and on without this batch")
