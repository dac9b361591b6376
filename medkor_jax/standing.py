"""The model in hand as a phase goes on: what it is, the trees a phase adds to it, LoRA folded into its base.

    standing = add_trees(standing, phase, phase.lora, seed=0)
    standing = merge_lora(standing, phase.name, directory / "base", dtype="float32", param_dtype="float32")

Nothing here trains, scores or decides. Call under `jax.set_mesh(mesh)`.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.adapt.language import make_language
from medkor_jax.adapt.lora import make_lora, merge
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.models import ADAPTER_TREES, model_digest, save_base
from medkor_jax.io.weights import Weights
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.forward import Inputs, batch_ways, forward, project_logits
from medkor_jax.model.params import BACK, FRONT, Params, Tree, edge_blocks
from medkor_jax.phases import ConfigError, LoraRecipe, Phase
from medkor_jax.train.loop import seed_of

MERGE_PARITY_BOUND = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest logit difference between merged and adapted model, as a share of the largest logit, by param_dtype."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """The model as it stands: its parameters and what they rest on."""

    params: Params
    base: Weights
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def digest(self) -> str:
        trees = {name: getattr(self.params, name) for name in ADAPTER_TREES}
        trees = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
        return model_digest(self.base.digest, digest_tree(trees) if trees else "", self.params.lora_scale)


def add_trees(standing: Standing, phase: Phase, lora: LoraRecipe, *, seed: int) -> Standing:
    """Returns the model with `lora` and what else the phase names, fresh where it does not have them yet.

    Raises: ConfigError if it has them in another shape.
    """
    params = _with_lora(standing.params, phase, lora, seed)
    kind = phase.language.kind
    if kind and params.lang and kind not in params.lang:
        raise ConfigError(f"{phase.name} asks for language embeddings of kind {kind!r}; the model has {sorted(params.lang)}")
    if kind and not params.lang:
        params = params.replace(lang=make_language(standing.config, kind=kind))
    if phase.expand.front or phase.expand.back:
        params = params.replace(expand=_expansion(params, phase))
    return dataclasses.replace(standing, params=params)


def _with_lora(params: Params, phase: Phase, lora: LoraRecipe, seed: int) -> Params:
    if not lora.rank:
        return params
    if not params.lora:
        key = jax.random.key(seed_of(seed, phase.name, "lora"))
        return params.replace(lora=make_lora(params.base, key, rank=lora.rank, targets=lora.targets), lora_scale=lora.scale)
    held = {name: pair["a"].shape[-1] for name, pair in params.lora.items()}
    if held != dict.fromkeys(lora.targets, lora.rank) or params.lora_scale != lora.scale:
        raise ConfigError(
            f"{phase.name} asks for LoRA rank {lora.rank} on {', '.join(lora.targets)} at scale {lora.scale}; the "
            f"model it starts from has {held} at {params.lora_scale}. Make them the same"
        )
    return params


def _expansion(params: Params, phase: Phase) -> Tree:
    """Returns the added layers: the model's own if it has them, else fresh ones."""
    asked = {side: n for side, n in ((FRONT, phase.expand.front), (BACK, phase.expand.back)) if n}
    if not params.expand:
        return make_expansion(params.base, front=phase.expand.front, back=phase.expand.back, init=phase.expand.init)
    held = {side: len(edge_blocks(params, side)) for side in params.expand}
    if held != asked:
        raise ConfigError(f"{phase.name} asks for added layers {asked}; the model it starts from has {held}. Make them the same")
    return params.expand


def merge_lora(standing: Standing, by: str, directory: pathlib.Path, *, dtype: str, param_dtype: str) -> Standing:
    """Returns the model with LoRA folded into a new base, written to `directory` with its lineage and the measured parity.

    by: the phase that merges. dtype: to compute the parity in; param_dtype: of the base.

    Raises: FloatingPointError, before anything is written, if a logit changed by more than `MERGE_PARITY_BOUND`.
    """
    params = standing.params
    merged = merge(params.base, params.lora, scale=params.lora_scale)
    parity = _parity(standing, params.replace(base=merged, lora={}), dtype)
    bound = MERGE_PARITY_BOUND[param_dtype]
    found = f"{parity:.1e} of the largest logit (bound {bound})"
    print(f"{by}: merged against adapted, logits differ by at most {found}")
    if not parity <= bound:
        raise FloatingPointError(f"{by}: merging changed a logit by {found}; nothing was written")
    lineage = {
        "made_by": f"{by}: merge of LoRA into its base", "base": standing.base.name, "base_digest": standing.base.digest,
        "lora_digest": digest_tree(params.lora), "rank": next(iter(params.lora.values()))["a"].shape[-1],
        "scale": params.lora_scale, "targets": sorted(params.lora), "largest_logit_difference_as_share": parity,
    }  # fmt: skip
    base = save_base(directory, merged, standing.config, standing.tokenizer, lineage, standing.base.carried)
    return dataclasses.replace(standing, params=params.replace(base=merged, lora={}, lora_scale=1.0), base=base)


def _parity(standing: Standing, merged: Params, dtype: str) -> float:
    """Returns the largest difference of any logit, as a share of the largest, at 4 positions of each row of random tokens."""
    tokens = jax.random.randint(jax.random.key(0), (4 * batch_ways(), 64), 3, standing.tokenizer.vocab_size)
    inputs = Inputs(tokens, jnp.broadcast_to(jnp.arange(64), tokens.shape), jnp.ones_like(tokens), jnp.zeros_like(tokens))
    last = jax.jit(lambda p: project_logits(p.base, forward(p, standing.config, inputs, dtype=jnp.dtype(dtype))[:, ::16]))
    adapted = last(standing.params)
    return float(jnp.max(jnp.abs(adapted - last(merged))) / jnp.max(jnp.abs(adapted)))
