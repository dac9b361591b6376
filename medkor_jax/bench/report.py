"""What was measured, as a terminal table and as JSON.

    row = compare("text", "tokens/s", rates_ours, rates_other, at_least=1.0)
    print(Report(settings, versions, [row], notes).table())

Medians, and the ratio of medians; the spread is the smallest and largest ratio of a pair of neighbouring steps,
so it shows what the machine did meanwhile. Does not measure.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Sequence
from typing import Any

from medkor_jax.bench.stopwatch import n_cpus


@dataclasses.dataclass(frozen=True)
class Row:
    """One line. ratio = ours / other; spread: its range over pairs; wanted: the bounds it should keep, None if open."""

    case: str
    unit: str
    ours: float
    other: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    wanted: tuple[float | None, float | None] = (None, None)
    samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        """None where nothing was asked or nothing could be compared."""
        low, high = self.wanted
        if self.ratio is None or (low is None and high is None):
            return None
        return (low is None or self.ratio >= low) and (high is None or self.ratio <= high)


def compare(
    case: str,
    unit: str,
    ours: Sequence[float],
    other: Sequence[float] = (),
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """Returns the row of two series of measurements taken in turns; the other one may be missing.

    Raises: ValueError if both are there and differ in number.
    """
    middle = statistics.median(ours)
    samples = {"ours": list(ours)} | ({"other": list(other)} if other else {})
    if not other:
        return Row(case, unit, middle, wanted=(at_least, at_most), samples=samples)
    if len(ours) != len(other):
        raise ValueError(
            f"{case}: {len(ours)} measurements of ours, {len(other)} of the other; they are taken in pairs"
        )
    pairs = [a / b for a, b in zip(ours, other)]
    reference = statistics.median(other)
    return Row(
        case,
        unit,
        middle,
        reference,
        middle / reference,
        (min(pairs), max(pairs)),
        (at_least, at_most),
        samples,
    )


@dataclasses.dataclass(frozen=True)
class Report:
    settings: dict[str, Any]
    versions: dict[str, Any]
    rows: list[Row]
    notes: list[str]
    steps: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # case -> each side's timed steps, with CPU seconds

    @property
    def is_met(self) -> bool:
        """False if any bound was missed; what could not be compared misses nothing."""
        return all(row.is_met is not False for row in self.rows)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        head = ("case", "unit", "ours", "other", "ratio", "of pairs", "wanted", "")
        lines = [head] + [_cells(row) for row in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        body = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.versions["machine"], "", *body, "", *self.notes])

    def save(self, path: str | pathlib.Path) -> None:
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [dataclasses.asdict(row) | {"is_met": row.is_met} for row in self.rows]
        content = {
            "settings": self.settings,
            "versions": self.versions,
            "rows": rows,
            "notes": self.notes,
            "steps": self.steps,
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_machine() -> str:
    """Returns CPU, cores usable, memory and the load found, in a line."""
    model, info = platform.processor() or platform.machine(), pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return f"{model}, {n_cpus()} CPUs, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}; load at start {load:.1f}"


def _cells(row: Row) -> tuple[str, ...]:
    low, high = row.wanted
    wanted = " ".join(
        filter(None, (low is not None and f">= {low:g}", high is not None and f"<= {high:g}"))
    )
    spread = f"{row.spread[0]:.2f}-{row.spread[1]:.2f}" if row.spread else ""
    verdict = {True: "met", False: "MISSED", None: ""}[row.is_met]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return (
        row.case,
        row.unit,
        _number(row.ours),
        "" if row.other is None else _number(row.other),
        ratio,
        spread,
        wanted,
        verdict,
    )


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.2f}"
