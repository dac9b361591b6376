"""What several commands ask for alike, and how numbers on a command line are read.

parser.add_argument("--weights", required=True, help=WEIGHTS)
parser.add_argument("--limit", type=whole(0), default=0)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from medkor_jax.data.style import AUTO, STYLES
from medkor_jax.model.dtypes import DTYPES

if TYPE_CHECKING:
    from medkor_jax.parallel.mesh import MeshShape

WEIGHTS = (
    "embedded, a directory, a .gguf file, a hub id, a run, "
    "or random:PRESET such as random:gemma3-4b"
)
CONFIG = "a config file; override keys as --config.phase3.steps=100"
_FOUND = (
    "found by themselves on TPU pods, SLURM, Open MPI and GKE; else all three, "
    "or MEDKOR_COORDINATOR, MEDKOR_PROCESSES, MEDKOR_PROCESS_ID"
)


def whole(least: int) -> Callable[[str], int]:
    """Returns how an argument is read that is a whole number of at least `least`."""

    def read(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is given, expected at least {least}")
        return number

    read.__name__ = "whole number"  # what argparse calls it where it is none
    return read


def above_zero(text: str) -> float:
    """Returns the finite number above 0 that `text` is."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is given, expected a number above 0")
    return number


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="float32", choices=DTYPES)


def add_style(parser: argparse.ArgumentParser) -> None:
    words = (
        "form of what is asked: the checkpoint's chat template, plain text, or auto: as a run taught it, "
        "else chat where the checkpoint has a template and was instruction-tuned"
    )
    parser.add_argument("--style", default=AUTO, choices=STYLES, help=words)


def add_mesh(parser: argparse.ArgumentParser) -> None:
    words = (
        "how devices share the model, such as fsdp=8 or data=2,fsdp=4 "
        "(default: each holds it whole where it fits, else all share it)"
    )
    parser.add_argument("--mesh", type=_mesh, metavar="AXIS=N,...", help=words)


def _mesh(text: str) -> MeshShape:
    from medkor_jax.parallel.mesh import read_mesh  # imports jax, which the overview does without

    try:
        return read_mesh(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_tags(parser: argparse.ArgumentParser, when: str = "") -> None:
    words = f"{when}tags of the reasoning (default: <R> <R/>)"
    parser.add_argument("--tags", nargs=2, metavar=("OPEN", "CLOSE"), help=words)


def add_thinking(parser: argparse.ArgumentParser) -> None:
    words = (
        "ask it to think first, in at most N tokens besides: chat style, reason and harness mode "
        "(default: 0, not asked)"
    )
    parser.add_argument("--max-thinking-tokens", type=whole(0), default=0, metavar="N", help=words)


def add_part(parser: argparse.ArgumentParser, split: str, default: str = "") -> None:
    """Adds which part of a hub's or of the embedded exam is meant; `split` is the default. default: what it is called."""
    words = f"for a hub id or embedded (default: {default or split})"
    parser.add_argument("--split", default=split, help=words)
    parser.add_argument("--subset", default="", help="for a hub id, such as doctor")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Adds how several processes that do one command find each other."""
    several = parser.add_argument_group("several processes", _FOUND)
    words = "of process 0; the port after it is used as well"
    several.add_argument("--coordinator", default="", metavar="HOST:PORT", help=words)
    several.add_argument("--processes", type=whole(1))
    several.add_argument("--process-id", type=whole(0))
