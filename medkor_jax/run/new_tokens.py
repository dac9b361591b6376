"""The new Korean tokens of a phase: learnt from the text that it trains on, and kept in the run.

    loaded = with_new_tokens(loaded, phase, corpora, run_dir)       # its tokenizer is longer now; its rows: `trees.add_trees`

They lie in RUN_DIR/new_tokens, under a name made of all that decides them: settings, the base's tokenizer, every row of the
phase's training sources. So a run that goes on reads the same ones, and other data are other tokens, with which a stage that
was begun is refused (`train.stage_plan`) and a finished phase is stale (`lineage`). What judges is never read: it is none of
the training sources, and what they share with it is refused before (`corpora.refuse_leaks`).

What it does not do: learn them (`data.new_tokens`).
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from medkor_jax.data.contents import checksum
from medkor_jax.data.new_tokens import FORMAT, NewTokens, learn
from medkor_jax.data.packing import encode
from medkor_jax.data.rows import Source
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.files import write_sealed
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.models import read_new_tokens
from medkor_jax.model.params import Params, n_new_tokens
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import ConfigError, Phase, Recipe
from medkor_jax.train.stage_plan import StagePlan

DIRECTORY = "new_tokens"
_MOST_CHARACTERS = 50_000_000  # at the head of each source, that are learnt from
_ASKED = 64  # documents of a source that are looked at
_learnt: dict[str, NewTokens] = {}  # by this process, under the same names as on disk


def with_new_tokens(
    loaded: LoadedModel, phase: Phase, corpora: Corpora, run_dir: pathlib.Path | None
) -> LoadedModel:
    """Returns the model with the tokenizer that the phase asks for, as it is where it has new tokens or needs none.

    run_dir: where they are kept; None: nowhere. Raises: ConfigError if the phase's text does not give so many.
    """
    if not phase.language.adds_tokens or loaded.params.lang:
        return loaded
    first_id = loaded.config.vocab_size
    name = _name(phase, loaded.tokenizer, first_id, corpora)
    path = run_dir / DIRECTORY / name if run_dir else None
    if path and hosts.first(path, path.is_file):
        new = read_new_tokens(path)
    else:
        new = _learn(name, phase, loaded.tokenizer, first_id, corpora)
        if path:
            write_sealed(path, new.to_json())
    n = len(new.pieces)
    say(f"{phase.name}: {n} new Korean tokens, ids {new.first_id} to {new.first_id + n - 1}")
    return loaded.with_tokenizer(loaded.tokenizer.extended(new))


def check_new_tokens(recipe: Recipe, corpora: Corpora, phase: Phase) -> None:
    """Learns a phase's new tokens, if the run has not yet and no phase before it has.

    Raises: ConfigError as `with_new_tokens`, or if an earlier phase adds another number of them.
    """
    phases = {one.name: one for one in recipe.all_phases}
    before = phase
    while (before := phases.get(recipe.upstream_of(before)[0])) is not None:
        if before.language.adds_tokens and before.language.size != phase.language.size:
            raise ConfigError(
                f"{phase.name}.language.size is {phase.language.size}, and {before.name}, on whose model it stands, adds "
                f"{before.language.size} new tokens. Make them the same"
            )
        if before.language.adds_tokens:
            return
    model = open_model(recipe.weights)
    if model.new_tokens:
        return
    first_id = model.config.vocab_size
    name = _name(phase, model.tokenizer, first_id, corpora)
    if not (pathlib.Path(recipe.run_dir) / DIRECTORY / name).is_file():
        _learn(name, phase, model.tokenizer, first_id, corpora)


def check_reference(plan: StagePlan, loaded: LoadedModel, reference: Params) -> None:
    """Raises: ConfigError if retention would compare nothing: a reference without the new tokens reads only what holds none."""
    if n_new_tokens(loaded.params) == n_new_tokens(reference):
        return
    train: Any = plan.train  # questions or documents, as the reward says
    held = [one for one in train if one[0].loss in ("", "each_layer")]
    for source, documents in held:
        if plan.stage.reward.is_on:
            if source.language == "en":
                return
            continue
        asked = [documents[i] for i in range(min(_ASKED, len(documents)))]
        old = [encode(one, loaded.style).tokens < loaded.config.vocab_size for one in asked]
        if sum(ids.all() for ids in old) * 2 >= len(old):
            return
    raise ConfigError(
        f"{plan.name} holds the model to a reference that does not know its new Korean tokens, so that only documents without them "
        f"can be compared, and most of {' and of '.join(source.name for source, _ in held)} hold some. Add English text to "
        "its data, or set retention.weight to 0"
    )


def _name(phase: Phase, tokenizer: Tokenizer, first_id: int, corpora: Corpora) -> str:
    rows = [corpora.digest(source) for source in phase.train.data]
    decides = [FORMAT, tokenizer.digest, first_id, phase.language.facts(), rows, _MOST_CHARACTERS]
    return f"{phase.name}-{checksum(decides)[:12]}.json"


def _learn(
    name: str, phase: Phase, tokenizer: Tokenizer, first_id: int, corpora: Corpora
) -> NewTokens:
    if name not in _learnt:
        asked = phase.language
        try:
            _learnt[name] = learn(
                _texts(corpora, phase.train.data),
                tokenizer,
                size=asked.size,
                first_id=first_id,
                least_seen=asked.least_seen,
            )
        except ValueError as error:
            sources = ", ".join(source.name for source in phase.train.data)
            raise ConfigError(
                f"{phase.name}.language asks for {asked.size} new tokens from {sources}: {error}. Ask for fewer "
                f"({phase.name}.language.size), lower {phase.name}.language.least_seen, or train on more Korean text"
            ) from error
    return _learnt[name]


def _texts(corpora: Corpora, sources: Sequence[Source]) -> Iterator[str]:
    """Yields the texts of the head of every source, what is asked and what is answered."""
    for _, documents in corpora.examples(sources):
        room = _MOST_CHARACTERS
        for text, _ in itertools.chain.from_iterable(one.parts for one in documents):
            if room <= 0:
                break
            room -= len(text)
            yield text
