"""A phase to be run again: what it left is moved aside, never deleted.

    restart(recipe, ["phase3"])        # [runs/medkor/phase3.before-1]

What it does not do: run anything, or touch the merged bases, on which others may stand.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
from collections.abc import Sequence

from medkor_jax.nearest import nearest
from medkor_jax.parallel import hosts
from medkor_jax.run.phases import ConfigError, Recipe


def restart(recipe: Recipe, names: Sequence[str]) -> list[pathlib.Path]:
    """Moves the phases' directories aside, so that they run again; returns where they are now. Nothing is deleted, and the
    merged bases stay: whatever stands on them goes on to.

    Raises: ConfigError, before anything is moved, for a name that is no phase of the config.
    """
    known = [phase.name for phase in recipe.all_phases]
    for name in names:
        if name not in known:
            near = nearest(name, known) or "none"
            raise ConfigError(
                f"--restart {name}: no such phase in this config; nearest: {near!r}. It has {', '.join(known)}"
            )
    moved = []
    for directory in (pathlib.Path(recipe.run_dir) / name for name in names):
        if aside := hosts.first(
            f"restart {directory.name}", functools.partial(_move_aside, directory)
        ):
            moved.append(pathlib.Path(aside))
    return moved


def _move_aside(directory: pathlib.Path) -> str:
    """Returns where the directory is now; "" if there was none."""
    if not directory.exists():
        return ""
    number = 1
    while (aside := directory.with_name(f"{directory.name}.before-{number}")).exists():
        number += 1
    shutil.move(directory, aside)
    return str(aside)
