"""Answers to an exam and the numbers drawn from them, each with its mode, count and interval.

    report = Report(mode="letter", shots=0, source="kormedmcqa/doctor", split="valid", answers=answers)
    print(report.table())
    report.write("answers.jsonl");  Report.read("answers.jsonl")      # the same report again

Only the answers are stored; scores and alarms are computed from them, so a report read from disk cannot
say something else than its answers do. An alarm is a sentence: what looks wrong and what usually causes it.
It does not stop anything; the gate decides what an alarm forbids.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, Sequence

from medkor_jax.eval import stats
from medkor_jax.io.files import write_atomically

MODES = ("letter", "harness", "cloze")

# A report is alarming beyond these. Published models leave far less unparsed and spread further.
DOMINANT_SHARE = 0.6  # of answers on one letter ...
DOMINANT_EXCESS = 0.2  # ... and this much more than the key has of it
DOMINANT_MIN_ANSWERS = 10
UNPARSED_SHARE = 0.1

_DESCRIBED = ("mode", "shots", "source", "split", "confidence")  # what a report says of itself beside its answers


@dataclasses.dataclass(frozen=True)
class Answer:
    """One question answered. Letters are "A" to "E"; `predicted` is None where no answer could be read."""

    id: str
    key: str
    predicted: str | None
    correct: bool
    text: str  # what the model wrote, or the letter it preferred
    exam: str
    year: int | None
    language: str
    n_options: int
    probabilities: tuple[float, ...] | None = None  # [options], over the options alone; letter and cloze mode
    among_shots: bool = False
    truncated: bool = False  # the prompt lost its beginning


@dataclasses.dataclass(frozen=True)
class Score:
    """A share of right answers and everything needed to quote it."""

    group: str  # "all", "exam" or "year"
    exam: str
    year: int | None
    n: int
    correct: int
    unparsed: int
    accuracy: float
    low: float
    high: float
    confidence: float
    chance: float  # what even guessing expects
    mode: str
    shots: int
    source: str
    split: str


@dataclasses.dataclass(frozen=True)
class Report:
    mode: str
    shots: int
    source: str
    split: str
    answers: tuple[Answer, ...]
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is unknown; it is one of {', '.join(MODES)}")
        if not self.answers:
            raise ValueError(f"no answers for {self.source or 'this exam'} {self.split}: there is nothing to score")
        repeated = [id for id, count in collections.Counter(a.id for a in self.answers).items() if count > 1]
        if repeated:
            raise ValueError(f"question id {repeated[0]!r} occurs more than once; ids must tell questions apart")

    @functools.cached_property
    def overall(self) -> Score:
        return self._score(self.answers, "all", self.source, None)

    @functools.cached_property
    def scores(self) -> tuple[Score, ...]:
        """Overall, then each exam, then each exam and year; answers without a year count in their exam only."""
        exams, years = collections.defaultdict(list), collections.defaultdict(list)
        for answer in self.answers:
            exams[answer.exam].append(answer)
            if answer.year is not None:
                years[answer.exam, answer.year].append(answer)
        return (
            self.overall,
            *(self._score(exams[exam], "exam", exam, None) for exam in sorted(exams)),
            *(self._score(years[key], "year", *key) for key in sorted(years)),
        )

    def _described(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _DESCRIBED}

    def _score(self, answers: Sequence[Answer], group: str, exam: str, year: int | None) -> Score:
        n, correct = len(answers), sum(a.correct for a in answers)
        low, high = stats.wilson(correct, n, self.confidence)
        return Score(
            group=group, exam=exam, year=year, n=n, correct=correct,
            unparsed=sum(a.predicted is None for a in answers), accuracy=correct / n, low=low, high=high,
            confidence=self.confidence, chance=stats.chance_share([a.n_options for a in answers]),
            mode=self.mode, shots=self.shots, source=self.source, split=self.split,
        )  # fmt: skip

    @property
    def is_at_chance(self) -> bool:
        """Whether the overall interval contains what guessing expects, or lies below it."""
        return self.overall.low <= self.overall.chance

    @functools.cached_property
    def alarms(self) -> tuple[str, ...]:
        """Sentences: what looks wrong, with numbers, and the likely cause."""
        raised = (_chance_alarm(self), _dominance_alarm(self), _unparsed_alarm(self), *_prompt_alarms(self))
        return tuple(alarm for alarm in raised if alarm)

    def summary(self) -> dict[str, Any]:
        """Returns the numbers and alarms as JSON types, without the single answers."""
        return {
            **self._described(),
            "at_chance": self.is_at_chance,
            "scores": [dataclasses.asdict(score) for score in self.scores],
            "alarms": list(self.alarms),
        }

    def table(self) -> str:
        """Returns the scores as aligned lines for a terminal, alarms below."""
        heading = f"{self.source} {self.split}".strip() or "exam"
        lines = [
            f"{heading}: {self.mode} mode, {self.shots} shots, {self.confidence:.0%} intervals, "
            f"chance {self.overall.chance:.1%}"
        ]
        width = max(len(_label(score)) for score in self.scores)
        for score in self.scores:
            lines.append(
                f"  {_label(score):<{width}}  {score.correct:>5}/{score.n:<5} {score.accuracy:>6.1%}"
                f"  [{score.low:.1%}, {score.high:.1%}]" + (f"  {score.unparsed} unparsed" if score.unparsed else "")
            )
        return "\n".join([*lines, *(f"  ALARM: {alarm}" for alarm in self.alarms)])

    def write(self, path: str | os.PathLike) -> None:
        """Writes one JSON line an answer, atomically; each line also carries mode, shots, source and split."""
        shared = self._described()
        lines = [json.dumps({**dataclasses.asdict(a), **shared}, ensure_ascii=False) + "\n" for a in self.answers]
        write_atomically(path, "".join(lines))

    @classmethod
    def read(cls, path: str | os.PathLike) -> Report:
        """Returns the report that `write` stored.

        Raises: ValueError if the file is no such report, or its lines come from different runs.
        """
        answers, shared = [], None
        # Not splitlines(): a generated text may hold other line separators, which JSON leaves as they are.
        for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
            try:
                row = json.loads(line)
                line_shared = {name: row.pop(name) for name in _DESCRIBED}
                if row["probabilities"] is not None:
                    row["probabilities"] = tuple(row["probabilities"])
                answers.append(Answer(**row))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is not an answer written by this program ({error!r}); evaluate again"
                ) from error
            if shared is not None and line_shared != shared:
                raise ValueError(f"{path}, line {number} is from another run: {line_shared}, those before {shared}")
            shared = line_shared
        return cls(answers=tuple(answers), **shared)


def _label(score: Score) -> str:
    return {"all": "all", "exam": score.exam, "year": f"{score.exam} {score.year}"}[score.group]


def _chance_alarm(report: Report) -> str | None:
    if not report.is_at_chance:
        return None
    score = report.overall
    p = stats.chance_p_value(score.correct, [a.n_options for a in report.answers])
    found = f"{score.correct} of {score.n} right is {score.accuracy:.1%} [{score.low:.1%}, {score.high:.1%}]"
    if score.high < score.chance:
        return (
            f"{found}, below what guessing gives ({score.chance:.1%}). Likely cause: key and options disagree (keys "
            "counted from 0 against 1, digits against letters, options shuffled without their key), or the prompt is "
            "not the one trained on."
        )
    by_mode = {
        "letter": "letters compared with a space where training had none",
        "harness": "few-shot answers in digits where letters are asked",
        "cloze": "questions that make no sense without their options",
    }
    return (
        f"{found}, not told apart from guessing ({score.chance:.1%}; guessing does as well with probability {p:.2f}). "
        f"Likely cause: weights not loaded, a prompt format the model never saw, {by_mode[report.mode]}, a model too "
        "small for this exam, or too few questions."
    )


def _dominance_alarm(report: Report) -> str | None:
    if report.overall.n < DOMINANT_MIN_ANSWERS:
        return None
    taken_by_letter = collections.Counter(a.predicted for a in report.answers if a.predicted)
    if not taken_by_letter:
        return None
    letter, taken = taken_by_letter.most_common(1)[0]
    share = taken / report.overall.n
    in_key = sum(a.key == letter for a in report.answers) / report.overall.n
    if share <= DOMINANT_SHARE or share - in_key <= DOMINANT_EXCESS:
        return None
    return (
        f"{share:.0%} of the answers are {letter}, which is right in {in_key:.0%} of the questions. Likely cause: the "
        "model answers by position and not by content (untrained, or trained on options that were never shuffled), or "
        "its letters all look alike to it (answer token mismatch, weights not loaded)."
    )


def _unparsed_alarm(report: Report) -> str | None:
    unparsed = [a.text for a in report.answers if a.predicted is None]
    if len(unparsed) / report.overall.n <= UNPARSED_SHARE:
        return None
    return (
        f"no answer could be read in {len(unparsed)} of {report.overall.n} texts, for example {unparsed[0][:60]!r}. "
        "Likely cause: a chat model asked without its template or without shots, weights not loaded, or text cut "
        "before the letter."
    )


def _prompt_alarms(report: Report) -> list[str]:
    shown, cut = sum(a.among_shots for a in report.answers), sum(a.truncated for a in report.answers)
    alarms = []
    if shown:
        alarms.append(
            f"{shown} of the {report.overall.n} questions are among the {report.shots} shots, answers included (the "
            "fewshot split of KorMedMCQA is part of its validation split): the score counts answers that were shown."
        )
    if cut:
        alarms.append(f"{cut} prompts were longer than the model and lost their beginning; use fewer shots.")
    return alarms
