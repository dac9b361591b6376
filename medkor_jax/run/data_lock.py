"""The revisions of what a run takes from the hub, kept beside it: the same data and weights on every later day and host.

    recipe = with_lock(load_recipe("configs/pipeline.py"))      # sources at the commits of runs/medkor/data-lock.json
    write_lock(run_dir, Lock(datasets={"sean0042/KorMedMCQA": "79efd6f..."}))

`medkor data fetch` writes it; without one, each start takes what the hub has then. A `revision` that the config names comes
first.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

from medkor_jax.data.rows import Source
from medkor_jax.io import download
from medkor_jax.io.files import write_json
from medkor_jax.run.phases import Recipe

LOCK, FORMAT = "data-lock.json", 1
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Lock:
    """Commits by id."""

    datasets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_lock(run_dir: str | pathlib.Path) -> Lock:
    """Returns what is pinned beside the run; an empty lock where nothing is.

    Raises: ValueError if the file is no lock of this format.
    """
    path = pathlib.Path(run_dir) / LOCK
    if not path.is_file():
        return Lock()
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']!r}, this program reads {FORMAT}")
        return Lock(dict(said["datasets"]), dict(said["models"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); put it back, or delete it and run `medkor data fetch` again"
        ) from error


def write_lock(run_dir: str | pathlib.Path, lock: Lock) -> pathlib.Path:
    path = pathlib.Path(run_dir) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": FORMAT, **dataclasses.asdict(lock)})
    return path


def with_lock(recipe: Recipe) -> Recipe:
    """Returns the recipe with the pinned revision of every hub source that names none; its models are fetched at theirs.

    Raises: ValueError, as `read_lock`.
    """
    lock = read_lock(recipe.run_dir)
    download.pin(lock.models)
    return _pinned(recipe, lock.datasets) if lock.datasets else recipe


def _pinned(value: T, revisions: Mapping[str, str]) -> T:
    """Returns `value`, a dataclass or a tuple, with every source below it at its revision."""
    found: Any = value
    if isinstance(value, Source):
        revision = value.revision or revisions.get(value.path, "")
        return dataclasses.replace(found, revision=revision) if not value.revision else value
    if isinstance(value, tuple):
        return tuple(_pinned(one, revisions) for one in found)  # type: ignore[return-value]
    if not dataclasses.is_dataclass(value):
        return value
    changed = {}
    for field in dataclasses.fields(found):
        before = getattr(found, field.name)
        after = _pinned(before, revisions)
        if after != before:
            changed[field.name] = after
    return dataclasses.replace(found, **changed) if changed else value
