"""`medkor export`: a model in a form that other tools load. What is written is `io.export`'s
business.

medkor export --weights runs/medkor --to hf --out medkor-hf
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from medkor_jax.commands.arguments import WEIGHTS, above_zero
from medkor_jax.io.export import export_hf
from medkor_jax.io.export_peft import export_peft
from medkor_jax.model.dtypes import DTYPES
from medkor_jax.run.named_model import open_model

_TO = "hf: the whole model for transformers; peft: adapters alone"
_EXACT_BYTES = (
    "hf only: refuse a model whose byte pieces depend on neighbours, instead of noting it"
)
_TEXT_ONLY = (
    "hf only: leave out the vision tower of a multimodal base, which is carried on otherwise"
)
_BASE = "peft only: the checkpoint the adapter is for (default: the run's own, where it is one)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help=WEIGHTS)
    parser.add_argument("--to", required=True, choices=("hf", "peft"), help=_TO)
    parser.add_argument("--out", required=True, help="a directory that does not exist yet")
    words = "hf only (default: that of the base)"
    parser.add_argument("--dtype", default="", choices=("", *DTYPES), help=words)
    parser.add_argument("--exact-bytes", action="store_true", help=_EXACT_BYTES)
    parser.add_argument("--text-only", action="store_true", help=_TEXT_ONLY)
    words = "hf only: largest weight file (default 4)"
    parser.add_argument("--shard-gb", type=above_zero, default=4.0, help=words)
    parser.add_argument("--base", default="", help=_BASE)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    model, out = open_model(arguments.weights), pathlib.Path(arguments.out)
    if arguments.to == "peft":
        done = export_peft(model, out, base=arguments.base)
    else:
        done = export_hf(
            model,
            out,
            dtype=arguments.dtype,
            exact_bytes=arguments.exact_bytes,
            max_shard_bytes=int(arguments.shard_gb * 1e9),
            text_only=arguments.text_only,
        )
    print(done.text())
