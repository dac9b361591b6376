"""`medkor data fetch`: everything that a config takes from the hub, brought and pinned.

    medkor data fetch --config configs/pipeline.py --list       # what, under which licence, how large; fetches nothing
    medkor data fetch --config configs/pipeline.py              # again after a failure: what is here is not fetched twice

First the list, then the fetching, one after another; one that fails is named with what to do, and the others are still
fetched. First rows of each source are read as the config says. The commits are written into RUN_DIR/data-lock.json, which
`medkor run` takes its data and weights by.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shutil
from collections.abc import Sequence

from medkor_jax.commands.arguments import CONFIG
from medkor_jax.data.check import Use, loader_of
from medkor_jax.data.rows import load_hub
from medkor_jax.io import download
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import uses_of
from medkor_jax.run.data_lock import Lock, read_lock, with_lock, write_lock
from medkor_jax.run.hub_named import DATASET, MODEL, Told, Wanted, ask_hub, named_on_hub, unsaid
from medkor_jax.run.phases import ConfigError, Recipe

_FIRST_ROWS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help=CONFIG)
    parser.add_argument("--list", action="store_true", help="only say what would be fetched")
    words = "leave out this id of the hub, such as a candidate that is too large for here"
    parser.add_argument("--skip", metavar="ID", action="append", default=[], help=words)
    words = "pin what the hub has now, whatever was pinned before"
    parser.add_argument("--newest", action="store_true", help=words)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    recipe = load_recipe(arguments.config, overrides)
    locked = recipe if arguments.newest else with_lock(recipe)
    wanted = _without(named_on_hub(locked), arguments.skip)
    if not wanted:
        print(f"{arguments.config} takes nothing from the hub")
        return 0
    if not arguments.newest:
        models = read_lock(recipe.run_dir).models
        pinned = {
            one.id: models[one.id] for one in wanted if one.kind == MODEL and one.id in models
        }
        wanted = [dataclasses.replace(w, revision=pinned.get(w.id, w.revision)) for w in wanted]
    told = ask_hub(wanted)
    here = [one.is_here for one in wanted]
    for one, said, is_here in zip(wanted, told, here, strict=True):
        print("\n".join(one.lines(said.facts, is_here=is_here)))
    for words in unsaid(told):
        print(f"NOT KNOWN: {words}")
    lacking = sum(
        said.facts.size_bytes
        for said, is_here in zip(told, here, strict=True)
        if said.facts and not is_here
    )
    print(room := _room(lacking))
    if arguments.list:
        return 1 if unsaid(told) else 0
    if "NOT ENOUGH" in room:
        return 1
    return _fetch_all(recipe, wanted, told, here)


def _without(wanted: Sequence[Wanted], skipped: Sequence[str]) -> list[Wanted]:
    """Raises: ConfigError if one that is skipped is not there."""
    ids = [one.id for one in wanted]
    if strange := [name for name in skipped if name not in ids]:
        raise ConfigError(
            f"--skip {strange[0]}: the config names only {', '.join(ids) or 'nothing'}"
        )
    return [one for one in wanted if one.id not in skipped]


def _room(size_bytes: int) -> str:
    from huggingface_hub import constants

    place = pathlib.Path(constants.HF_HOME)
    there = next(p for p in (place, *place.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    said = f"to fetch: up to {size_bytes / 1e9:.2f} GB; {free / 1e9:.1f} GB free at {place}"
    return (
        f"{said}: NOT ENOUGH; set HF_HOME to a directory with more" if size_bytes > free else said
    )


def _fetch_all(
    recipe: Recipe,
    wanted: Sequence[Wanted],
    told: Sequence[Told],
    here: Sequence[bool],
) -> int:
    """Returns 0 if everything is here at the end, else 1."""
    failed: dict[str, str] = {}
    before = read_lock(recipe.run_dir)
    revisions: dict[str, dict[str, str]] = {
        DATASET: dict(before.datasets),
        MODEL: dict(before.models),
    }
    for one, said, is_here in zip(wanted, told, here, strict=True):
        facts, lost = said.facts, said.words
        revision = facts.revision if facts else one.revision
        print(
            f"{one.id}: {'here already, looked through' if is_here else 'fetching'} ...", flush=True
        )
        if lost and not is_here:
            failed[one.id] = lost
        else:
            try:
                held = _bring(recipe, one, revision, is_here=is_here and not facts)
                print(f"{one.id}: {held}", flush=True)
                if revision:
                    revisions[one.kind][one.id] = revision
                    write_lock(recipe.run_dir, Lock(revisions[DATASET], revisions[MODEL]))
                elif lost:
                    print(f"{one.id}: not pinned, since the hub could not be asked for its commit")
            except (ValueError, OSError, RuntimeError) as error:
                failed[one.id] = str(error)
        if one.id in failed:
            print(f"{one.id}: FAILED: {failed[one.id]}", flush=True)
    done = len(wanted) - len(failed)
    print(
        f"{done} of {len(wanted)} are here"
        + (f"; not: {', '.join(failed)}. Do what is said above, and start again" if failed else "")
    )
    return 1 if failed else 0


def _bring(recipe: Recipe, one: Wanted, revision: str, *, is_here: bool) -> str:
    """Fetches one repository at its revision; returns what it then holds, in words. is_here: the hub is not asked again.

    Raises: WeightsError, BadDataError, ValueError with what was in the way.
    """
    if one.kind == MODEL:
        download.pin({one.id: revision} if revision else {})
        return str(download.download(one.id))
    if is_here:
        with download.without_network():
            return _read(recipe, one, "")
    download.check_access(one.id, one.kind)
    return _read(recipe, one, revision)


def _read(recipe: Recipe, one: Wanted, revision: str) -> str:
    """Returns the rows of each part, once first rows of each source have been read as the config says."""
    counts = []
    for part in one.parts:
        rows = load_hub(dataclasses.replace(part, revision=revision))
        counts.append(f"{' '.join(filter(None, (part.subset, part.split)))} {len(rows):,} rows")
    for use in uses_of(recipe):
        if use.source.name in {source.name for source in one.sources} and use.source.path == one.id:
            first = dataclasses.replace(
                use.source.original, limit=_FIRST_ROWS, skip=0, revision=revision
            )
            loader_of(Use(use.purpose, first), recipe.reasoning)(first, drop_bad=True)
    return "; ".join(counts)
