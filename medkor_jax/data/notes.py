"""What a reader left out, guessed or wrote otherwise without any row being bad, counted and said in sentences.

    tally = Tally()
    tally.count("rows not in composed form (NFC), read as composed")
    tally.say("cells are separated by ';'")
    tally.notes()        # Note("cells are separated by ';'"), Note("rows not in composed form (NFC), read as composed: 1")

A reader hands its Notes on behind its rows, so that they reach the person whatever the way the rows take. What it does
not do: judge. What cannot be used is a BadRow.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Note:
    text: str


class Tally:
    """Counts while a source is read."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}
        self._counts: collections.Counter[str] = collections.Counter()

    def say(self, sentence: str) -> None:
        """Takes a sentence to be said once."""
        self._said[sentence] = None

    def count(self, what: str, n: int = 1) -> None:
        """Adds to how often `what` was met: "questions whose ..."."""
        self._counts[what] += n

    def add(self, said: dict[str, Any]) -> None:
        """Takes what another tally met after this one, as its `to_json` says it."""
        self._said |= dict.fromkeys(said["said"])
        self._counts.update(said["counts"])

    def to_json(self) -> dict[str, Any]:
        return {"said": list(self._said), "counts": dict(self._counts)}

    def notes(self) -> list[Note]:
        """Returns what was met so far."""
        return [Note(text) for text in self._said] + [
            Note(f"{what}: {n}") for what, n in self._counts.items() if n
        ]
