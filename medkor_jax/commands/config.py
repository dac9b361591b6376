"""`medkor config`: what a config says, what its keys mean, and how two configs differ.

    medkor config --config configs/quickstart.py                    # every key, as a config file
    medkor config --config configs/quickstart.py --explain phase3.reward    # what each means
    medkor config --explain "*.seq_len"                             # of any config
    medkor config --diff configs/pipeline.py configs/quickstart.py

Nothing is run, and no data or weights are opened.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from medkor_jax.commands.arguments import CONFIG
from medkor_jax.run.config_document import document, literal
from medkor_jax.run.config_file import load_layers
from medkor_jax.run.config_keys import REQUIRED
from medkor_jax.run.config_text import config_file
from medkor_jax.run.config_view import (
    DEFAULT,
    Leaf,
    differences,
    explained,
    leaves_of,
    schema_leaves,
)
from medkor_jax.run.phases import ConfigError

_EXPLAIN = (
    "what a key means: phase3.batch_size, all below it (phase3.gate), "
    'or a pattern ("*.seq_len"); repeatable'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="", help=CONFIG)
    parser.add_argument("--explain", metavar="KEY", action="append", default=[], help=_EXPLAIN)
    parser.add_argument(
        "--diff", nargs=2, metavar=("A", "B"), help="what differs between two configs"
    )
    words = "only what is not at its default"
    parser.add_argument("--changed", action="store_true", help=words)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="docs/CONFIG.md, of all keys")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    try:
        print(_said(arguments, overrides), flush=True)
    except BrokenPipeError:  # whoever reads has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(arguments: argparse.Namespace, overrides: Sequence[str]) -> str:
    if arguments.markdown:
        return document()
    if arguments.diff:
        one, other = (leaves_of(load_layers(path, overrides)) for path in arguments.diff)
        return _differences(arguments, differences(one, other))
    if arguments.explain:
        given = arguments.config
        leaves = leaves_of(load_layers(given, overrides)) if given else schema_leaves()
        found = [leaf for asked in arguments.explain for leaf in explained(leaves, asked)]
        as_json = arguments.json
        return (
            json.dumps([f.to_json() for f in found])
            if as_json
            else "\n\n".join(map(meaning, found))
        )
    if not arguments.config:
        raise ConfigError("give --config FILE, --explain KEY, --diff A B or --markdown")
    config = load_layers(arguments.config, overrides).config.to_dict()
    if arguments.json:
        return json.dumps(config)
    return config_file(config, " ".join([arguments.config, *overrides]), changed=arguments.changed)


def meaning(leaf: Leaf) -> str:
    """Returns what is to be said of one key, in a few lines."""
    value = f" = {literal(leaf.value)}" if leaf.set_by else ""
    bounds = f", {' and '.join(leaf.key.rules)}" if leaf.key.rules else ""
    default = "must be given" if leaf.default is REQUIRED else f"default {literal(leaf.default)}"
    by = "" if leaf.set_by in ("", DEFAULT) else f"; set by {leaf.set_by}"
    return (
        f"config.{leaf.path}{value}\n    {leaf.meaning}\n    {leaf.key.kind}{bounds}; {default}{by}"
    )


def _differences(arguments: argparse.Namespace, found: Sequence[tuple[str, Any, Any]]) -> str:
    if arguments.json:
        sides = [{"a": a, "b": b} for _, a, b in found]
        held = [{side: v for side, v in pair.items() if v is not REQUIRED} for pair in sides]
        return json.dumps([{"key": path, **pair} for (path, *_), pair in zip(found, held)])
    lines = [f"--- {arguments.diff[0]}", f"+++ {arguments.diff[1]}"]
    for path, *values in found:
        a, b = ("-" if value is REQUIRED else literal(value) for value in values)
        lines.append(f"config.{path}: {a} -> {b}")
    return "\n".join(lines)
