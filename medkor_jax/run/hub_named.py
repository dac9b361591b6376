"""What a config names on the hub: its data sets and models, what of each, and what the hub says of them.

    for wanted in named_on_hub(recipe): print("\\n".join(wanted.lines(facts)))

What it does not do: fetch (`commands.data_fetch`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from medkor_jax.data.licences import told_licence
from medkor_jax.data.rows import Source
from medkor_jax.io import download
from medkor_jax.io.download import HubFacts
from medkor_jax.io.weights import is_hub_id
from medkor_jax.run.at_hand import is_here, is_on_hub
from medkor_jax.run.candidates import candidates_of
from medkor_jax.run.choosing import only_if
from medkor_jax.run.corpora import uses_of
from medkor_jax.run.phases import Recipe
from medkor_jax.run.translated import translators_of

DATASET, MODEL = "dataset", "model"
# Models whose terms have to be accepted on their page, as far as is known without asking.
_GATED = {
    "google/medgemma-": "Health AI Developer Foundations terms",
    "google/gemma-3": "Gemma terms of use",
    "google/translategemma-": "Gemma terms of use",
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One repository of the hub. revision: as the config, or the lock, names it. sources: what the config reads of a data set.

    role: of a model: what the run starts from, or puts to a gate first.
    """

    kind: str
    id: str
    revision: str = ""
    sources: tuple[Source, ...] = ()
    role: str = ""

    @property
    def parts(self) -> tuple[Source, ...]:
        """One source for each subset and split, whose rows `datasets` brings in one go."""
        return tuple({(s.subset, s.split): s for s in self.sources}.values())

    @property
    def is_here(self) -> bool:
        """Whether it can be read without fetching anything."""
        if self.kind == MODEL:
            return download.is_cached(self.id)
        return all(map(is_here, self.parts))

    def lines(self, facts: HubFacts | None, *, is_here: bool) -> list[str]:
        """Returns what is wanted, in words. facts: what the hub says, None where it could not be asked."""
        if self.kind == MODEL:
            head, licences = f"model {self.id}: {self.role}", []
        else:
            named = [f"{source.name} ({_part(source)})" for source in self.sources]
            head = f"data set {self.id}: {', '.join(dict.fromkeys(named))}"
            licences = [told_licence(self.sources[0])]
        known = next((terms for start, terms in _GATED.items() if self.id.startswith(start)), "")
        if known and not facts:
            licences.append(f"{known} (not asked of the hub)")
        if facts and facts.licence:
            licences.append(f"the hub's card says {facts.licence}")
        state = ["here already" if is_here else "not here yet"]
        if facts:
            size = (
                f"{facts.size_bytes / 1e9:.2f} GB in all" if facts.size_bytes else "size not said"
            )
            state = [f"revision {facts.revision[:12]}", size, *state]
        elif self.revision:
            state = [f"revision {self.revision[:12]}", *state]
        lines = [head, f"    licence: {'; '.join(licences) or 'not known before the hub is asked'}"]
        if facts.is_gated if facts else known:
            lines.append(
                f"    gated: accept its terms at {download.page(self.id, self.kind)}, then set HF_TOKEN or run `hf auth login`"
            )
        return [*lines, f"    {', '.join(state)}"]


@dataclasses.dataclass(frozen=True)
class Told:
    """What the hub says of one repository, or why it says nothing."""

    facts: HubFacts | None
    words: str = ""
    is_unreachable: bool = False


def named_on_hub(recipe: Recipe) -> list[Wanted]:
    """Returns every data set, then every model, that the recipe takes from the hub, in the order in which it names them."""
    of: dict[tuple[str, str], list[Source]] = {}
    for source in dict.fromkeys(use.source for use in uses_of(recipe)):
        if is_on_hub(source):
            of.setdefault((source.path, source.revision), []).append(source)
    data = [Wanted(DATASET, name, revision, tuple(s)) for (name, revision), s in of.items()]
    translators = translators_of(recipe)
    roles = {
        name: _role(recipe, name, translators.get(name, ()))
        for name in dict.fromkeys([*recipe.outside_weights, *translators, *only_if(recipe)])
        if is_hub_id(name) and not pathlib.Path(name).exists()
    }
    return [*data, *(Wanted(MODEL, name, role=role) for name, role in roles.items())]


def _part(source: Source) -> str:
    part = f"part {source.part}" if source.part else ""
    return " ".join(filter(None, (source.subset, source.split, part)))


def _role(recipe: Recipe, name: str, translated: Sequence[Source]) -> str:
    phases = [
        phase.name
        for phase in recipe.phases
        if name in [candidate.weights for candidate in candidates_of(phase, recipe.phases)]
    ]
    if when := only_if(recipe).get(name):
        phases[-1] += f", which a run opens only if {when}"
    start = ["what the run starts from"] if name == recipe.weights else []
    by_it = (
        [f"translates {' and '.join(source.name for source in translated)}"] if translated else []
    )
    return ", ".join([*start, *(f"a candidate of {phase}" for phase in phases), *by_it])


def ask_hub(wanted: Sequence[Wanted]) -> list[Told]:
    """Returns for each what the hub says; a hub that cannot be reached is asked once."""
    told: list[Told] = []
    asked_for, lost = "", ""
    for one in wanted:
        if not lost:
            try:
                told.append(Told(download.facts_of(one.id, one.kind, one.revision)))
                continue
            except download.HubUnreachableError as error:
                asked_for, lost = one.id, str(error)
            except ValueError as error:
                told.append(Told(None, str(error)))
                continue
        told.append(Told(None, lost.replace(asked_for, one.id), is_unreachable=True))
    return told


def unsaid(told: Sequence[Told]) -> list[str]:
    """Returns what the hub did not say, in sentences: one for all where it could not be reached."""
    words = [one.words for one in told if one.words and not one.is_unreachable]
    if lost := [one for one in told if one.is_unreachable]:
        words.append(
            f"the hub could not be reached: of {len(lost)} of these its card, size, gate and newest revision are not known"
        )
    return words
