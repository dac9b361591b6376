"""What an exam says of a model: its scores with their alarms, as a table, as JSON, and on disk.

    report = Report(mode="letter", shots=0, source="kormedmcqa/doctor", split="valid", answers=answers)
    print(report.table())
    report.write("answers.jsonl");  Report.read("answers.jsonl")      # the same report again

Only the answers are stored; scores and alarms are computed from them, so a report read from disk cannot
say something else than its answers do. Lines do not mention how an answer was written where its mode does not say so.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

from medkor_jax.data.style import PLAIN
from medkor_jax.eval.alarms import Alarm, find_alarms
from medkor_jax.eval.lines import read_lines, write_lines
from medkor_jax.eval.scores import OF_REASONING, Answer, Score, Scored

_DESCRIBED = (
    "mode",
    "shots",
    "source",
    "split",
    "confidence",
    "style",
)  # what a report says of itself beside its answers
_OF_SOME_MODES = (*OF_REASONING, "n_thought", "option_lengths")
_SAID_IF_SO = ("max_new_tokens", "max_thinking_tokens", "made_by")


@dataclasses.dataclass(frozen=True)
class Report(Scored):
    """made_by, of `medkor eval`: weights with their digest, dtype, few-shot file, limit, prompts."""

    made_by: dict[str, Any] | None = None

    @functools.cached_property
    def alarms(self) -> tuple[str, ...]:
        """Sentences: what looks wrong, with numbers, and the likely cause."""
        return tuple(alarm.words for alarm in self._alarms)

    @property
    def alarming(self) -> tuple[str, ...]:
        """The same in a few words each: "at chance", "one letter", ..."""
        return tuple(alarm.short for alarm in self._alarms)

    @functools.cached_property
    def _alarms(self) -> tuple[Alarm, ...]:
        return find_alarms(self)

    def summary(self) -> dict[str, Any]:
        """Returns the numbers and alarms as JSON types, without the single answers."""
        return {
            **self._described(),
            "at_chance": self.is_at_chance,
            **({"reasoning": dataclasses.asdict(self.reasoning)} if self.reasoning else {}),
            **({"thinking": dataclasses.asdict(self.thinking)} if self.thinking else {}),
            "scores": [dataclasses.asdict(score) for score in self.scores],
            "alarms": list(self.alarms),
        }

    def table(self) -> str:
        """Returns the scores as aligned lines for a terminal, alarms below."""
        heading = f"{self.source} {self.split}".strip() or "exam"
        lines = [
            f"{heading}: {self.mode} mode, {self.shots} shots, {self.style} prompts, {self.confidence:.0%} intervals, "
            f"chance {self.overall.chance:.1%}"
        ]
        width = max(len(_label(score)) for score in self.scores)
        for score in self.scores:
            lines.append(
                f"  {_label(score):<{width}}  {score.correct:>5}/{score.n:<5} {score.accuracy:>6.1%}"
                f"  [{score.low:.1%}, {score.high:.1%}]"
                + (f"  {score.unparsed} unparsed" if score.unparsed else "")
            )
        if self.reasoning:
            lines.append(f"  {self.reasoning.words}")
        if self.thinking:
            lines.append(f"  {self.thinking.words}")
        return "\n".join([*lines, *(f"  ALARM: {alarm}" for alarm in self.alarms)])

    def write(self, path: str | os.PathLike) -> None:
        """Writes one JSON line an answer, atomically; each line also carries mode, shots, source and split."""
        rows = [dataclasses.asdict(a) for a in self.answers]
        rows = [
            {
                name: value
                for name, value in row.items()
                if name not in _OF_SOME_MODES or value is not None
            }
            for row in rows
        ]
        write_lines(path, rows, self._described())

    @classmethod
    def read(cls, path: str | os.PathLike) -> Report:
        """Returns the report that `write` stored.

        Raises: ValueError if the file is no such report, or its lines come from different runs.
        """
        answers, shared = read_lines(path, _parse, "an answer")
        try:
            return cls(answers=answers, **shared)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no report: {error}") from error

    def _described(self) -> dict[str, Any]:
        described = {name: getattr(self, name) for name in _DESCRIBED}
        more = {name: getattr(self, name) for name in _SAID_IF_SO}
        return described | {name: value for name, value in more.items() if value is not None}


def _parse(row: dict[str, Any]) -> tuple[Answer, dict[str, Any]]:
    """Returns the answer that a line holds, and what the line says of the report."""
    row.setdefault("style", PLAIN)  # as all were before there was a choice
    shared = {name: row.pop(name) for name in _DESCRIBED}
    shared |= {name: row.pop(name, None) for name in _SAID_IF_SO}
    for name in ("probabilities", "option_lengths"):
        if row.get(name) is not None:
            row[name] = tuple(row[name])
    return Answer(**row), shared


def _label(score: Score) -> str:
    return {"all": "all", "exam": score.exam, "year": f"{score.exam} {score.year}"}[score.group]
