"""`medkor waive`: the next phase may start although a verdict failed; the reason is recorded.

medkor waive runs/medkor/phase3/verdict.json --reason "MedQA was read with another prompt"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medkor_jax.eval import verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verdict", help="path of a verdict.json")
    parser.add_argument("--reason", required=True)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    verdict.waive(arguments.verdict, arguments.reason)
    print(f"{arguments.verdict} is waived: {arguments.reason}")
