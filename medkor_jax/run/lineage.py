"""What made each phase what it is, and whether all of it still holds.

    lineage = Lineage(recipe, corpora, run_dir)
    lineage.upstream(phase)         # the model it starts from, with its whole chain checked
    lineage.finished(phase)         # None, or what it left and what has changed since

A phase that ends writes `record.json`: by name, the settings and the contents (digests of rows, prompts, weights) that
decided how it was trained, and those that decided how it was judged. Settings that decide nothing (a title, a licence,
how often to log) are not in it; `facts` has what is. A change of what trained it makes a
phase stale, and all that stands on it: that is refused with the name of what changed. A change of what judged it is
judged again. It trains, measures and writes nothing else.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from medkor_jax.data.contents import checksum
from medkor_jax.eval.verdict import GateClosed, amend_digests, read_verdict, require_open
from medkor_jax.io import models
from medkor_jax.io.files import write_sealed
from medkor_jax.io.models import Model
from medkor_jax.io.old_formats import RECORD_FORMAT, upgraded_record
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.facts import Change, Facts, changes, differing, facts_of, is_content
from medkor_jax.run.named_model import open_model, read_record
from medkor_jax.run.phases import Phase, Recipe


class Stale(GateClosed):
    """Something was made from what has changed since; the message says what, and what to do."""


_NEVER = object()


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a phase left. record: in today's format; seal: digest of the one on disk, which the verdict names.

    judged_otherwise: the names of what would be judged in another way now.
    """

    model: Model
    record: Mapping[str, Any]
    seal: str
    judged_otherwise: tuple[str, ...]


class Lineage:
    """The phases of one run directory, as the recipe has them now against what they were made from."""

    def __init__(
        self,
        recipe: Recipe,
        corpora: Corpora,
        directory: pathlib.Path,
        *,
        accept_changed: bool = False,
    ) -> None:
        """accept_changed: what a finished phase was trained on or with may differ from the recipe; it is recorded."""
        self._recipe, self._corpora, self._directory, self._accepts = (
            recipe,
            corpora,
            directory,
            accept_changed,
        )
        self._phases = {phase.name: phase for phase in recipe.all_phases}
        self._facts: dict[str, Facts] = {}
        self._opened: dict[str, Model] = {}

    def facts(self, phase: Phase) -> Facts:
        if phase.name not in self._facts:
            self._facts[phase.name] = facts_of(self._recipe, self._corpora, phase)
        return self._facts[phase.name]

    def upstream(self, phase: Phase, number: int = 0) -> Model:
        """Returns the model that the phase may start from: its only one, or candidate `number`; no other is opened.

        Raises: GateClosed if it is a phase that may not be.
        """
        name = self._recipe.upstream_of(phase)[number]
        return self.open(name) if name in self._phases else self._outside(name)

    def open(self, name: str) -> Model:
        """Returns a finished phase's model, if its verdict opens the next phase and its whole chain is as it was.

        Raises: GateClosed, of the first link that is not.
        """
        if name not in self._opened:
            phase = self._phases[name]
            read_verdict(self._directory / name / "verdict.json")
            finished = self.finished(phase)
            if finished is None:
                raise GateClosed(f"{self._directory / name} was not finished; run {name} first")
            if finished.judged_otherwise:
                raise Stale(
                    f"{name} was judged by something else ({', '.join(finished.judged_otherwise)}); run {name} again: it is judged again, not trained"
                )
            require_open(
                self._directory / name / "verdict.json",
                {"weights": finished.model.digest, "record": finished.seal},
            )
            self._opened[name] = finished.model
        return self._opened[name]

    def finished(self, phase: Phase) -> Finished | None:
        """Returns what the phase left when it ended; None if it never did.

        Raises: Stale if it was made from other models, data or settings than it would be made from now;
        GateClosed if its verdict is damaged.
        """
        directory = self._directory / phase.name
        stored = hosts.first(f"record of {phase.name}", lambda: read_record(directory))
        if stored is None:
            return None
        record = upgraded_record(stored)
        if missing := [
            name
            for name in record["upstream"]
            if name["phase"] and not (self._directory / name["phase"] / "verdict.json").exists()
        ]:
            raise Stale(
                f"{phase.name} was made from {missing[0]['phase']}, which is not there any more; {self._way_out(phase, accept=False)}"
            )
        self._check_start(phase, record["upstream"])
        facts = self.facts(phase)
        accepted = record["accepted"]
        changed = [
            c
            for c in changes(record, facts, rounds=record["rounds"])
            if accepted.get(c.name, _NEVER) != c.now
        ]
        if changed and not self._accepts:
            raise Stale(
                f"{phase.name} was trained otherwise: {'; '.join(map(str, changed[:6]))}. {self._way_out(phase, accept=True)}"
            )
        if changed:
            stored = record = self._accept(directory, record, changed)
        model = models.open_model(directory)
        if model.digest != record["model"]:
            raise Stale(
                f"{phase.name}: its weights on disk are not those it left. {self._way_out(phase, accept=False)}"
            )
        return Finished(
            model,
            record,
            checksum(stored),
            tuple(c.name for c in differing(record["judged"], facts.judged)),
        )

    def _check_start(self, phase: Phase, tried: list[dict[str, str]]) -> None:
        """Raises: Stale unless the phase would try the same models first. tried: what it did; candidates behind were never
        opened, and need not be what they were."""
        names = self._recipe.upstream_of(phase)[: len(tried)]
        told = [(one["phase"], one["digest"]) for one in tried]
        is_same = [name if name in self._phases else "" for name in names] == [n for n, _ in told]
        if not is_same or told != [
            (told[i][0], self.upstream(phase, i).digest) for i in range(len(tried))
        ]:
            raise Stale(
                f"{phase.name} was made from another {' and '.join(names)} than the present one; {self._way_out(phase, accept=False)}"
            )

    def write_record(
        self,
        phase: Phase,
        *,
        upstream: list[Model],
        chosen: str,
        model: str,
        rounds: int,
        resumed: Finished | None,
    ) -> dict[str, str]:
        """Writes what made the phase; returns the digests that its verdict has to hold.

        upstream: what it tried, in order. chosen, model: digests of the model it started from and of the one it left; resumed:
        what it had left before it was judged again, and was not trained from the start.
        """
        facts, names = self.facts(phase), self._recipe.upstream_of(phase)
        record = {
            "format": RECORD_FORMAT,
            "phase": phase.name,
            "model": model,
            "chosen": chosen,
            "rounds": rounds,
            "upstream": [
                {"phase": name if name in self._phases else "", "digest": m.digest}
                for name, m in zip(names, upstream)
            ],
            "trained": resumed.record["trained"] if resumed else facts.trained,
            "judged": facts.judged,
            "accepted": resumed.record["accepted"] if resumed else {},
        }
        self._opened.pop(phase.name, None)
        return self._store(self._directory / phase.name, record)

    def _store(self, directory: pathlib.Path, record: dict[str, Any]) -> dict[str, str]:
        write_sealed(directory / "record.json", record)
        settings = {**record["trained"], **record["judged"]}
        contents = {name: settings.pop(name) for name in list(settings) if is_content(name)}
        digests = {
            "data": checksum(contents),
            "config": checksum(settings),
            "record": checksum(record),
        }
        return {"weights": record["model"], **digests}

    def _accept(
        self, directory: pathlib.Path, record: dict[str, Any], changed: list[Change]
    ) -> dict[str, Any]:
        """Records that a person accepts `changed`, in the record and in the verdict that names it."""
        for change in changed:
            say(f"{record['phase']}: accepted although it was trained otherwise: {change}")
        record = record | {
            "accepted": record["accepted"] | {change.name: change.now for change in changed}
        }
        amend_digests(directory / "verdict.json", self._store(directory, record))
        return record

    def _way_out(self, phase: Phase, *, accept: bool) -> str:
        later = [
            p.name
            for p in self._recipe.all_phases
            if self._stands_on(p, phase.name) and (self._directory / p.name).exists()
        ]
        restart = " ".join(f"--restart {name}" for name in (phase.name, *later))
        return f"Run it again with {restart}" + (
            ", or keep it with --accept-changed" if accept else ""
        )

    def _stands_on(self, phase: Phase, name: str) -> bool:
        names = [
            n for n in self._recipe.upstream_of(phase) if n in self._phases and n != phase.name
        ]
        return name in names or any(self._stands_on(self._phases[n], name) for n in names)

    def _outside(self, name: str) -> Model:
        if name not in self._opened:
            self._opened[name] = open_model(name)
        return self._opened[name]
