"""What a stage measured, one JSON line a step, and the same for TensorBoard.

    log = MetricsLog(directory, resumed_at=120)
    log.write(121, {"loss": 2.1, "layer_kl_nats": array})

Lines after the step a stage resumes from are dropped first, so no step stands in the file twice. Only
the first process writes.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from medkor_jax.io.files import write_atomically
from medkor_jax.parallel import hosts


class MetricsLog:
    """metrics.jsonl ({"step", name: number or list}) and TensorBoard events in `directory`."""

    def __init__(self, directory: pathlib.Path, resumed_at: int) -> None:
        self._file = self._board = None
        if not hosts.is_first():
            return
        from tensorboardX import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        kept, rows = [], [(line, _row(line)) for line in _lines(path)]
        if damaged := sum(row is None for _, row in rows):
            hosts.say(f"{path}: {damaged} damaged lines are left out")
        for line, row in rows:
            if row and row.get("step", row.get("at_step", 0)) <= resumed_at:
                kept.append(line)
        hosts.alone(lambda: write_atomically(path, "".join(kept)))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(directory / "tensorboard"), purge_step=resumed_at + 1, flush_secs=30
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        row: dict[str, Any] = {"step": step}
        for name, value in values.items():
            array = np.asarray(value, np.float64)
            row[name] = (
                _plain(float(array)) if array.ndim == 0 else [_plain(x) for x in array.tolist()]
            )
            if array.ndim == 0 and math.isfinite(array):
                self._board.add_scalar(name, float(array), step)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def note(self, values: Mapping[str, Any]) -> None:
        """Writes a line that belongs to no step (compile time)."""
        if self._file is not None:
            self._file.write(json.dumps(dict(values)) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def read_metrics(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of a stage that belong to a step, in order."""
    rows = [_row(line) for line in _lines(directory / "metrics.jsonl")]
    return [row for row in rows if row and "step" in row]


def _lines(path: pathlib.Path) -> list[str]:
    """Whole lines only: a killed process may leave half of one."""
    if not path.exists():
        return []
    return [
        line
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        if line.endswith("\n")
    ]


def _row(line: str) -> dict[str, Any] | None:
    """Returns what a line holds; None of a damaged one, which no step depends on."""
    try:
        row = json.loads(line)
        return row if isinstance(row, dict) else None
    except ValueError:
        return None


def _plain(x: float) -> float | None:
    return x if math.isfinite(x) else None
