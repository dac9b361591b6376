"""How a run was made: what would have to be the same for the same run again, as JSON types.

    lineage_of(run)["phases"][0]["starts"][0]["command"]        # ["medkor", "run", "--config", "configs/quickstart.py"]

Digests are those that a phase's verdict is sealed with, and those of the data in its record. Nothing is digested anew.
"""

from __future__ import annotations

from typing import Any

from medkor_jax.data.licences import TRAINED_ON, licence_notes
from medkor_jax.report.files import PhaseFiles, RunFiles


def lineage_of(run: RunFiles) -> dict[str, Any]:
    """Returns digests, starts, configs, sources, pinned revisions and licences."""
    sources = [source for phase in run.phases for source in phase.summary.get("sources", ())]
    return {
        "phases": _phases(run),
        "sources": _distinct(sources),
        "pinned": [
            {"kind": kind, "id": name, "revision": revision}
            for kind, revisions in (("data", run.pinned.datasets), ("weights", run.pinned.models))
            for name, revision in revisions.items()
        ],
        "licences": licence_notes([one for one in sources if one["use"] == TRAINED_ON]),
        "translated": run.translated,
    }


def _phases(run: RunFiles) -> list[dict[str, Any]]:
    """Returns how each phase was started. config: "" where it is that of `config_as`, an earlier phase."""
    found: list[dict[str, Any]] = []
    first_with: dict[str, str] = {}
    for phase in run.phases:
        config = phase.provenance.get("config", "")
        said = config.split("\n", 1)[-1]  # the first line names the phase
        as_before = first_with.setdefault(said, phase.name)
        is_new = as_before == phase.name
        found.append(
            {
                "phase": phase.name,
                "digests": phase.verdict.get("digests", {}),
                "data": _data(phase),
                "starts": phase.provenance.get("starts", []),
                "config": config if is_new else "",
                "config_as": "" if is_new else as_before,
            }
        )
    return found


def _data(phase: PhaseFiles) -> dict[str, str]:
    """Returns {what: rows and digest of a text, or a digest of all that is asked} of what a phase read."""
    record = phase.record
    facts = {**record.get("trained", {}), **record.get("judged", {})}
    kinds = ("exams", "watch", "translations")
    return {
        name: str(said)
        for name, said in facts.items()
        if ".data." in name or ".validation." in name or name.split(".")[0] in kinds
    }


def _distinct(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(
        {tuple(sorted((k, str(v)) for k, v in one.items())): one for one in sources}.values()
    )
