"""Which of a phase's candidates it starts from: tried in the order given, the first that opens the gate is taken.

    check_candidates(recipe)                            # ConfigError, before anything is opened
    choice = choose(phase, models, examine=..., load=...)
    choice.start, choice.tried, choice.looks

A candidate is opened (fetched, hashed, trained where a phase is to be run on it, loaded) only if those before it did not
pass. What it does not do: open, train or measure; it is given how.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator

from medkor_jax.eval.judgement import Judgement, judge
from medkor_jax.eval.report import Report
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.models import Model
from medkor_jax.io.sizes import known_config
from medkor_jax.io.streaming import WeightsError
from medkor_jax.nearest import nearest
from medkor_jax.parallel.hosts import say
from medkor_jax.run.candidates import ON, Candidate, candidates_of, configured_name, on_demand_of
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.phases import ConfigError, Phase, Recipe


@dataclasses.dataclass(frozen=True)
class Choice:
    """start: what the phase starts from. tried: it and those before or beside it that did not pass; looks: how each was judged."""

    start: LoadedModel
    tried: list[Model]
    looks: list[tuple[str, Judgement]]


def choose(
    phase: Phase,
    models: Iterator[Model],
    *,
    examine: Callable[[Model], Report],
    load: Callable[[Model], LoadedModel],
) -> Choice:
    """Returns the first model that opens the gate, else the best; says why in words.

    models: opens each when it is asked for. No model is held while the next is opened and loaded.
    """
    if len(phase.candidates) < 2:
        only = next(models)
        return Choice(load(only), [only], [])
    tried: list[Model] = []
    looks: list[tuple[str, Judgement]] = []
    for model in models:
        size = model.config.n_params
        if tried and size < tried[-1].config.n_params:
            say(
                f"{phase.name}: {model.name} is smaller than {tried[-1].name}, which was tried before it: candidates are tried in "
                "the order given, and the smallest should come first"
            )
        judgement = judge(phase.gate, examine(model), looks=phase.looks)
        tried.append(model)
        looks.append((f"candidate {model.name}", judgement))
        say(f"{phase.name}: candidate {model.name} ({size / 1e9:.2f}B): {judgement.words}")
        if judgement.passed:
            left = len(phase.candidates) - len(tried)
            unopened = f"; {left} behind it not opened" if left else ""
            say(f"{phase.name}: {model.name} is taken, the first that passes{unopened}")
            return Choice(load(model), tried, looks)
    best = max(range(len(tried)), key=lambda i: looks[i][1].score)
    say(f"{phase.name}: no candidate passes; {tried[best].name} is taken, the best of {len(tried)}")
    return Choice(load(tried[best]), tried, looks)


def open_later(recipe: Recipe, corpora: Corpora, phase: Phase, name: str) -> None:
    """Opens a candidate that stands behind others, fetching it if need be, and compares what it has read with what judges the run.

    Raises: WeightsError if it cannot be opened, corpora.LeakError; what the candidates before it scored is on disk.
    """
    if name in [other.name for other in recipe.phases]:
        return
    try:
        corpora.refuse_leaks(recipe, (name,))
    except WeightsError as error:
        raise WeightsError(
            f"{phase.name}: no candidate before it passed, and the next, {name}, cannot be opened: {error}. Nothing is lost: what "
            f"was trained and asked is in {recipe.run_dir}, and the same command goes on there once it can be opened; or take it "
            f"out of {phase.name}.candidates, and {phase.name} goes on with the best of the others"
        ) from error


def check_candidates(recipe: Recipe) -> None:
    """Raises: ConfigError, naming phase and candidate, if a candidate cannot be meant."""
    names = [phase.name for phase in recipe.phases]
    brought: dict[str, str] = {}
    for at, phase in enumerate(recipe.phases):
        found = candidates_of(phase, recipe.phases)
        for candidate in found:
            what = f"phase {phase.name!r}, candidate {str(candidate)!r}"
            if candidate.phase and names.index(candidate.phase) >= at:
                raise ConfigError(f"{what}: {candidate.phase} runs after it, or is it")
            if candidate.is_on_demand:
                _check_on_demand(recipe, candidate, what)
                if brought.setdefault(candidate.name, candidate.weights) != candidate.weights:
                    raise ConfigError(
                        f"{what} would share the directory {candidate.name} with {brought[candidate.name]!r}: give the weights "
                        "directories of different names"
                    )
            elif ON in candidate.weights and not pathlib.Path(candidate.weights).exists():
                left = candidate.weights.partition(ON)[0]
                raise ConfigError(
                    f"{what}: {left!r} is no phase of this config; nearest: {nearest(left, names[:at]) or 'none'!r}"
                )


def _check_on_demand(recipe: Recipe, candidate: Candidate, what: str) -> None:
    made_by = next(phase for phase in recipe.phases if phase.name == candidate.phase)
    if made_by.after or made_by.candidates:
        raise ConfigError(
            f"{what}: {made_by.name} starts from {', '.join(recipe.upstream_of(made_by))}; only a phase that starts from the run's "
            "weights can be run on others"
        )
    if candidate.name in [phase.name for phase in recipe.phases]:
        raise ConfigError(
            f"{what}: its directory would be that of phase {candidate.name!r}; give that phase another name"
        )


def check_order(recipe: Recipe, phase: Phase) -> None:
    """Raises: ConfigError if a candidate is known to be smaller than one before it; what is not here is compared once it is."""
    largest, before = 0, ""
    found = candidates_of(phase, recipe.phases)
    for candidate in found if len(found) > 1 else ():
        size = _known_size(recipe, candidate)
        if size and size < largest:
            raise ConfigError(
                f"phase {phase.name!r}: candidate {str(candidate)!r} ({size / 1e9:.2f}B) stands behind {before!r} "
                f"({largest / 1e9:.2f}B). Candidates are tried in the order given and the first that passes is taken: put the "
                "smaller first"
            )
        if size:
            largest, before = size, str(candidate)


def _known_size(recipe: Recipe, candidate: Candidate) -> int:
    """Returns how many parameters its base has, 0 where that is not known without fetching it."""
    name = candidate.weights
    if not name:  # a phase of this run: what its first chain begins with
        named, at = {phase.name: phase for phase in recipe.all_phases}, candidate.phase
        while at in named:
            at = recipe.upstream_of(named[at])[0]
        name = at
    config = known_config(name)
    return config.n_params if config else 0


def may_run(recipe: Recipe) -> tuple[Phase, ...]:
    """Returns the phases to run, and those that a candidate brings on other weights where the config's own is not to run."""
    brought = [one for phase in recipe.in_force for one in on_demand_of(phase, recipe.phases)]
    own = [configured_name(one.name, recipe.phases) for one in brought]
    return (*(one for one, name in zip(brought, own) if name not in recipe.run), *recipe.in_force)


def only_if(recipe: Recipe) -> dict[str, str]:
    """Returns the weights that the phases to run may never open, {name: "phase0 does not pass phase1"}."""
    certain = recipe.outside_weights
    return {
        other.weights: f"{before} does not pass {phase.name}"
        for phase in recipe.in_force
        for before, other in itertools.pairwise(candidates_of(phase, recipe.phases))
        if other.weights and other.weights not in certain
    }


def told(recipe: Recipe) -> str:
    """Returns what is tried only if something before it does not pass, "" if nothing is."""
    lines = []
    for phase in recipe.in_force:
        for before, other in itertools.pairwise(candidates_of(phase, recipe.phases)):
            size = _known_size(recipe, other)
            shown = f"{other}{f' ({size / 1e9:.2f}B)' if size else ''}"
            lines.append(
                f"  {phase.name}: {shown}, opened only if {before} does not pass"
                + (f"; {other.phase} is then run on it first" if other.is_on_demand else "")
            )
    return "\n".join(["Tried only if needed:", *lines]) if lines else ""
