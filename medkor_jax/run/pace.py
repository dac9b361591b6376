"""What lies ahead of a phase, said as it begins: which of how many it is, its steps, and how long they take at this run's pace.

    say(heading(recipe, phase, run_dir))
    # == phase3 (4 of 10): Korean text ...
    #    16 steps of 2,048 tokens, about 4 min at 130 tokens/s, the pace of phase2; then 2 exams, 96 questions

The pace is what the stages of this run measured; of the first one nothing is known before it has run.
"""

from __future__ import annotations

import pathlib
import statistics

from medkor_jax.bar import in_words
from medkor_jax.run.phases import Phase, Recipe
from medkor_jax.train.metrics import read_metrics


def heading(recipe: Recipe, phase: Phase, run_dir: pathlib.Path) -> str:
    """Returns the lines that a phase begins with."""
    names = [one.name for one in recipe.in_force]
    place = f" ({names.index(phase.name) + 1} of {len(names)})" if phase.name in names else ""
    return f"\n== {phase.name}{place}: {phase.title}\n   {_ahead(recipe, phase, run_dir)}"


def _ahead(recipe: Recipe, phase: Phase, run_dir: pathlib.Path) -> str:
    stage, exams = phase.train, [exam.source.name for exam in recipe.exams_of(phase)]
    asked = f"{', '.join(exams)}" + (
        f" and {len(recipe.held_out)} held-out losses" if recipe.held_out else ""
    )
    if not stage.steps:
        return f"trains nothing at first; measured by {asked}"
    tokens = stage.batch_size * stage.seq_len
    said = f"{stage.steps} steps of {tokens:,} tokens"
    if found := pace_before(run_dir, phase.name):
        pace, of = found
        said += f", about {in_words(stage.steps * tokens / pace)} at {pace:,.0f} tokens/s, the pace of {of}"
    return f"{said}; measured by {asked}"


def pace_before(run_dir: pathlib.Path, phase: str) -> tuple[float, str] | None:
    """Returns (tokens a second, the phase it was measured in) of the stage that wrote last, that of `phase` itself if it goes on;
    None where nothing was measured yet."""
    written = sorted(run_dir.glob("*/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    own = [path for path in written if path.parent.parent.name == phase]
    for path in reversed(own or written):
        rates = [
            row["tokens_per_second"]
            for row in read_metrics(path.parent)
            if "tokens_per_second" in row
        ]
        if rates:
            return statistics.median(rates), path.parent.parent.name
    return None
