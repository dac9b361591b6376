"""`medkor bench`: speed and memory beside a peer, or this machine's own best. Measured in room
`bench`.

medkor bench
medkor bench --device gpu --size 4b
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkor_jax import bench
from medkor_jax.commands.arguments import WEIGHTS, whole
from medkor_jax.model.dtypes import DTYPES

PRESET_OF = {"270m": "gemma3-270m", "1b": "gemma3-1b", "4b": "gemma3-4b"}
_BEST = (
    "this machine's own best, with random weights: "
    "--size and, where it is not to be found by itself"
)
_OF_BEST = ("device", "dtype", "seq_len", "batch_size", "remat", "against")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="embedded", help=WEIGHTS)
    parser.add_argument("--cases", default="", help="comma-separated; default: all")
    _add_best(parser.add_argument_group(_BEST))
    parser.add_argument("--repeats", type=whole(1), default=5)
    parser.add_argument("--out", default="", help="write the figures as JSON here")


def _add_best(best) -> None:
    words = "of a Gemma 3; then --weights is not read"
    best.add_argument("--size", default="", choices=("", *PRESET_OF), help=words)
    words = "default: what jax finds"
    best.add_argument("--device", default="", choices=("", "cpu", "gpu", "tpu"), help=words)
    words = "default: float32 on a CPU, else bfloat16"
    best.add_argument("--dtype", default="", choices=("", *DTYPES), help=words)
    words = "tokens a row (default: 512 on a CPU, else 2048)"
    best.add_argument("--seq-len", type=whole(8), help=words)
    words = "rows over all devices (default: 4 on a CPU, else 8 a device)"
    best.add_argument("--batch-size", type=whole(1), help=words)
    choices = ("", "none", "gate_up", "all_but_down", "full")
    best.add_argument("--remat", default="", choices=choices, help="default: the least that fits")
    words = "default: transformers with PEFT where it can run"
    best.add_argument("--against", default="", choices=("", "hf", "none"), help=words)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    cases = [case for case in arguments.cases.split(",") if case]
    asked = {name: getattr(arguments, name) for name in _OF_BEST}
    shared = dict(repeats=arguments.repeats, out=arguments.out)
    if arguments.size:
        print(bench.run_best(PRESET_OF[arguments.size], cases, **shared, **asked).table())
        return
    if given := [f"--{name.replace('_', '-')}" for name, value in asked.items() if value]:
        raise ValueError(
            f"{', '.join(given)} is for the machine's own best: "
            f"give --size {', '.join(PRESET_OF)} as well"
        )
    print(bench.run(arguments.weights, cases, **shared).table())
