"""Cases run one after another, and what is lost when one fails: nothing measured before it.

    check_cases(["text"], known)
    run_cases(report, bench, known, ["text"], "bench.json")

What a case measures is in `runner` (weights by name) and `best` (a machine's own best).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from medkor_jax.bench.checks import BenchError
from medkor_jax.bench.report import Report, Row
from medkor_jax.bench.worker import WorkerError
from medkor_jax.nearest import nearest


def run_cases(
    report: Report,
    bench: Any,
    known: dict[str, Callable[[Any], list[Row]]],
    cases: Sequence[str],
    out: str,
) -> Report:
    """Returns `report` with the rows of `cases` (none named: all `known`), and what `bench` notes and finds of versions.

    Raises: BenchError or WorkerError, with what was measured before it.
    """
    start = report
    for case in cases or known:
        try:
            rows = known[case](bench)
        except (BenchError, WorkerError) as error:
            measured = f"; measured before that:\n{report}" if report.rows else ""
            raise type(error)(f"{case}: {error}{measured}") from error
        report = dataclasses.replace(
            report,
            versions=start.versions | bench.versions,
            rows=[*report.rows, *rows],
            notes=[*start.notes, *bench.notes],
        )
        if out:  # after every case: a later one that fails loses nothing
            report.save(out)
    return report


def check_cases(cases: Sequence[str], known: Iterable[str]) -> None:
    """Raises: ValueError, with the nearest, on a case that is not known."""
    for case in cases:
        if case not in known:
            raise ValueError(
                f"bench case {case!r} is none of {', '.join(known)}; nearest: {nearest(case, known)!r}"
            )
