"""What the licences of a run's sources make of its model: said before training, in every summary and in the model card.

    licence_notes(sources)          # ["korean-exam-train (CC BY-NC 2.0) is non-commercial: so is a model trained on it"]

A licence is what the config says of it. What it does not do: judge whether a use is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from medkor_jax.data.source import EMBEDDED, Source

_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?\s?commercial", re.IGNORECASE)
_NOT_STATED = ("", "set me", "unknown", "none stated")
EMBEDDED_LICENCE = "Apache-2.0"
TRAINED_ON = "trained on"
"""What a record of sources calls those that the model has learnt from."""


def licence_of(source: Source) -> str:
    """Returns the licence that the config gives, or that of what is embedded; "" for none."""
    said = source.licence.strip()
    return said or (EMBEDDED_LICENCE if source.path == EMBEDDED else "")


def is_non_commercial(licence: str) -> bool:
    return bool(_NON_COMMERCIAL.search(licence.replace("_", "-")))


def is_stated(licence: str) -> bool:
    return licence.strip().casefold() not in _NOT_STATED


def told_licence(source: Source) -> str:
    licence = licence_of(source)
    return licence if is_stated(licence) else "NOT STATED in the config"


def licence_notes(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns in sentences what follows from the licences of what was trained on, of records {name, licence, ...}; [] if nothing does."""
    notes = []
    restricted = {s["name"]: s["licence"] for s in sources if is_non_commercial(s["licence"])}
    if restricted:
        named = ", ".join(f"{name} ({licence})" for name, licence in restricted.items())
        notes.append(f"non-commercial: trained on {named}, so the model is for non-commercial use")
    if silent := list(dict.fromkeys(s["name"] for s in sources if not is_stated(s["licence"]))):
        notes.append(
            f"no licence is stated for {', '.join(silent)}: what the model may be used for is not known; "
            "write it in the config (licence)"
        )
    return notes
