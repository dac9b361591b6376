"""What a person sees of a stage while it runs: the bar, the log, and how long a step takes.

    with Progress(plan, start=0, saved=lambda: 0) as progress:
        progress.stepped(1, batch, drawn, metrics)          # noted; nothing waits for the device
        progress.flush()                                    # written, once all of it is there
        progress.validated(1, nats)

Metrics wait on the device until they are flushed, so that steps follow one another without a look
at them. A loss that cannot be trusted is found then (`spikes`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from medkor_jax.bar import Bar
from medkor_jax.parallel import hosts
from medkor_jax.train.metrics import MetricsLog
from medkor_jax.train.spikes import Watch
from medkor_jax.train.stage_plan import StagePlan
from medkor_jax.train.trainable import learning_rate


class Progress:
    """Of one stage, from step `start` on. saved: the step of the last checkpoint."""

    def __init__(self, plan: StagePlan, start: int, saved: Callable[[], int]) -> None:
        stage = plan.stage
        self._start = start
        self._rates = {
            rule.name: learning_rate(rule, stage.schedule) for rule in stage.rules_in_force
        }
        self._log = MetricsLog(plan.directory, start)
        self._watch = Watch(plan, start, saved)
        self._bar = Bar(plan.name, total=stage.steps, unit="step", start=start, on=hosts.is_first())
        self._waiting: list[tuple[int, Mapping[str, np.ndarray], dict[str, float], Any]] = []
        self._clock = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._log.close()

    def stepped(
        self,
        number: int,
        batch: Mapping[str, np.ndarray],
        drawn: dict[str, float],
        metrics: dict[str, jax.Array],
    ) -> None:
        """Notes a step. batch: what it learnt from; drawn: what is known of how that was made.

        Raises: Spike, as `flush`.
        """
        if number == self._start + 1:
            self._first(number, batch, drawn, metrics)
        else:
            self._waiting.append((number, batch, drawn, metrics))

    def _first(
        self,
        number: int,
        batch: Mapping[str, np.ndarray],
        drawn: dict[str, float],
        metrics: dict[str, jax.Array],
    ) -> None:
        """The first step is written at once, without a time: compiling is in it."""
        jax.block_until_ready(metrics)
        self._log.note(
            {
                "compiled_and_first_step_seconds": time.perf_counter() - self._clock,
                "at_step": number,
            }
        )
        self._clock = time.perf_counter()
        self._log.write(
            number,
            {name: np.asarray(value) for name, value in metrics.items()}
            | drawn
            | {"tokens": _n_tokens(batch)},
        )
        self._watch.look(number, metrics["loss"], batch)

    def flush(self) -> None:
        """Writes what waits. Raises: Spike if a loss cannot be trusted (`spikes`)."""
        if not self._waiting:
            return
        jax.block_until_ready(self._waiting[-1][3])
        now = time.perf_counter()
        seconds = (now - self._clock) / len(self._waiting)
        self._clock = now
        for number, batch, drawn, metrics in self._waiting:
            n_tokens = _n_tokens(batch)
            row = {name: np.asarray(value) for name, value in metrics.items()} | drawn
            row |= {
                "tokens_per_second": n_tokens / seconds,
                "step_seconds": seconds,
                "tokens": n_tokens,
            }
            row |= {
                f"learning_rate/{name}": float(rate(number - 1))
                for name, rate in self._rates.items()
            }
            self._log.write(number, row)
            self._watch.look(number, row["loss"], batch)
        shown = {"reward": f"{row['rollout/reward']:.3f}"} if "rollout/reward" in row else {}
        self._bar.to(
            self._waiting[-1][0],
            loss=f"{float(row['loss']):.3f}",
            tokens_s=f"{row['tokens_per_second']:.0f}",
            **shown,
        )
        self._waiting.clear()

    def validated(self, number: int, nats: float) -> None:
        """Writes the loss on held-out text; its time is no step's."""
        self._log.write(number, {"validation_nats": nats})
        self._clock = time.perf_counter()


def _n_tokens(batch: Mapping[str, np.ndarray]) -> int:
    """Returns how many tokens of the batch are no padding."""
    return int((batch["segment_ids"] > 0).sum())
