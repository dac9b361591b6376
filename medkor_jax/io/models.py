"""A whole model by name: its base, and the adapters that a run put beside it.

    model = open_model("runs/quickstart")            # or a phase of it, or any name `open_weights` knows
    params = model.load(jnp.float32, mesh)

A phase's directory says in `model.json` which base its model stands on (a name, or a merged base on disk)
and holds its adapters under `adapters/`. Digests tie them together: a base or an adapter that is not the
recorded one is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.checkpoint import abstract_like, digest_tree, restore_tree, save_tree, stored_shapes
from medkor_jax.io.files import write_json
from medkor_jax.io.streaming import WeightsError, digest_files
from medkor_jax.io.weights import Weights, open_weights
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import Params, Tree, abstract_base, leaf_paths
from medkor_jax.parallel.mesh import shard_tree

ADAPTER_TREES = ("lora", "lang", "expand")
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Model:
    """A base with what a run trained beside it. directory None: the base alone.

    route: how tokens get the language of their embedding, by "token" or by "document"; without it the language
    embeddings mean nothing.
    """

    name: str
    base: Weights
    directory: pathlib.Path | None = None
    lora_scale: float = 1.0
    adapters_digest: str = ""  # "" where there are none
    route: str = "token"

    @property
    def config(self) -> ModelConfig:
        return self.base.config

    @property
    def tokenizer(self) -> Tokenizer:
        if self.base.tokenizer is None:
            raise WeightsError(f"{self.name} has no tokenizer; weights that read text need one")
        return self.base.tokenizer

    @property
    def digest(self) -> str:
        """SHA-256 that changes with any weight of the base or of the adapters."""
        return model_digest(self.base.digest, self.adapters_digest, self.lora_scale)

    def load(self, dtype: Any, mesh: Mesh, base: Tree | None = None) -> Params:
        """Returns the parameters on `mesh`. `base`: the base's arrays, where they are loaded already."""
        if base is None:
            base = self.base.load(dtype, shard_tree(abstract_base(self.config, dtype), mesh))
        if not self.adapters_digest:
            return Params(base)
        stored = stored_shapes(self.directory / "adapters")
        trees = restore_tree(self.directory / "adapters", abstract_like(stored, shard_tree(stored, mesh)))
        if digest_tree(trees) != self.adapters_digest:
            raise WeightsError(f"{self.directory}/adapters is not what model.json recorded; run the phase again")
        return Params(base, lora_scale=self.lora_scale, **trees)


def model_digest(base: str, adapters: str, lora_scale: float) -> str:
    return base if not adapters else hashlib.sha256(f"{base} {adapters} {lora_scale}".encode()).hexdigest()


def open_model(name: str | os.PathLike) -> Model:
    """Returns what `name` names: a run (its latest finished phase), a phase's directory, or weights.

    Raises: WeightsError if nothing is called so, or what is there does not fit together.
    """
    path = pathlib.Path(name)
    if (path / "ledger.json").is_file():
        finished = [entry["phase"] for entry in read_ledger(path) if (path / entry["phase"] / "model.json").is_file()]
        if not finished:
            raise WeightsError(f"run {path} has finished no phase yet; run it first, or name its starting weights")
        path = path / finished[-1]
    if (path / "model.json").is_file():
        return _open_phase(path)
    if (path / "lineage.json").is_file():
        return Model(str(name), open_base(path))
    return Model(str(name), open_weights(str(name)))


def save_model(directory: pathlib.Path, params: Params, base: Weights, route: str = "token") -> Model:
    """Writes a phase's adapters and says which base they stand on; returns the model as it reads back."""
    trees = {name: getattr(params, name) for name in ADAPTER_TREES if jax.tree.leaves(getattr(params, name))}
    if trees:
        save_tree(directory / "adapters", trees)
    digest = digest_tree(trees) if trees else ""
    if jax.process_index() == 0:
        inside = pathlib.Path(base.name).is_dir() and pathlib.Path(base.name).is_relative_to(directory.parent)
        name = os.path.relpath(base.name, directory) if inside else base.name
        write_json(directory / "model.json", {
            "format": _FORMAT, "base": name, "base_is_relative": inside, "base_digest": base.digest,
            "lora_scale": params.lora_scale, "adapters": sorted(leaf_paths(trees)), "adapters_digest": digest,
            "route": route,
        })  # fmt: skip
    return _open_phase(directory)


def save_base(
    directory: pathlib.Path, base: Tree, config: ModelConfig, tokenizer: Tokenizer, lineage: dict[str, Any]
) -> Weights:
    """Writes a merged base with orbax, its config, tokenizer and lineage beside it; returns it as weights."""
    save_tree(directory / "tree", base)
    if jax.process_index() == 0:
        tokenizer.save(directory)
        write_json(directory / "model_config.json", config.to_json())
        write_json(directory / "lineage.json", lineage | {"dtype": str(base["embed"].dtype)})
    return open_base(directory)


def open_base(directory: pathlib.Path) -> Weights:
    """Returns a merged base on disk as weights. Raises: WeightsError if a part of it is missing."""
    for part in ("tree", "model_config.json", "lineage.json"):
        if not (directory / part).exists():
            raise WeightsError(f"{directory} has no {part}: it is not a whole merged base; run its phase again")
    config = ModelConfig.from_json(json.loads((directory / "model_config.json").read_text(encoding="utf-8")))
    stored = json.loads((directory / "lineage.json").read_text(encoding="utf-8"))["dtype"]

    def load(dtype: Any, shardings: Tree | None = None) -> Tree:
        return restore_tree(directory / "tree", _abstract(config, dtype, shardings))

    return Weights(
        str(directory), config, load, make_digest=lambda: digest_files(_files(directory / "tree")),
        make_tokenizer=lambda: Tokenizer.load(directory), stored_dtype=stored,
    )  # fmt: skip


def read_ledger(run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what a run did, oldest first; [] if nothing yet."""
    path = run_dir / "ledger.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _abstract(config: ModelConfig, dtype: Any, shardings: Tree | None) -> Tree:
    abstract = abstract_base(config, dtype)
    if shardings is None:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: place, abstract)
    return abstract_like(abstract, shardings)


def _open_phase(directory: pathlib.Path) -> Model:
    said = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    if said.get("format") != _FORMAT:
        raise WeightsError(f"{directory}/model.json has format {said.get('format')!r}, this program reads {_FORMAT}")
    name = said["base"]
    base = open_base((directory / name).resolve()) if said["base_is_relative"] else _open_named(name)
    if base.digest != said["base_digest"]:
        raise WeightsError(
            f"{directory} stands on base {name!r} with digest {said['base_digest'][:12]}, but that name now has "
            f"{base.digest[:12]}: the weights were replaced. Put them back, or run the phases again"
        )
    route = said.get("route", "token")  # models saved before it was recorded were routed so, unless their config said else
    return Model(str(directory), base, directory, said["lora_scale"], said["adapters_digest"], route)


def _open_named(name: str) -> Weights:
    return open_base(pathlib.Path(name)) if (pathlib.Path(name) / "lineage.json").is_file() else open_weights(name)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns all files below an orbax checkpoint."""
    return [path for path in directory.rglob("*") if path.is_file()]
