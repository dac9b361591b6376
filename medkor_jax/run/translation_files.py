"""Where the rows of a source that the run translates are read: in the file that it made, once there is one.

    files = TranslationFiles()
    files.read_from(source)                     # its questions as they are given
    files.take(source, Translation(path, 164, 158)); files.read_from(source)        # the rows of `path`

What it does not do: translate, or say whether a file still is what would be made (`translated`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from medkor_jax.data.rows import Source
from medkor_jax.io.files import read_sealed

DIRECTORY, FORMAT = "translated", 1  # of a run; of the report beside each file
LANGUAGE_NAMES = {"en": "English", "ko": "Korean"}
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Translation:
    """What a run made of an exam. path: its rows. n_questions: there were before; n_passed: rows that passed the checks."""

    path: pathlib.Path
    n_questions: int
    n_passed: int

    @property
    def words(self) -> str:
        return (
            f"{self.n_passed} of {self.n_questions} translated questions passed their checks; why the others did not is in "
            f"{self.path}.failed.jsonl"
        )


class TranslationFiles:
    """The translations of one run that are there, by source. Sources that differ in no more than weight and licence share one."""

    def __init__(self) -> None:
        self._of: dict[Source, Translation] = {}

    def take(self, source: Source, made: Translation) -> None:
        """From now on `source` gives the rows of the translation."""
        self._of[as_translated(source)] = made

    def of(self, source: Source) -> Translation | None:
        return self._of.get(as_translated(source))

    def read_from(self, source: Source) -> Source:
        """Returns the source that the rows are read from: itself where nothing is translated."""
        made = self.of(source)
        return source.translation_in(made.path) if made else source.original

    def is_awaited(self, source: Source) -> bool:
        """Whether its questions stand, as they are given, for what is to be made of them."""
        return bool(source.translated_to) and self.of(source) is None


def as_translated(source: Source) -> Source:
    """Returns what decides the translation of a source."""
    return dataclasses.replace(source, weight=1.0, loss="", licence="")


def read_report(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns what stands beside a translation; None if nothing does, or it is damaged. While it is made, `digest` is ""."""
    try:
        report = read_sealed(path)
    except (ValueError, FileNotFoundError):
        return None
    return report if report.get("format") == FORMAT else None


def report_words(report: dict[str, Any]) -> str:
    """Returns in words what was translated, what it cost, and which rows failed, the first of them with their reasons."""
    failed = report["faults"]
    words = (
        f"{report['name']}: {report['n_passed']} of {report['n_questions']} questions put into {LANGUAGE_NAMES[report['to']]} by "
        f"{report['by']} pass the checks ({report['seconds']:,.0f} s, {report['n_tokens']:,} tokens written)"
    )
    if not failed:
        return words
    shown = "; ".join(f"{one['id']}: {', '.join(one['reasons'])}" for one in failed[:_SHOWN])
    more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
    return f"{words}; left out: {shown}{more}, see {DIRECTORY}/{report['name']}.jsonl.failed.jsonl"


def reports_of(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the reports of all whole translations of a run."""
    found = [read_report(path) for path in sorted((run_dir / DIRECTORY).glob("*.json"))]
    return [report for report in found if report and report["digest"]]
