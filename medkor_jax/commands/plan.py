"""`medkor plan`: what every stage of a config needs on a machine, before it is paid for. Reckoned
in room `plan`.

medkor plan --config configs/medgemma_27b_v5e16.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from medkor_jax.commands.arguments import CONFIG
from medkor_jax.plan import report
from medkor_jax.plan.command import plan_config

_TOPOLOGY = (
    "v5e:4x4, v6e:2x4, v5p:2x2x2, gpu:8x80GB, cpu:8, or auto: the smallest that fits "
    "(default: the config's)"
)
_MODEL = "a preset such as medgemma-27b-text, or weights (default: the config's)"
_PRICE = "of one chip for one hour, 1.2, or by kind: v5e=1.2,v6e=2.7,gpu=2.5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help=CONFIG)
    parser.add_argument("--topology", default="", help=_TOPOLOGY)
    parser.add_argument("--model", default="", help=_MODEL)
    parser.add_argument("--price", default="", metavar="USD", help=_PRICE)
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    asked = dict(topology=arguments.topology, model=arguments.model, price=arguments.price)
    plan = plan_config(arguments.config, overrides, **asked)
    print(json.dumps(report.to_json(plan)) if arguments.json else report.table(plan))
    return 0 if plan.fits else 1
