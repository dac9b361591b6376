"""The file that opens the next phase.

    write_verdict("runs/a/phase1/verdict.json", phase="phase1", gate=gate, looks=[("after", judgement)], report=report,
                  reference=None, digests={"weights": w, "data": d, "config": c})
    require_open("runs/a/phase1/verdict.json", {"weights": w})       # GateClosed unless passed, unedited, matching

A verdict holds the numbers with their intervals, the judgement, every look at the questions before it, where the
reference's score comes from, and the digests of what was judged. It opens only what it judged: other weights, data
or config need their own. A person may waive a failed verdict, with a reason that stays in the file.

The checksum finds edits by hand and damaged files. It is no signature: whoever can run this program can
write a verdict.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from medkor_jax.data.contents import checksum
from medkor_jax.eval.gate import Gate
from medkor_jax.eval.judgement import Judgement
from medkor_jax.eval.report import Report
from medkor_jax.io.files import write_sealed

FORMAT = 2
DIGESTS = ("weights", "data", "config")


class GateClosed(Exception):
    """The next phase may not start; the message says which verdict and why."""


def write_verdict(
    path: str | os.PathLike,
    *,
    phase: str,
    gate: Gate,
    looks: Sequence[tuple[str, Judgement]],
    report: Report,
    reference: Report | None,
    digests: Mapping[str, str],
    reference_account: str = "",
    sources: Sequence[Mapping[str, Any]] = (),
    held_in: Mapping[str, str] = {},
    replaced: Mapping[str, Any] | None = None,
    time: datetime.datetime | None = None,
) -> dict[str, Any]:
    """Writes the verdict, replacing an earlier one, and returns it.

    looks: every judgement by these questions, with what was judged, in order; the last one is the verdict.
    replaced: the verdict that this one takes the place of, where the phase is judged again: its looks stay on record.
    held_in: the dtypes that activations were computed and weights held in, by the names of their config keys.
    reference_account: where the reference's score comes from, and whether these questions chose it. sources: what was trained on
    and judged by, each with its licence. time: now unless given.

    Raises: ValueError without a look, or if a digest of weights, data or config is missing or empty.
    """
    if not looks:
        raise ValueError("a verdict needs the judgement it records, and there was none")
    judgement = looks[-1][1]
    missing = [name for name in DIGESTS if not digests.get(name)]
    if missing:
        raise ValueError(
            f"a verdict needs digests of {', '.join(DIGESTS)}; missing: {', '.join(missing)}"
        )
    return _store(
        path,
        {
            "format": FORMAT,
            "phase": phase,
            "passed": judgement.passed,
            "judgement": judgement.to_json(),
            "looks": [{"of": what, **look.to_json()} for what, look in looks],
            "earlier_looks": [] if replaced is None else _looks_of(replaced),
            "gate": dataclasses.asdict(gate),
            "mode": report.mode,
            "style": report.style,
            "report": report.summary(),
            "reference": None if reference is None else reference.summary(),
            "reference_account": reference_account,
            "sources": [dict(source) for source in sources],
            **held_in,
            "digests": dict(digests),
            "waiver": None,
            "time": _stamp(time),
        },
    )


def _looks_of(replaced: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns every look that a verdict has on record, its own with the gate that they were taken through."""
    gate = {"gate": replaced["gate"], "time": replaced["time"]}
    own = [{**look, **gate} for look in replaced["looks"]]
    return [*replaced.get("earlier_looks", ()), *own]


def read_verdict(path: str | os.PathLike) -> dict[str, Any]:
    """Returns a verdict whose checksum holds.

    Raises: GateClosed if the file is missing, damaged, edited, or of another format.
    """
    path = pathlib.Path(path)
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
        stated = verdict.pop("checksum")
    except FileNotFoundError:
        raise GateClosed(
            f"{path} does not exist: its phase was not evaluated; run that phase first"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise GateClosed(
            f"{path} is not a whole verdict ({error!r}); evaluate the phase again"
        ) from error
    if stated != checksum(verdict):
        raise GateClosed(
            f"{path} was changed after it was written (its checksum does not hold); evaluate the phase again. To let a "
            "failed phase pass, waive its verdict instead of editing it"
        )
    if verdict.get("format") != FORMAT:
        raise GateClosed(
            f"{path} has format {verdict.get('format')!r}, this program reads {FORMAT}: before format 2 a gate took no account "
            "of how often its questions were looked at. Judge the phase again (medkor run --restart PHASE), or go on with the "
            "version that wrote it"
        )
    return verdict


def waive(
    path: str | os.PathLike, reason: str, *, time: datetime.datetime | None = None
) -> dict[str, Any]:
    """Records in a failed verdict that a person lets the next phase start all the same; returns the verdict.

    `passed` stays False: what was measured is not rewritten.

    Raises: ValueError without a reason or if the verdict passed; GateClosed if it cannot be read.
    """
    if not reason.strip():
        raise ValueError("a waiver needs a reason, in words that a later reader understands")
    verdict = read_verdict(path)
    if verdict["passed"]:
        raise ValueError(f"{path} passed; there is nothing to waive")
    return _store(path, {**verdict, "waiver": {"reason": reason.strip(), "time": _stamp(time)}})


def amend_digests(path: str | os.PathLike, digests: Mapping[str, str]) -> None:
    """Changes what a verdict says it is about, where a person accepted that; nothing that was measured."""
    verdict = read_verdict(path)
    _store(path, {**verdict, "digests": {**verdict["digests"], **digests}})


def require_open(path: str | os.PathLike, expected: Mapping[str, str]) -> dict[str, Any]:
    """Returns the verdict if it passed or was waived and judged exactly what `expected` names, {what: digest}.

    Raises: GateClosed otherwise; ValueError if `expected` is empty, which would match anything.
    """
    if not expected:
        raise ValueError(
            "require_open needs at least one digest to match, else any verdict would open any phase"
        )
    verdict = read_verdict(path)
    differing = [
        f"{name} (judged {_short(verdict['digests'].get(name))}, found {_short(digest)})"
        for name, digest in expected.items()
        if verdict["digests"].get(name) != digest
    ]
    if differing:
        raise GateClosed(
            f"{path} judged something else: {', '.join(differing)}; evaluate phase {verdict['phase']!r} again"
        )
    return _passed(path, verdict)


def require_passed(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the verdict if it passed or was waived, whatever it judged: what can be known before anything is opened.

    Raises: GateClosed otherwise.
    """
    return _passed(path, read_verdict(path))


def _passed(path: str | os.PathLike, verdict: dict[str, Any]) -> dict[str, Any]:
    if not verdict["passed"] and not verdict["waiver"]:
        raise GateClosed(
            f"{path} did not pass: {verdict['judgement']['words']} Train further, or waive it with a reason"
        )
    return verdict


def _store(path: str | os.PathLike, verdict: dict[str, Any]) -> dict[str, Any]:
    write_sealed(path, verdict)
    return verdict


def _stamp(time: datetime.datetime | None) -> str:
    return (time or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds")


def _short(digest: Any) -> str:
    return f"{digest[:12]}" if isinstance(digest, str) else "none"
