"""The closing table of a run, read from the files its phases left.

    print(closing_table(run_dir, ["phase0", "phase1"]))

What it does not do: measure, or decide anything.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.licences import TRAINED_ON, licence_notes
from medkor_jax.eval.gate import said_of
from medkor_jax.eval.report import Report
from medkor_jax.eval.translation_report import METRIC_NAMES
from medkor_jax.eval.verdict import GateClosed, read_verdict
from medkor_jax.io.files import read_if_sealed, read_json_file
from medkor_jax.run.changes import Change, read_change
from medkor_jax.run.left_out import left_out_words
from medkor_jax.run.translation_files import report_words, reports_of

FINAL = "final.json"


def phase_lines(name: str, report: Report) -> str:
    """Returns one line: '{exam}: 61 of 96 right, 63.5% [53.6%, 72.5%] (letter, 0 shots, valid)'."""
    score = report.overall
    return (
        f"{name}: {score.correct} of {score.n} right, {score.accuracy:.1%} [{score.low:.1%}, {score.high:.1%}] "
        f"({report.mode}, {report.shots} shots, {report.split})"
    )


def read_summary(directory: pathlib.Path) -> dict[str, Any]:
    """Returns what the phase in `directory` left. Raises: ValueError, with what to do, if it is damaged or was changed."""
    try:
        return read_if_sealed(directory / "summary.json", "phase", "model", "before", "after")
    except ValueError as error:
        raise ValueError(
            f"{error}; put it back, or run the phase again with --restart {directory.name}"
        ) from error


def read_summaries(run_dir: pathlib.Path, phases: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what each finished phase left, with its verdict (None where that cannot be read)."""
    summaries = []
    for name in phases:
        path = run_dir / name / "summary.json"
        if not path.exists():
            continue
        summary = read_summary(path.parent)
        try:
            summary["verdict"] = read_verdict(run_dir / name / "verdict.json")
        except GateClosed:
            summary["verdict"] = None
        summaries.append(summary)
    return summaries


def closing_table(run_dir: pathlib.Path, phases: Sequence[str]) -> str:
    """Returns the run as text: for every phase, what was measured before and after, and its gate's verdict."""
    summaries = read_summaries(run_dir, phases)
    if not summaries:
        return f"{run_dir}: no phase has finished"
    lines = [
        "",
        f"What the run in {run_dir} did (before -> after each phase; [95 % interval]; loss in nats a token)",
        "",
    ]
    for summary in summaries:
        before, after = summary["before"], summary["after"]
        rounds = f", {summary['rounds']} remedy rounds" if summary["rounds"] else ""
        lines.append(
            f"{summary['phase']}  {summary['title']}  ({summary['seconds']:.0f} s{rounds})"
        )
        for name, loss in after["watch"].items():
            lines.append(
                f"  {'loss, ' + name:<28} {before['watch'][name]['nats']:>8.3f} -> {loss['nats']:.3f}"
            )
        lines += _exam_lines(run_dir / summary["phase"], before, after)
        for name, report in after["translations"].items():
            lines += [
                f"  {'translation, ' + name:<28} {line}"
                for line in _translation_lines(before["translations"][name], report)
            ]
        lines += [
            *(
                [f"  {said}"]
                if (said := left_out_words(summary["phase"], summary.get("left_out", {})))
                else []
            ),
            f"  verdict: {_verdict(summary['verdict'])}",
            *_condition_lines(summary["verdict"]),
            "",
        ]
    chain = chain_of(summaries)
    first, last = chain[0], chain[-1]
    lines.append("In all:")
    for name in last["after"]["watch"]:
        start, end = first["before"]["watch"][name]["nats"], last["after"]["watch"][name]["nats"]
        lines.append(
            f"  {name} loss {start:.3f} -> {end:.3f} ({'lower' if end < start else 'NOT lower'} than before)"
        )
    for name in last["after"]["exams"]:
        asked_first = next(
            s for s in chain if name in s["before"]["exams"]
        )  # some exams are put to later phases only
        start = _score(asked_first["before"]["exams"][name])
        since = "" if asked_first is first else f" (before {asked_first['phase']})"
        lines.append(
            f"  {name} exam {start}{since} -> {_score(last['after']['exams'][name], interval=True)}"
        )
        was = (run_dir / asked_first["phase"], asked_first["before"])
        if change := read_change(name, was, (run_dir / last["phase"], last["after"])):
            lines.append(f"    {change.words} over these phases, the same {change.n} questions")
    lines += [f"  translated exam, {report_words(report)}" for report in reports_of(run_dir)]
    lines += [f"  {note}" for note in licence_notes(_trained_on(summaries))]
    return "\n".join([*lines, *_final_lines(run_dir)])


def overall_of(exam: dict[str, Any]) -> dict[str, Any]:
    """Returns the score over all questions of an exam's summary."""
    return next(score for score in exam["scores"] if score["group"] == "all")


def chain_of(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the phases that led to the last one's model: a candidate that was not taken is none of them."""
    chain = summaries[-1:]
    for earlier in reversed(summaries[:-1]):
        if earlier["model"] == chain[0]["before"]["digest"]:
            chain.insert(0, earlier)
    return chain


def _trained_on(summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        source
        for summary in summaries
        for source in summary.get("sources", ())
        if source["use"] == TRAINED_ON
    ]


def read_final(run_dir: pathlib.Path) -> dict[str, Any]:
    """Returns what `final.json` holds, {} if there is none: {digest of the questions: {n, looks}}."""
    path = run_dir / FINAL
    return read_json_file(path) if path.exists() else {}


def times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def _final_lines(run_dir: pathlib.Path) -> list[str]:
    """Returns a line a final exam: its last score, whose it is, and how often its questions were looked at."""
    lines = []
    for sat in read_final(run_dir).values():
        for exam, last in {look["exam"]: look for look in sat["looks"]}.items():
            counted = f"put to {last['phase']}'s model; its questions were looked at {times(len(sat['looks']))} in this run"
            lines.append(f"  final exam {exam} {_score(last['report'], interval=True)}, {counted}")
    return lines


def _condition_lines(verdict: dict[str, Any] | None) -> list[str]:
    """Returns a line for each thing the gate asked, where it asked several, and one for the looks before the last."""
    if verdict is None:
        return []
    lines = []
    for condition in verdict["judgement"]["conditions"]:
        said = condition["words"].split(": ", 1)[1]
        lines.append(
            f"    {'holds ' if condition['passed'] else 'CLOSED'} {condition['name']}: {said}"
        )
    if len(verdict["looks"]) > 1:
        looks = [
            f"{look['of']} {'opened' if look['passed'] else 'closed'}" for look in verdict["looks"]
        ]
        lines.append(f"    looks: {', '.join(looks)}")
    if earlier := len(verdict.get("earlier_looks", ())):
        lines.append(
            f"    judged again: {times(earlier)} before this it was looked at already, by these or other questions; see verdict.json"
        )
    return lines


def _score(summary: dict[str, Any], interval: bool = False) -> str:
    score = overall_of(summary)
    text = f"{score['accuracy']:.1%}"
    if not interval:
        return text
    return f"{text} [{score['low']:.1%}, {score['high']:.1%}] of {score['n']} ({summary['mode']}, {summary['split']})"


def _exam_lines(
    directory: pathlib.Path, before: dict[str, Any], after: dict[str, Any]
) -> list[str]:
    """Returns for each exam of a phase its scores, what changed, and how reasoned answers are written."""
    lines = []
    for name, report in after["exams"].items():
        was = _score(before["exams"][name])
        lines.append(f"  {'exam, ' + name:<28} {was:>8} -> {_score(report, interval=True)}")
        if change := read_change(name, (directory, before), (directory, after)):
            lines.append(f"  {'':<28} {'':>8}    {change.words}{_not_learnt(report, change)}")
        if shares := report.get("reasoning"):
            said = f"{shares['both']:.1%} have the format and one letter"
            lines.append(f"  {'  of these texts':<28} {said}")
    return lines


def _not_learnt(report: dict[str, Any], change: Change) -> str:
    """A reasoned exam is what its phases train for: a fall there is named for what it is."""
    return ": not learnt" if report["mode"] == "reason" and change.verdict == "fell" else ""


def _translation_lines(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns 'en-ko chrF 12.1 -> 61.0 [58.2, 63.5] over 40' for each direction and metric."""
    lines = []
    for was, now in zip(before["scores"], after["scores"], strict=True):
        name = METRIC_NAMES[now["metric"]]
        interval = f"[{now['low']:.1f}, {now['high']:.1f}] over {now['n']}"
        lines.append(
            f"{now['direction']} {name} {was['score']:.1f} -> {now['score']:.1f} {interval}"
        )
    return lines


def _verdict(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return "missing or damaged"
    on_failure = verdict["gate"]["on_failure"]
    words = said_of(verdict["judgement"]["words"], on_failure)
    if on_failure == "continue":
        return words
    waived = f" Waived: {verdict['waiver']['reason']}." if verdict["waiver"] else ""
    return f"{'PASSED' if verdict['passed'] else 'CLOSED'}. {words}{waived}"
