"""`medkor gc`: what of a run can go; it goes only when told.

    medkor gc runs/quickstart               # a list
    medkor gc runs/* --delete

What a run is and how it goes on stays the same. The program's cache (`MEDKOR_CACHE`) may be deleted at any time by hand.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from medkor_jax.commands.tables import in_bytes, table
from medkor_jax.run.holding import RunHeld, holder_of
from medkor_jax.run.on_disk import Disposable, disposable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help="a run's directory")
    parser.add_argument("--delete", action="store_true", help="delete what is listed")


def _of(directory: pathlib.Path) -> list[Disposable]:
    """Raises: RunHeld if a run is going on there."""
    if other := holder_of(directory):
        raise RunHeld(f"{directory} is in use by {other}: nothing of it can go")
    return disposable(directory)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    found = [one for path in arguments.run for one in _of(pathlib.Path(path))]
    if not found:
        print("nothing can go")
        return
    print(table([(in_bytes(one.n_bytes), str(one.path), one.why) for one in found]))
    total = in_bytes(sum(one.n_bytes for one in found))
    if not arguments.delete:
        print(f"{total} in all; nothing was deleted (--delete does)")
        return
    for one in found:
        one.delete()
    print(f"{total} deleted")
