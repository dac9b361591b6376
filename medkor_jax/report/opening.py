"""What a report opens with: five questions answered with numbers, and how Korean and English moved phase by phase.

    opening = make_opening(run)
    opening["answers"][0]       # {"question": "Did English hold?", "answer": "...", "tone": "good", "details": [...]}
    opening["path"]             # a point a phase: Korean gained against English kept, with intervals

English is compared with the model that the gates compare with (their reference, else the first phase's start), Korean with the
model that was asked first. Shares of right answers, paired by question; nothing is judged anew.
"""

from __future__ import annotations

from typing import Any

from medkor_jax.bar import in_words
from medkor_jax.report.files import PhaseFiles, RunFiles
from medkor_jax.report.moved import Place, change_since, first_asked, languages_of, reference_of
from medkor_jax.run.changes import Change
from medkor_jax.run.summary import overall_of

GOOD, BAD, UNSURE = "good", "bad", "unsure"


def make_opening(run: RunFiles, price: float | None = None) -> dict[str, Any]:
    """Returns {"answers": five, "path": points}, as JSON types. price: of an hour of the machine."""
    answers = [_english(run), _korean(run), _cost(run, price), _gates(run), _trust(run)]
    return {"answers": answers, "path": path_of(run)}


def path_of(run: RunFiles) -> list[dict[str, Any]]:
    """Returns a point a phase, from the reference on: how far Korean and English moved, in points with their intervals."""
    reference, languages = reference_of(run), languages_of(run)
    first = {
        language: next((n for n, of in languages.items() if of == language), None)
        for language in ("ko", "en")
    }
    if reference is None or None in first.values():
        return []
    points = []
    for phase in run.chain[run.chain.index(reference[0]) :]:
        moved = {
            language: change_since(run, str(exam), reference, (phase, "after"))
            for language, exam in first.items()
        }
        if all(moved.values()):
            points.append(
                {"phase": phase.name, "exams": first} | {k: _json(v) for k, v in moved.items() if v}
            )
    return points


def _json(change: Change) -> dict[str, Any]:
    return {
        "points": 100 * change.difference,
        "low": 100 * change.interval.low,
        "high": 100 * change.interval.high,
        "verdict": change.verdict,
    }


def _moved(run: RunFiles, language: str, start: Place | None) -> tuple[list[str], list[Change]]:
    """Returns a line an exam of that language, and the changes."""
    lines, changes = [], []
    for exam, of in languages_of(run).items():
        if of != language:
            continue
        score = overall_of(run.chain[-1].exams("after")[exam])
        said = f"{exam}: {score['accuracy']:.1%} of {score['n']} right [{score['low']:.1%}, {score['high']:.1%}]"
        change = change_since(run, exam, start)
        begin = first_asked(run, exam, start)
        if change is not None and begin is not None:
            changes.append(change)
            since = f"since {'the start of ' if begin[1] == 'before' else ''}{begin[0].name}"
            said = f"{exam}: {change.words}, {since}; now {score['accuracy']:.1%} of {score['n']}"
        lines.append(said)
    return lines, changes


def _english(run: RunFiles) -> dict[str, Any]:
    question = "Did English hold?"
    if not run.chain:
        return _answer(question, UNSURE, "No phase has finished.")
    lines, changes = _moved(run, "en", reference_of(run))
    losses, tone = _losses(run, reference_of(run), "en"), UNSURE
    last = run.chain[-1].verdict
    if not changes:
        said = "Not measured against an earlier model."
    elif any(change.verdict == "fell" for change in changes):
        said, tone = f"It fell: {_points(changes[0])}.", BAD
    elif all(change.interval.low > -0.05 for change in changes):
        said, tone = f"Yes: {_points(changes[0])}, at most 5 points lost.", GOOD
    else:
        said = f"No fall can be told ({_points(changes[0])}), nor excluded."
    if last and not last["passed"] and last["judgement"]["reading"] != "absolute":
        said += " The last gate did not open."
    elif tone == BAD and last and last["passed"]:
        said += " The gates allow for that much."
    return _answer(question, tone, said, lines + losses)


def _korean(run: RunFiles) -> dict[str, Any]:
    question = "What did Korean gain?"
    if not run.chain:
        return _answer(question, UNSURE, "No phase has finished.")
    lines, changes = _moved(run, "ko", None)
    losses, tone = _losses(run, (run.chain[0], "before"), "ko"), UNSURE
    best = max(changes, key=lambda change: change.interval.low, default=None)
    if best is None:
        said = "No Korean exam was asked before and after."
    elif best.verdict == "rose":
        said, tone = f"{_points(best)}.", GOOD
    elif all(change.verdict == "fell" for change in changes):
        said, tone = f"It lost: {_points(best)}.", BAD
    else:
        said = f"Nothing that can be told: {_points(best)}."
    if not lines and losses:
        said = losses[0]
    return _answer(question, tone, said, lines + losses)


def _points(change: Change, of: str = " of {} questions") -> str:
    low, high = (100 * end for end in change.interval)
    return f"{100 * change.difference:+.1f} points [{low:+.1f}, {high:+.1f}]{of.format(change.n)}"


def _losses(run: RunFiles, start: Place | None, language: str) -> list[str]:
    if start is None:
        return []
    said_of = {
        source["name"]: source.get("language", "")
        for phase in run.chain
        for source in phase.summary.get("sources", ())
    }
    before, after = start[0].losses(start[1]), run.chain[-1].losses("after")
    return [
        f"held-out loss, {name}: {before[name]:.3f} to {nats:.3f} nats a token"
        for name, nats in after.items()
        if name in before and (said_of.get(name) or name[:2].lower()) == language
    ]


def _cost(run: RunFiles, price: float | None) -> dict[str, Any]:
    """Time by phase, money where an hour has a price, and what each phase did to English."""
    question = "Which phase cost what?"
    costs = [
        (phase.seconds, phase.name) for phase in run.on_disk.phases if phase.seconds is not None
    ]
    if not costs:
        return _answer(question, UNSURE, "No phase has finished.")
    total = sum(seconds for seconds, _ in costs)
    seconds, name = max(costs)
    money = "" if price is None else f" ({price * total / 3600:.2f})"
    said = f"{in_words(total)}{money} in all, {name} most ({in_words(seconds)}, {seconds / max(total, 1e-9):.0%})."
    moved = _english_by_phase(run)
    lines = [
        f"{one}: {in_words(seconds)}"
        + (f"; {moved[one][0]} {moved[one][1].words}" if one in moved else "")
        for seconds, one in costs
    ]
    if moved:
        worst = min(moved, key=lambda one: moved[one][1].difference)
        change = moved[worst][1]
        if change.difference < 0:
            said += f" Of English, {worst} most: {_points(change, '')}{', which may be none' if change.verdict != 'fell' else ''}."
        else:
            said += " No phase lowered English."
    return _answer(question, GOOD, said, lines)


def _english_by_phase(run: RunFiles) -> dict[str, tuple[str, Change]]:
    """Returns {phase: (exam, how it changed from its start to its end)} of the first English exam."""
    exam = next((name for name, of in languages_of(run).items() if of == "en"), "")
    found = {}
    for phase in run.chain:
        begun = (phase, "before")
        change = (
            change_since(run, exam, begun, (phase, "after"))
            if exam in phase.exams("before")
            else None
        )
        if change:
            found[phase.name] = (exam, change)
    return found


def _gates(run: RunFiles) -> dict[str, Any]:
    question = "Why did a gate close?"
    closed = [phase for phase in run.phases if phase.state in ("closed", "waived")]
    lines = [f"{phase.name} ({phase.state}): {phase.said}{_waived(phase)}" for phase in closed]
    lines += [f"{phase.name}: {phase.said}" for phase in run.phases if phase.state == "recorded"]
    if closed:
        names = " and ".join(
            f"{phase.name}'s {'closed' if phase.state == 'closed' else 'was waived'}"
            for phase in closed
        )
        return _answer(question, BAD, f"{names}: {closed[0].said}", lines)
    judged = [phase for phase in run.phases if phase.verdict]
    n = sum(phase.state == "passed" for phase in judged)
    recorded = len(judged) - n
    also = f"; {recorded} {'was' if recorded == 1 else 'were'} recorded only" if recorded else ""
    mended = [
        f"{p.name}'s after a remedy" for p in judged if p.state == "passed" and _was_mended(p)
    ]
    opened = ", ".join([f"{n} of {len(judged)} opened", *mended])
    none = "None stayed closed" if mended else "None did"
    return _answer(question, GOOD, f"{none}: {opened}{also}.", lines)


def _was_mended(phase: PhaseFiles) -> bool:
    return any(stage.name.startswith("remedy") for stage in phase.stages)


def _waived(phase: PhaseFiles) -> str:
    waiver = phase.verdict.get("waiver")
    return f" Waived: {waiver['reason']}" if waiver and phase.state == "waived" else ""


def _trust(run: RunFiles) -> dict[str, Any]:
    """What speaks against leaning on these numbers."""
    uncommitted: list[str] = []
    doubts = [(fault, fault) for fault in run.faults]  # in a few words, and in full
    if run.chain:
        for name, exam in run.chain[-1].exams("after").items():
            doubts += _alarms(run.chain[-1], name, exam)
    for phase in run.phases:
        if accepted := phase.record.get("accepted"):
            said = f"{phase.name} was kept although {', '.join(accepted)} changed"
            doubts.append((said, said))
        if phase.without:
            doubts.append((phase.without.partition(":")[0], phase.without))
        starts = phase.provenance.get("starts", ())
        if any(start["git"] and not start["git"]["is_clean"] for start in starts):
            uncommitted.append(phase.name)
    if uncommitted:
        said = f"code that is not committed ran {', '.join(uncommitted)}"
        doubts.append((f"code that is not committed ran {len(uncommitted)} phases", said))
    looks = [len(phase.verdict["looks"]) for phase in run.phases if phase.verdict]
    finals = [
        f"final exam {sat['looks'][-1]['exam']}: looked at {len(sat['looks'])} times"
        for sat in run.final.values()
        if len(sat["looks"]) > 1
    ]
    if run.on_disk.state not in ("finished", "closed"):
        said = f"the run is {run.on_disk.state}, so this is what there is"
        doubts.insert(0, (said, said))
    known = "One thing" if len(doubts) == 1 else f"{len(doubts)} things"
    said = (
        f"{known} to know first: {'; '.join(short for short, _ in doubts)}."
        if doubts
        else "Nothing found that speaks against them."
    )
    lines = [
        *(long for _, long in doubts),
        *finals,
        f"{sum(looks)} looks at {len(looks)} gates' questions, counted in their intervals",
    ]
    return _answer("Can these numbers be leaned on?", UNSURE if doubts else GOOD, said, lines)


def _alarms(phase: PhaseFiles, name: str, exam: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the alarms of an exam in a few words and in full; one line in short where the answers are there to say it."""
    if not exam["alarms"]:
        return []
    in_full = f"{name}: {' '.join(exam['alarms'])}"
    report, score = phase.report("after", name), overall_of(exam)
    short = ", ".join(report.alarming) if report else in_full
    return [(f"{name} {short} ({score['correct']} of {score['n']})", in_full)]


def _answer(
    question: str, tone: str, said: str, details: list[str] | None = None
) -> dict[str, Any]:
    return {"question": question, "tone": tone, "answer": said, "details": details or []}
