"""A model as it is in memory, passed whole: whoever trains it, asks it or writes it has all that belongs to it.

    loaded = load(open_model("runs/quickstart/phase3"), jnp.float32, mesh)
    loaded.digest                   # the same as of the model that `io.models.save_model` would write

What it does not do: change or score a model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medkor_jax.data.reading import Reading
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.models import Model, model_digest
from medkor_jax.io.weights import Weights
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import TRAINABLE_TREES, Params, Tree


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """Its parameters, the weights they rest on, how it reads text, and all that is known to have been trained on.

    language_unit: how tokens are told their language, by "token" or by "document"; see `io.models.Model`.
    """

    params: Params
    base: Weights
    config: ModelConfig
    tokenizer: Tokenizer
    read: tuple[Reading, ...] = ()
    language_unit: str = "token"

    @property
    def digest(self) -> str:
        trees = {name: getattr(self.params, name) for name in TRAINABLE_TREES}
        trees = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
        return model_digest(
            self.base.digest, digest_tree(trees) if trees else "", self.params.lora_scale
        )


def load(
    model: Model, dtype: Any, mesh: Mesh, *, language_unit: str = "", base: Tree | None = None
) -> LoadedModel:
    """Returns the model on `mesh`, its base in `dtype`. language_unit "": its own; base: the base's arrays, where they are loaded already."""
    params = model.load(jnp.dtype(dtype), mesh, base)
    return LoadedModel(
        params,
        model.base,
        model.config,
        model.tokenizer,
        model.read,
        language_unit or model.language_unit,
    )
