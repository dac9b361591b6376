"""Batches that the stages of a phase went on without, as people are told of them.

    found = left_out_of(run_dir / "phase3")         # {"train": {120: 1}}: one batch, at step 120
    left_out_words("phase3", found)                 # "phase3/train went on without 1 batch, at step 120: ..."

`train.spikes` decides and writes what is left out; this reads it once the stage is through.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from medkor_jax.parallel import hosts
from medkor_jax.train import spikes


def left_out_of(directory: pathlib.Path) -> dict[str, dict[int, int]]:
    """Returns how many batches each stage of a phase left out, by step; {} of a phase that took all.

    Raises: ValueError, naming the file, if it is damaged.
    """
    stages = hosts.first(
        f"stages of {directory.name} that left batches out",
        lambda: sorted(path.parent.name for path in directory.glob(f"*/{spikes.FILE}")),
    )
    return {name: spikes.left_out(directory / name) for name in stages}


def left_out_words(phase: str, stages: Mapping[str, Mapping[Any, int]]) -> str:
    """Returns a sentence about what the stages left out, "" if that is nothing. Steps may be numbers, or texts as in JSON."""
    told = []
    for name, steps in stages.items():
        n, at = sum(steps.values()), ", ".join(map(str, steps))
        if n:
            batches = "1 batch" if n == 1 else f"{n} batches"
            told.append(f"{phase}/{name} went on without {batches}, at step {at}")
    why = "the loss there was no number, or far above those before it (on_spike)"
    return f"{'; '.join(told)}: {why}" if told else ""
