"""Exams, held-out losses and gates of a run for TensorBoard, beside the curves that each stage writes of itself.

    write_board(run_dir, ["phase0", "phase1"])          # RUN/tensorboard; tensorboard --logdir RUN

A point a measurement, at the number of optimizer steps that the run had taken by then: before a phase, before its remedy, after
it. Written anew each time from the phases' summaries, so a phase that is run again stands there once.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from medkor_jax.parallel import hosts
from medkor_jax.run.summary import overall_of, read_summaries
from medkor_jax.train.metrics import read_metrics

DIRECTORY = "tensorboard"


def write_board(run_dir: pathlib.Path, phases: Sequence[str]) -> None:
    """Writes what the finished ones of `phases` measured. All processes call it."""
    hosts.first("the board", lambda: _write(run_dir, phases))


def _write(run_dir: pathlib.Path, phases: Sequence[str]) -> None:
    from tensorboardX import SummaryWriter

    place = run_dir / DIRECTORY
    shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(str(place)) as board:
        for name, value, step in scalars(run_dir, phases):
            board.add_scalar(name, value, step)


def scalars(run_dir: pathlib.Path, phases: Sequence[str]) -> Iterator[tuple[str, float, int]]:
    """Yields (name, value, steps that the run had taken)."""
    steps = 0
    for summary in read_summaries(run_dir, phases):
        directory = run_dir / summary["phase"]
        trained = _steps(directory, "train")
        in_all = sum(
            _steps(directory, path.parent.name) for path in directory.glob("*/metrics.jsonl")
        )
        for when, at in (
            ("before", steps),
            ("before_remedy", steps + trained),
            ("after", steps + in_all),
        ):
            yield from _measured(summary.get(when), at)
        steps += in_all
        if verdict := summary["verdict"]:
            yield "gate/passed", float(verdict["passed"]), steps
            if verdict["judgement"]["score"] is not None:
                yield "gate/score", verdict["judgement"]["score"], steps


def _measured(found: dict[str, Any] | None, step: int) -> Iterator[tuple[str, float, int]]:
    if not found:
        return
    for name, exam in found["exams"].items():
        score = overall_of(exam)
        for what in ("accuracy", "low", "high"):
            yield f"exam/{name}/{what}", score[what], step
    for name, loss in found["watch"].items():
        yield f"held_out/{name}/nats", loss["nats"], step


def _steps(directory: pathlib.Path, stage: str) -> int:
    rows = read_metrics(directory / stage)
    return int(rows[-1]["step"]) if rows else 0
