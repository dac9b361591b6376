"""A whole model by name: its base, and the adapters that a run put beside it.

    model = open_model("runs/quickstart/phase3")     # or a merged base, or any name `open_weights` knows
    params = model.load(jnp.float32, mesh)

A phase's directory says in `model.json` which base its model stands on (a name, or a merged base on disk)
and holds its adapters under `adapters/`. Digests tie them together: a base or an adapter that is not the
recorded one is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from medkor_jax.data.contents import sha256_of
from medkor_jax.data.new_tokens import NewTokens
from medkor_jax.data.reading import Reading, read_json
from medkor_jax.data.style import PLAIN
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.bases import open_base, read_whole_json, read_whole_sealed
from medkor_jax.io.checkpoint import (
    abstract_like,
    digest_tree,
    restore_tree,
    save_tree,
    stored_shapes,
)
from medkor_jax.io.files import write_sealed
from medkor_jax.io.streaming import WeightsError
from medkor_jax.io.weights import Weights, open_weights
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import TRAINABLE_TREES, Params, Tree, abstract_base, leaf_paths
from medkor_jax.parallel.mesh import shard_tree

NEW_TOKENS = "new_tokens.json"  # in a phase's directory, where its model has some
_FORMAT = 3  # 1 had no seal, and a base's digest was that of its files; 2 did not say what the model had read


@dataclasses.dataclass(frozen=True)
class Model:
    """A base with what a run trained beside it. directory None: the base alone.

    language_unit: how tokens get the language of their embedding, by "token" or by "document"; without it the language
    embeddings mean nothing. trained_on: what the run read after its base, see `read`. style: the form in which a run taught it,
    "chat" or "plain"; "" where no run did. new_tokens: those that a run added to the base's.
    """

    name: str
    base: Weights
    directory: pathlib.Path | None = None
    lora_scale: float = 1.0
    adapters_digest: str = ""  # "" where there are none
    language_unit: str = "token"
    trained_on: tuple[Reading, ...] | None = None
    style: str = ""
    new_tokens: NewTokens | None = None

    @property
    def read(self) -> tuple[Reading, ...]:
        """All that is known to have been trained on, by this run and by those that its weights come from."""
        return self.base.read if self.trained_on is None else self.trained_on

    @property
    def config(self) -> ModelConfig:
        return self.base.config

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = self.base.tokenizer
        if tokenizer is None:
            raise WeightsError(f"{self.name} has no tokenizer; weights that read text need one")
        return tokenizer.extended(self.new_tokens) if self.new_tokens else tokenizer

    @property
    def digest(self) -> str:
        """SHA-256 that changes with any weight of the base or of the adapters."""
        new = self.new_tokens.digest if self.new_tokens else ""
        return model_digest(self.base.digest, self.adapters_digest, self.lora_scale, new)

    def load(self, dtype: Any, mesh: Mesh, base: Tree | None = None) -> Params:
        """Returns the parameters on `mesh`. `base`: the base's arrays, where they are loaded already."""
        if base is None:
            base = self.base.load(dtype, shard_tree(abstract_base(self.config, dtype), mesh))
        if not self.adapters_digest:
            return Params(base)
        stored = stored_shapes(self.directory / "adapters")
        trees = restore_tree(
            self.directory / "adapters", abstract_like(stored, shard_tree(stored, mesh))
        )
        if digest_tree(trees) != self.adapters_digest:
            raise WeightsError(
                f"{self.directory}/adapters is not what model.json recorded; run the phase again"
            )
        return Params(base, lora_scale=self.lora_scale, **trees)


def model_digest(base: str, adapters: str, lora_scale: float, new_tokens: str = "") -> str:
    """new_tokens: their digest, "" where there are none."""
    said = [f"{base} {adapters} {lora_scale}", *([new_tokens] if new_tokens else [])]
    return base if not adapters else sha256_of(said)


def open_model(name: str | os.PathLike) -> Model:
    """Returns what `name` names: a phase's directory, a merged base, or weights. (A run: see `lineage.open_model`.)

    Raises: WeightsError if nothing is called so, or what is there does not fit together.
    """
    path = pathlib.Path(name)
    if (path / "model.json").is_file():
        return _open_phase(path)
    if (path / "lineage.json").is_file():
        base = open_base(path)
        return Model(str(name), base, style=base.style)
    if is_run(path):
        raise WeightsError(f"{path} is a run: name one of its phases' directories")
    if (path / "record.json").is_file():
        raise WeightsError(
            f"{path}/model.json is not there, though its phase has ended: put it back, or run the phase again"
        )
    base = open_weights(str(name))
    return Model(str(name), base, style=base.style)


def is_run(path: pathlib.Path) -> bool:
    return (path / "ledger.json").is_file()


def save_model(
    directory: pathlib.Path,
    params: Params,
    base: Weights,
    language_unit: str = "token",
    read: tuple[Reading, ...] = (),
    style: str = PLAIN,
    new_tokens: NewTokens | None = None,
) -> Model:
    """Writes a phase's adapters and says which base they stand on; returns the model as it reads back.

    read: all that the model has read, that of its base included. new_tokens: those that `params` has rows for.
    A base inside the run (beside `directory`, or below it) is named from here, so that the run can be moved.
    """
    trees = {
        name: getattr(params, name)
        for name in TRAINABLE_TREES
        if jax.tree.leaves(getattr(params, name))
    }
    if trees:
        save_tree(directory / "adapters", trees)
    if new_tokens:
        write_sealed(directory / NEW_TOKENS, new_tokens.to_json())
    digest = digest_tree(trees) if trees else ""
    place = pathlib.Path(base.name).resolve() if pathlib.Path(base.name).exists() else None
    inside = place is not None and place.is_relative_to(directory.resolve().parent)
    name = os.path.relpath(place, directory.resolve()) if inside else str(place or base.name)
    write_sealed(
        directory / "model.json",
        {
            "format": _FORMAT,
            "base": name,
            "base_is_relative": inside,
            "base_digest": base.digest,
            "lora_scale": params.lora_scale,
            "adapters": sorted(leaf_paths(trees)),
            "adapters_digest": digest,
            "route": language_unit,
            "style": style,
            "read": [one.to_json() for one in read],
            **({"new_tokens": new_tokens.digest} if new_tokens else {}),
        },
    )
    return _open_phase(directory)


def read_ledger(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what a run did, oldest first; [] if nothing yet."""
    path = run_dir / "ledger.json"
    if not path.exists():
        return []
    entries = read_whole_json(path, list)
    if not all(isinstance(one, dict) and "phase" in one for one in entries):
        raise WeightsError(f"{path} is damaged: not every entry names a phase; put it back")
    return entries


def style_of_phase(directory: pathlib.Path) -> str:
    """Returns the form in which the phase of this directory was taught, "" if it has not finished; opens no weights."""
    path = directory / "model.json"
    return _style_said(read_whole_sealed(path)) if path.is_file() else ""


def _style_said(said: dict[str, Any]) -> str:
    """What was trained before there was a choice was asked plainly."""
    return said.get("style", PLAIN)


def _open_phase(directory: pathlib.Path) -> Model:
    said = read_whole_sealed(directory / "model.json")
    if said.get("format") != _FORMAT:
        raise WeightsError(
            f"{directory}/model.json has format {said.get('format')!r}, this program reads {_FORMAT}; run the phase again with it"
        )
    base = _open_base_of(directory, said)
    if base.digest != said["base_digest"]:
        raise WeightsError(
            f"{directory} stands on base {said['base']!r} with digest {said['base_digest'][:12]}, but that name now has "
            f"{base.digest[:12]}: the weights were replaced. Put them back, or run the phases again"
        )
    read = read_json(said["read"])
    return Model(
        str(directory),
        base,
        directory,
        said["lora_scale"],
        said["adapters_digest"],
        said["route"],
        read,
        _style_said(said),
        _new_tokens_of(directory, said),
    )


def read_new_tokens(path: pathlib.Path) -> NewTokens:
    """Returns the new tokens of a sealed file. Raises: WeightsError if it is not there, damaged, or was changed."""
    try:
        return NewTokens.from_json(read_whole_sealed(path))
    except (FileNotFoundError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is missing or damaged; put it back, or run its phase again"
        ) from error


def _new_tokens_of(directory: pathlib.Path, said: dict[str, Any]) -> NewTokens | None:
    if "new_tokens" not in said:
        return None
    new = read_new_tokens(directory / NEW_TOKENS)
    if new.digest != said["new_tokens"]:
        raise WeightsError(
            f"{directory}/{NEW_TOKENS} holds other tokens than model.json recorded; put it back, or run the phase again"
        )
    return new


def _open_base_of(directory: pathlib.Path, said: dict[str, Any]) -> Weights:
    name = said["base"]
    if said["base_is_relative"]:
        return open_base(directory.joinpath(name).resolve())
    if (pathlib.Path(name) / "lineage.json").is_file():
        return open_base(pathlib.Path(name))
    try:
        return open_weights(name)
    except WeightsError as error:
        raise WeightsError(
            f"{directory} needs outside weights, {name!r} with digest {said['base_digest'][:12]}, and they cannot be opened: {error}"
        ) from error
