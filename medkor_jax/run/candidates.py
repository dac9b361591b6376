"""Candidates as a config writes them: a phase, weights as they are, or weights that a phase trains first.

    read_candidate("phase0 on google/medgemma-27b-text-it", ["phase0", "phase1"])
    # Candidate(phase="phase0", weights="google/medgemma-27b-text-it"), .name "phase0-medgemma-27b-text-it"

Text alone: nothing is opened, and whether such weights exist is not asked (`choosing`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

ON = " on "
Phase = Any  # `phases.Phase`, whose file imports this one


@dataclasses.dataclass(frozen=True)
class Candidate:
    """phase "": the weights as they are. weights "": what the phase leaves in this run, on what it starts from there."""

    phase: str
    weights: str

    @property
    def is_on_demand(self) -> bool:
        """Whether the phase has to be run on these weights, once it comes to them."""
        return bool(self.phase and self.weights)

    @property
    def name(self) -> str:
        """What lineage, records and directories call it: a phase's name, or the weights'."""
        if not self.is_on_demand:
            return self.phase or self.weights
        last = self.weights.rstrip("/").rpartition("/")[2]
        return f"{self.phase}-{re.sub(r'[^0-9A-Za-z._-]+', '-', last)}"

    def __str__(self) -> str:
        return ON.join(filter(None, (self.phase, self.weights)))


def read_candidate(text: str, phases: Sequence[str]) -> Candidate:
    """Returns what `text` names. phases: the names that are phases; what is no phase's is weights."""
    if text in phases:
        return Candidate(text, "")
    phase, on, weights = text.partition(ON)
    if on and phase in phases and weights:
        return Candidate(phase, weights)
    return Candidate("", text)


def candidates_of(phase: Phase, phases: Sequence[Phase]) -> tuple[Candidate, ...]:
    """Returns the phase's candidates, in the order in which they are tried. phases: all of its config."""
    names = [one.name for one in phases]
    return tuple(read_candidate(text, names) for text in phase.candidates)


def on_demand_of(phase: Phase, phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Returns the phases that only its candidates bring ("PHASE on WEIGHTS"): each is PHASE as it is, on WEIGHTS, under a name of
    its own; it is run when it comes to that candidate."""
    named = {one.name: one for one in phases}
    return tuple(
        dataclasses.replace(named[one.phase], name=one.name, after=one.weights)
        for one in candidates_of(phase, phases)
        if one.is_on_demand
    )


def with_on_demand(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Returns the phases of a config in the order they may run, those that only a candidate brings before the one that names it."""
    found = [one for phase in phases for one in (*on_demand_of(phase, phases), phase)]
    return tuple({phase.name: phase for phase in found}.values())


def configured_name(name: str, phases: Sequence[Phase]) -> str:
    """Returns what the config calls the phase: that of which it is a copy, where it is on other weights."""
    found = [one for phase in phases for one in candidates_of(phase, phases) if one.is_on_demand]
    return {one.name: one.phase for one in found}.get(name, name)
