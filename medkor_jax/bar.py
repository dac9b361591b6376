"""How far a long piece of work is: a bar in a terminal, a plain line now and then where standard error is a file or a pipe.

    with Bar("phase3/train", total=400, unit="step") as bar:
        bar.to(120, loss="2.314")

A bar keeps to the width of its window. A line in a log says when it was written, what is done and what is left. `on=False` is
silent, as every process but the first is.
"""

from __future__ import annotations

import sys
import time
from typing import Any

_LINE_EVERY = 30.0  # seconds


class Bar:
    """Counts from `start` to `total`. A stage that goes on counts its pace from where it goes on."""

    def __init__(
        self, name: str, *, total: int, unit: str, start: int = 0, on: bool = True
    ) -> None:
        self._name, self._total, self._unit, self._on = name, total, unit, on
        self._start = self._done = start
        self._began = self._last = time.monotonic()
        self._drawn: Any = None
        if on and sys.stderr.isatty():
            from tqdm import tqdm

            self._drawn = tqdm(
                total=total,
                initial=start,
                desc=name,
                unit=unit,
                dynamic_ncols=True,
                mininterval=1.0,
            )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def to(self, done: int, **shown: str) -> None:
        """Says that `done` are done. shown: numbers to stand beside it."""
        if self._drawn is not None:
            self._drawn.set_postfix(shown, refresh=False)
            self._drawn.update(done - self._done)
        self._done = done
        if not self._on or self._drawn is not None:
            return
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY and done > self._start:
            self._last = now
            print(self._line(now - self._began, shown), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._drawn is not None:
            self._drawn.close()

    def _line(self, seconds: float, shown: dict[str, str]) -> str:
        left = seconds / (self._done - self._start) * (self._total - self._done)
        said = "".join(f", {name} {value}" for name, value in shown.items())
        return (
            f"{time.strftime('%H:%M:%S')} {self._name}: {self._done} of {self._total} {self._unit}s"
            f"{said}, {in_words(seconds)} so far, about {in_words(left)} left"
        )


def in_words(seconds: float) -> str:
    """Returns "40 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
