"""`medkor data check`: rows, languages, lengths, licences and leaks of a config's sources.

    print(data_table(report))

What is looked at, and what refuses a run, is `run.readiness`; this prints it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from medkor_jax.commands.arguments import CONFIG
from medkor_jax.data.check import DataReport, SourceReport
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import describe_leak
from medkor_jax.run.data_lock import with_lock
from medkor_jax.run.readiness import check_recipe

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help=CONFIG)
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    report = check_recipe(with_lock(load_recipe(arguments.config, overrides)))
    as_json = arguments.json
    print(json.dumps(data_json(report), ensure_ascii=False) if as_json else data_table(report))
    return 0 if report.is_clean else 1


def data_table(report: DataReport) -> str:
    """Returns a line a source, then bad rows, then leaks, then what else would refuse a run, then
    the verdict in words."""
    lines = [
        f"{'source':<24} {'used as':<9} {'split':<8} {'rows':>7}  {'languages':<18} "
        f"{'tokens: median, 95 %, longest, all':<36} licence"
    ]
    lines += [_source_line(source) for source in report.sources]
    lines += [f"{source.source.name}: {note}" for source in report.sources for note in source.notes]
    for source in report.sources:
        lines += _some([f"bad row: {row}" for row in source.bad])
    lines += _some([f"LEAK: {describe_leak(leak)}" for leak in report.leaks])
    lines += _some(
        [f"leak, allowed by the config: {describe_leak(leak)}" for leak in report.allowed_leaks]
    )
    lines += [f"REFUSED: {words}" for words in report.obstacles]
    bad = sum(len(source.bad) for source in report.sources)
    verdict = (
        "clean"
        if report.is_clean
        else f"NOT clean: {bad} bad rows, {len(report.leaks)} leaks not named in allow_leaks, "
        f"{len(report.obstacles)} other reasons to refuse the run"
    )
    return "\n".join([*lines, verdict])


def data_json(report: DataReport) -> dict[str, Any]:
    return {**dataclasses.asdict(report), "is_clean": report.is_clean}


def _source_line(report: SourceReport) -> str:
    source, tokens = report.source, report.tokens
    languages = ", ".join(f"{name} {count}" for name, count in sorted(report.languages.items()))
    lengths = (
        f"{tokens.median}, {tokens.p95}, {tokens.longest}, {tokens.total:,}" if tokens else "-"
    )
    licence = source.licence or "not stated in the config"
    return (
        f"{source.name:<24} {report.purpose:<9} {source.split:<8} {report.rows:>7}  "
        f"{languages:<18} {lengths:<36} {licence}"
    )


def _some(lines: list[str]) -> list[str]:
    return (
        lines
        if len(lines) <= _SHOWN
        else [*lines[:_SHOWN], f"  ... and {len(lines) - _SHOWN} more"]
    )
