"""`medkor init`: the configs that come with the program, copied to where they can be changed.

    medkor init my-study                # my-study/configs/*.py, which `medkor run --config` reads

Nothing that is there is written over.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
from collections.abc import Sequence

from medkor_jax.run.config_file import CONFIGS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "where configs/ is made (default: here)"
    parser.add_argument("directory", nargs="?", default=".", help=words)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    target = pathlib.Path(arguments.directory) / "configs"
    if target.exists():
        raise ValueError(
            f"{target} is there already, and nothing was written; name another directory"
        )
    files = sorted(CONFIGS.glob("*.py"))
    target.mkdir(parents=True)
    for file in files:
        shutil.copy(file, target / file.name)
    print(f"{len(files)} configs are in {target}. Next, in {target.parent.resolve()}:")
    print("  medkor run --config configs/quickstart.py --dry-run")
    print("  medkor config --config configs/phase3.py --explain phase3.gate")
