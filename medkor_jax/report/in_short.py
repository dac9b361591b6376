"""What a run shows, in four lines: what it says first when it ends.

    print("\\n".join(in_short(read_run(pathlib.Path("runs/quickstart")))))

Korean gained, English kept, what training without retention did to English (the look before a remedy), and reasoned
answers. A difference stands with its paired interval; nothing is claimed that an interval does not say.
"""

from __future__ import annotations

from medkor_jax.report.files import PhaseFiles, RunFiles
from medkor_jax.report.moved import Place, change_since, first_asked, languages_of, reference_of
from medkor_jax.run.changes import Change, likelier_between

REASONED = "reason"


def in_short(run: RunFiles) -> list[str]:
    """Returns the lines, none for a run of which no phase has finished."""
    if not run.chain:
        return []
    return [_korean(run), _english(run), _without_retention(run), _reasoned(run)]


def _exam_of(run: RunFiles, language: str) -> str:
    """Returns the first exam of that language that is not reasoned, "" if the last phase was asked none."""
    asked = run.chain[-1].exams("after")
    languages = languages_of(run)
    found = (n for n, of in languages.items() if of == language and asked[n]["mode"] != REASONED)
    return next(found, "")


def _korean(run: RunFiles) -> str:
    exam = _exam_of(run, "ko")
    if not exam:
        return "Korean: no exam was asked, so nothing can be said."
    return f"Korean: {_moved(run, exam, None)}"


def _english(run: RunFiles) -> str:
    exam, reference = _exam_of(run, "en"), reference_of(run)
    if not exam or reference is None:
        return "English: no exam was asked, so nothing can be said."
    return f"English: {_moved(run, exam, reference)} {_gate(run.chain[-1])}"


def _moved(run: RunFiles, exam: str, start: Place | None) -> str:
    begin, end = first_asked(run, exam, start), run.chain[-1]
    change = change_since(run, exam, start)
    if begin is None or change is None or begin == (end, "after"):
        return f"{exam} {_right(end, 'after', exam)}; not asked before, so no difference is known."
    then = f"{'before' if begin[1] == 'before' else 'after'} {begin[0].name}"
    reports = [phase.report(when, exam) for phase, when in (begin, (end, "after"))]
    likelier = likelier_between(*reports) if all(reports) else None
    return (
        f"{exam} {_right(begin[0], begin[1], exam)} {then}, {_right(end, 'after', exam)} after "
        f"{end.name}: {change.words}{f'; {likelier.words}' if likelier else ''}."
    )


def _right(phase: PhaseFiles, when: str, exam: str) -> str:
    report = phase.report(when, exam)
    if report is None:
        return "(its answers are not there)"
    score = report.overall
    return f"{score.correct} of {score.n} right ({score.accuracy:.1%})"


def _gate(phase: PhaseFiles) -> str:
    """What the last gate asks of English, and whether it opened."""
    if not phase.verdict:
        return ""
    judged, gate = phase.verdict["judgement"], phase.verdict["gate"]
    kept = {
        "relative": f"{gate['threshold']:.0%} of the reference's {_metric(gate)}",
        "non_inferior": f"at most {100 * (1 - gate['threshold']):.0f} points of {_metric(gate)} lost",
        "absolute": f"{gate['threshold']:.0%} {_metric(gate)}",
    }[judged["reading"]]
    how = "opened" if judged["passed"] else "did not open"
    return f"Its gate, which wants {kept} for sure, {how}."


def _metric(gate: dict[str, str]) -> str:
    return "mean probability of the right option" if gate["metric"] == "probability" else "accuracy"


def _without_retention(run: RunFiles) -> str:
    """The worst of the looks that came before a remedy, and what the remedy made of it."""
    exam, reference = _exam_of(run, "en"), reference_of(run)
    looks: list[tuple[Change, PhaseFiles]] = []
    for phase in run.chain if exam and reference else ():
        if phase.summary["rounds"] and exam in phase.exams("before_remedy"):
            change = change_since(run, exam, reference, (phase, "before_remedy"))
            if change:
                looks.append((change, phase))
    if not looks:
        return "Without retention: not measured, since no gate closed and no remedy was trained."
    worst, phase = min(looks, key=lambda look: look[0].difference)
    after = change_since(run, exam, reference, (phase, "after"))
    mended = f"; after its remedy {after.words}" if after else ""
    return (
        f"Without retention: {phase.name}'s training alone moved {exam} by {worst.words}{mended}."
    )


def _reasoned(run: RunFiles) -> str:
    end = run.chain[-1]
    asked = [name for name, one in end.exams("after").items() if one["mode"] == REASONED]
    if not asked:
        return "Reasoned answers: not asked."
    exam = asked[0]
    said = f"Reasoned answers: {exam} {_right(end, 'after', exam)}"
    report = end.report("after", exam)
    if report is None or report.is_at_chance:
        return f"{said}, not told apart from guessing: nothing is claimed."
    return f"{said}, above guessing."
