"""How an exam moved between two models of a run, question by question.

    change_since(run, "english", reference_of(run)).words       # "-15.6 points [-28.1, -3.2], fell"

A model is a phase with "before" or "after" it. Nothing is judged anew.
"""

from __future__ import annotations

from medkor_jax.report.files import PhaseFiles, RunFiles
from medkor_jax.run.changes import Change, change_between

Place = tuple[PhaseFiles, str]


def reference_of(run: RunFiles) -> Place | None:
    """Returns the model that English is held to: (phase, "before" or "after")."""
    if not run.chain:
        return None
    last = run.chain[-1]
    name = last.record.get("judged", {}).get("reference") or ""
    found = next((phase for phase in run.chain if phase.name == name), None)
    return (found, "after") if found else (run.chain[0], "before")


def languages_of(run: RunFiles) -> dict[str, str]:
    """Returns {exam: "en" or "ko"} of the exams that the last phase was asked, by most of their questions."""
    found = {}
    for name in run.chain[-1].exams("after") if run.chain else ():
        if report := run.chain[-1].report("after", name):
            languages = [a.language for a in report.answers]
            found[name] = max(set(languages), key=languages.count)
    return found


def first_asked(run: RunFiles, exam: str, start: Place | None = None) -> Place | None:
    """Returns the earliest model that was asked an exam, from `start` on."""
    places = [(phase, when) for phase in run.chain for when in ("before", "after")]
    later = places[places.index(start) :] if start else places
    return next((place for place in later if exam in place[0].exams(place[1])), None)


def change_since(
    run: RunFiles, exam: str, start: Place | None, end: Place | None = None
) -> Change | None:
    """Returns how an exam changed from `start` (else the first model that was asked it) to the last."""
    begin = first_asked(run, exam, start)
    end = end or (run.chain[-1], "after")
    if begin is None or exam not in end[0].exams(end[1]):
        return None
    reports = [phase.report(when, exam) for phase, when in (begin, end)]
    try:
        return change_between(*reports) if all(reports) else None
    except ValueError:
        return None  # other questions, or asked in another way: not to be compared
