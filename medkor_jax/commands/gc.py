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
from medkor_jax.run.holding import held
from medkor_jax.run.on_disk import disposable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", help="a run's directory")
    parser.add_argument("--delete", action="store_true", help="delete what is listed")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    directories = [pathlib.Path(path) for path in arguments.run]
    found = [one for directory in directories for one in disposable(directory)]
    if not found:
        print("nothing can go")
        return
    print(table([(in_bytes(one.n_bytes), str(one.path), one.why) for one in found]))
    if not arguments.delete:
        total = in_bytes(sum(one.n_bytes for one in found))
        print(f"{total} in all; nothing was deleted (--delete does)")
        return
    deleted = 0
    for directory in directories:
        with held(directory):  # what a run that goes on needs is found out while none can begin
            for one in disposable(directory):
                one.delete()
                deleted += one.n_bytes
    print(f"{in_bytes(deleted)} deleted")
