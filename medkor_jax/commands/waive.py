"""`medkor waive`: the next phase may start although a verdict failed; the reason is recorded.

medkor waive runs/medkor/phase3/verdict.json --reason "MedQA was read with another prompt"
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from medkor_jax.eval import verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verdict", help="path of a verdict.json, or of the phase's directory")
    parser.add_argument("--reason", required=True)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    path = _verdict_of(pathlib.Path(arguments.verdict))
    verdict.waive(path, arguments.reason)
    print(f"{path} is waived: {arguments.reason}")


def _verdict_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the verdict that `path` is or holds. Raises: ValueError, naming those below it, if it holds none."""
    if not path.is_dir() or (path / "verdict.json").exists():
        return path / "verdict.json" if path.is_dir() else path
    below = sorted(map(str, path.glob("*/verdict.json")))
    there = f"; below it are {', '.join(below)}: name one" if below else ""
    raise ValueError(f"{path} is a directory without a verdict.json{there}")
