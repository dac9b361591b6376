"""Any model by name, a run included: what every command that takes weights calls.

    open_model("runs/quickstart")           # a run is its furthest open phase
    open_model("runs/quickstart/phase3")    # or a phase, a merged base, a directory, a file, a hub id

Which phase is open is read from the run's own files, without its config: its verdict opens it, and so it is for every
phase that it was made from (`record.json`, see `lineage`). What is passed over is said.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from medkor_jax.data.contents import checksum
from medkor_jax.eval.verdict import GateClosed, read_verdict, require_open
from medkor_jax.io import models
from medkor_jax.io.files import read_sealed
from medkor_jax.io.models import Model, read_ledger
from medkor_jax.io.old_formats import RECORD_FORMAT
from medkor_jax.io.streaming import WeightsError


def open_model(name: str) -> Model:
    """Returns what `name` names, anywhere a model is named: a run (its furthest open phase), a phase, a base, or weights.

    What was passed over, and a phase whose gate stayed closed, is said on standard error.

    Raises: WeightsError if nothing is called so, no phase of the run is open, or what is there does not fit together.
    """
    path = pathlib.Path(name)
    if not models.is_run(path):
        if (path / "verdict.json").is_file() and (why := _why_closed(path)):
            _say(f"{path}: {why}")
        return models.open_model(name)
    names = dict.fromkeys(entry["phase"] for entry in read_ledger(path))
    open_: dict[str, Any] = {}
    closed: dict[str, str] = {}
    for phase in names:
        why = (
            _why_closed(path / phase)
            if (path / phase / "model.json").is_file()
            else "it has not finished"
        )
        (closed if why else open_)[phase] = why
    for phase in list(open_):
        if why := _why_chain_broken(path, phase):
            del open_[phase]
            closed[phase] = why
    told = "; ".join(f"{phase}: {why}" for phase, why in closed.items())
    if not open_:
        raise WeightsError(
            f"run {path} has no open phase ({told or 'none was begun'}); name the directory of a phase to take it all the same"
        )
    furthest = max(open_, key=lambda phase: (_depth(path, phase), list(names).index(phase)))
    if left := [phase for phase in closed if (path / phase / "model.json").is_file()]:
        _say(
            f"{path} is taken as {furthest}, its furthest open phase; left out: {'; '.join(f'{p}: {closed[p]}' for p in left)}"
        )
    return models.open_model(path / furthest)


def _why_closed(directory: pathlib.Path) -> str:
    """Returns why no phase may start from this one, as its own files say; "" if one may."""
    try:
        record = read_record(directory)
        if record is None:
            return "it has no whole verdict"
        require_open(
            directory / "verdict.json",
            {"weights": models.open_model(directory).digest, "record": checksum(record)},
        )
    except GateClosed as error:
        return str(error)
    return ""


def _why_chain_broken(run: pathlib.Path, phase: str) -> str:
    for one in read_record(run / phase)["upstream"]:
        if not one["phase"]:
            continue
        above = run / one["phase"]
        if not (above / "model.json").is_file():
            return f"{one['phase']}, which it was made from, is not there any more"
        if models.open_model(above).digest != one["digest"]:
            return f"it was made from another {one['phase']} than the present one"
        if why := _why_closed(above) or _why_chain_broken(run, one["phase"]):
            return f"{one['phase']}, which it was made from: {why}"
    return ""


def _depth(run: pathlib.Path, phase: str) -> int:
    return 1 + max(
        (_depth(run, one["phase"]) for one in read_record(run / phase)["upstream"] if one["phase"]),
        default=0,
    )


def _say(words: str) -> None:
    print(f"medkor: {words}", file=sys.stderr)


def read_record(directory: pathlib.Path, needs_verdict: bool = True) -> dict[str, Any] | None:
    """Returns what made the phase in `directory`, as it is stored; None if it never ended, or its end was cut short.

    Raises: GateClosed if its verdict or its record is damaged.
    """
    if not (directory / "record.json").exists() or (
        needs_verdict and not (directory / "verdict.json").exists()
    ):
        return None
    try:
        record = read_sealed(directory / "record.json")
    except ValueError as error:
        raise GateClosed(
            f"{error}; put it back, or run the phase again with --restart {directory.name}"
        ) from error
    if record.get("format") not in range(1, RECORD_FORMAT + 1):
        raise GateClosed(
            f"{directory}/record.json has format {record.get('format')!r}, this program reads 1 to {RECORD_FORMAT}; run the phase again"
        )
    if needs_verdict and read_verdict(directory / "verdict.json")["digests"].get(
        "record"
    ) != checksum(record):
        return None
    return record
