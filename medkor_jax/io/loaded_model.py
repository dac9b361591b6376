"""A model as it is in memory, passed whole: whoever trains it, asks it or writes it has all that belongs to it.

    loaded = LoadedModel(params, base, config, tokenizer)
    loaded.digest                   # the same as of the model that `io.models.save_model` would write

What it does not do: read, change or score a model.
"""

from __future__ import annotations

import dataclasses

import jax

from medkor_jax.data.reading import Reading
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.models import model_digest
from medkor_jax.io.weights import Weights
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import TRAINABLE_TREES, Params


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """Its parameters, the weights they rest on, how it reads text, and all that is known to have been trained on."""

    params: Params
    base: Weights
    config: ModelConfig
    tokenizer: Tokenizer
    read: tuple[Reading, ...] = ()

    @property
    def digest(self) -> str:
        trees = {name: getattr(self.params, name) for name in TRAINABLE_TREES}
        trees = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
        return model_digest(self.base.digest, digest_tree(trees) if trees else "", self.params.lora_scale)
