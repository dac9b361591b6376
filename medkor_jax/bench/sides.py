"""Ours and the peer, asked for one case: prepared as fits, timed in turns on a CPU and one after the other elsewhere.

    sides = Sides(settings, environment)
    rows, firsts, times = sides.measure("text", "step", "tokens/s", n_tokens, flops, {"ours": ways, "peer": ways})

What was said meanwhile is in `notes`, `versions` and `steps`. Does not know what a case means.
"""

from __future__ import annotations

import contextlib
import re
import statistics
from collections.abc import Callable
from typing import Any

from medkor_jax.bench.machine import Settings
from medkor_jax.bench.report import Row, compare
from medkor_jax.bench.worker import Worker, WorkerError
from medkor_jax.plan.topology import GIB

_TOO_LARGE = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemory|out of memory")


class Sides:
    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        """environment: what the sides' processes have beside this one's."""
        self.settings, self.environment = settings, environment
        self.notes: list[str] = []
        self.versions: dict[str, Any] = {}
        self.steps: dict[str, list[list[dict[str, Any]]]] = {}

    def measure(
        self,
        case: str,
        order: str,
        unit: str,
        n_tokens: int,
        flops: float,
        ways: dict[str, list[tuple[str, dict[str, Any]]]],
        *,
        check: Callable[..., None] | None = None,
        at_least: float | None = None,
        mfu: float | None = None,
    ) -> tuple[list[Row], list[dict[str, Any]], list[list[dict[str, Any]]]]:
        """Returns the rows of a case, each side's first answer (warm-up, not timed) with what its preparation said, and the timed ones.

        flops: useful ones behind one answer. ways: by side, how it may be prepared; the first that fits is taken.
        """
        s = self.settings
        sides = [side for side in ways if side == "ours" or s.against]
        firsts: list[dict[str, Any]] = []
        times: list[list[dict[str, Any]]] = []
        peaks: list[float] = []
        rates: list[float] = []
        with contextlib.ExitStack() as stack:
            waiting: list[Worker] = []
            for side in sides:
                worker, first = self.first_that_fits(case, side, order, ways[side])
                stack.callback(worker.close)
                waiting.append(worker)
                firsts.append(first)
                # an accelerator has room for one side at a time
                if not s.is_cpu or side == sides[-1]:
                    own_times, own_peaks, own_rates = self.by_turns(waiting, order)
                    times, peaks, rates = times + own_times, peaks + own_peaks, rates + own_rates
                    waiting = []
        if check:
            check(*firsts)
        without_tokens = lambda one: {k: v for k, v in one.items() if k != "tokens"}
        self.steps[case] = [list(map(without_tokens, answers)) for answers in times]
        seconds = [[one["seconds"] for one in answers] for answers in times]
        work, peak = [flops / x / 1e9 for x in seconds[0]], s.peak or rates[0]
        if len(sides) > 1:
            self.notes.append(
                f"{case}: transformers with PEFT at {flops / statistics.median(seconds[1]) / peak:.1%} of the peak"
            )
        speeds = ([n_tokens / x for x in one] for one in seconds)
        useful, peaks_of_work = (
            f"{case}, useful work (other: peak; ratio: MFU)",
            [peak / 1e9] * len(work),
        )
        rows = [
            compare(case, unit, *speeds, at_least=at_least),
            compare(useful, "GFLOP/s", work, peaks_of_work, at_least=mfu),
            compare(f"{case}, peak memory", "GiB", *([one] for one in peaks)),
        ]
        return rows, firsts, times

    def by_turns(self, workers: list[Worker], order: str) -> tuple[list, list, list]:
        """Returns the timed answers of each worker, its peak memory in GiB, and our rate of products, where no peak is
        known; the workers are closed."""
        s = self.settings
        rounds = [[one.call(order) for one in workers] for _ in range(s.repeats)]
        times = [list(answers) for answers in zip(*rounds, strict=True)]
        peaks = [one.call("peak_memory_bytes") / GIB for one in workers]
        ours = [one for one in workers if one.side == "ours" and not s.peak]
        rates = [one.call("matmul_rate") for one in ours]
        for one in workers:
            one.close()
        return times, peaks, rates

    def first_that_fits(
        self, case: str, side: str, order: str, ways: list[tuple[str, dict[str, Any]]]
    ) -> tuple[Worker, dict[str, Any]]:
        """Returns the worker and its first answer, joined to what its preparation said."""
        for number, (prepare, arguments) in enumerate(ways, 1):
            own = {k: v for k, v in arguments.items() if not (side == "ours" and k == "remat")}
            worker = self.open(side, arguments.get("remat", "none"))
            try:
                prepared = worker.call(prepare, **own) or {}
                first = worker.call(order)
            except BaseException as error:
                worker.close()
                if (
                    isinstance(error, WorkerError)
                    and _TOO_LARGE.search(str(error))
                    and number < len(ways)
                ):
                    continue
                raise
            said = {
                k: arguments[k]
                for k in ("remat", "rows_at_once", "checkpointing")
                if k in arguments
            }
            if said:
                words = ", ".join(
                    f"{name.replace('_', ' ')} {value}" for name, value in said.items()
                )
                self.notes.append(
                    f"{case}, {side}: {words}"
                    + (f"; {number - 1} larger settings did not fit" if number > 1 else "")
                )
            return worker, prepared | first | (
                {"tokens": prepared["tokens"]} if "tokens" in prepared else {}
            )
        raise AssertionError("no way was given")

    def open(self, side: str, remat: str) -> Worker:
        """Returns a process of the side, which has said what it runs on."""
        s = self.settings
        if side == "ours":
            how = dict(weights=s.weights, remat=remat, n_devices=s.n_devices)
        else:
            how = dict(model=s.weights, device="cpu" if s.is_cpu else "cuda")
        worker = Worker(
            side, how | dict(dtype=s.dtype, learning_rate=s.learning_rate), self.environment
        )
        self.versions[side] = worker.call("describe")
        return worker
