"""`medkor profile`: a few real steps of a stage, traced, and where their time goes. Traced in room
`profiling`.

medkor profile --config configs/phase3.py --steps 5
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkor_jax.commands.arguments import CONFIG, whole
from medkor_jax.profiling.command import profile_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help=CONFIG)
    parser.add_argument("--phase", default="", help="default: the first to run that trains")
    parser.add_argument("--steps", type=whole(1), default=5)
    words = "the trace goes below this directory (default: profile)"
    parser.add_argument("--out", default="profile", help=words)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    asked = dict(phase=arguments.phase, steps=arguments.steps, out=arguments.out)
    print(profile_config(arguments.config, overrides, **asked).table())
