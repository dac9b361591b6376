"""What a phase does to the trees of the model in hand: adds those it names, folds LoRA into the base.

    loaded = add_trees(loaded, phase, phase.lora, seed=0)
    loaded = merge_lora(loaded, phase.name, directory / "base", param_dtype="float32")

Nothing here trains, scores or decides. Call under `jax.set_mesh(mesh)`.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.adapt.language import make_language, rows_of_new
from medkor_jax.adapt.lora import LoraSettings, make_lora, merge, merge_in_place
from medkor_jax.io.bases import save_base
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.rounding import MOST_LOST, MOST_NOISE, Probe, compare, rms
from medkor_jax.io.weights import Weights
from medkor_jax.model.dtypes import float_of, is_quantized
from medkor_jax.model.params import (
    BACK,
    FRONT,
    Params,
    Tree,
    abstract_base,
    edge_blocks,
    n_new_tokens,
)
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import host_mesh, shard_tree
from medkor_jax.run.phases import ConfigError, Phase
from medkor_jax.run.seeds import seed_of


def add_trees(loaded: LoadedModel, phase: Phase, lora: LoraSettings, *, seed: int) -> LoadedModel:
    """Returns the model with `lora` and what else the phase names, fresh where it does not have them yet.

    Raises: ConfigError if it has them in another shape.
    """
    params = _with_lora(loaded.params, phase, lora, seed)
    if phase.language.is_on:
        params = _with_language(loaded, params, phase)
    if phase.expand.is_on:
        params = params.replace(expand=_expansion(params, phase))
    return dataclasses.replace(loaded, params=params)


def _with_language(loaded: LoadedModel, params: Params, phase: Phase) -> Params:
    asked, held = phase.language, sorted(params.lang)
    has_tokens = n_new_tokens(params) > 0
    fits = asked.adds_tokens == has_tokens and (asked.adds_tokens or asked.kind in held)
    if held and not fits:
        raise ConfigError(
            f"{phase.name} asks for language embeddings of kind {asked.kind!r}; the model has {held}"
        )
    if held and asked.size != n_new_tokens(params):
        raise ConfigError(
            f"{phase.name} asks for {asked.size} new tokens; the model it starts from has {n_new_tokens(params)}. Make them the same"
        )
    if held:
        return params
    lang = make_language(loaded.config, kind=asked.kind, size=asked.size)
    if asked.adds_tokens:
        new = loaded.tokenizer.new_tokens
        if new is None:
            raise ConfigError(
                f"{phase.name} adds new tokens, and they are not learnt yet; they are when the phase is run"
            )
        lang |= rows_of_new(params.base, new.spelt)
    return params.replace(lang=lang)


def _with_lora(params: Params, phase: Phase, lora: LoraSettings, seed: int) -> Params:
    if not lora.is_on:
        return params
    if not params.lora:
        key = jax.random.key(seed_of(seed, phase.name, "lora"))
        return params.replace(
            lora=make_lora(params.base, key, rank=lora.rank, targets=lora.targets),
            lora_scale=lora.scale,
        )
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
        return make_expansion(
            params.base, front=phase.expand.front, back=phase.expand.back, init=phase.expand.init
        )
    held = {side: len(edge_blocks(params, side)) for side in params.expand}
    if held != asked:
        raise ConfigError(
            f"{phase.name} asks for added layers {asked}; the model it starts from has {held}. Make them the same"
        )
    return params.expand


def merge_lora(
    loaded: LoadedModel,
    by: str,
    directory: pathlib.Path,
    *,
    param_dtype: str,
    donate: bool = False,
) -> LoadedModel:
    """Returns the model with LoRA folded into a new base, written to `directory` with its lineage and what rounding took.

    by: the phase that merges; param_dtype: of the base; donate: whether the matrices of the base in hand are used up.

    Raises: FloatingPointError, before anything is written, if rounding took more of the adapter's effect than
    `io.rounding` allows, or the merge changed something else. The trained adapter stays in its stage's checkpoint.
    """
    params, probe = loaded.params, Probe(loaded.config, loaded.tokenizer)
    adapted = probe.logits(params)
    plain = probe.logits(params.replace(lora={}))
    fold = merge_in_place if donate else merge
    merged = fold(params.base, params.lora, scale=params.lora_scale)
    kept = compare(
        adapted - plain, probe.logits(params.replace(base=merged, lora={})) - plain, rms(adapted)
    )
    say(f"{by}: LoRA merged into its {param_dtype} base: {kept.words}")
    if kept.is_too_much(param_dtype):
        raise FloatingPointError(
            f"{by}: merging LoRA into a {param_dtype} base: {kept.words}; at most {MOST_LOST:.0%} may be lost, and the logits may be "
            f"off by {MOST_NOISE[param_dtype]:g} of their size (found: {kept.error:.1e}). "
            + (
                "Set param_dtype='float32', which keeps it, or train longer"
                if param_dtype != "float32"
                else "The merge is wrong, not rounded"
            )
            + f". Nothing was merged; what was trained is kept in {by}'s checkpoint, and the same command resumes from there"
        )
    lineage = {
        "made_by": f"{by}: merge of LoRA into its base",
        "base": loaded.base.name,
        "base_digest": loaded.base.digest,
        "lora_digest": digest_tree(params.lora),
        "rank": next(iter(params.lora.values()))["a"].shape[-1],
        "scale": params.lora_scale,
        "targets": sorted(params.lora),
        "rounding": kept.to_json(),
        "style": loaded.style.name,
        "read": [one.to_json() for one in loaded.read],
    }
    base = save_base(
        directory,
        merged,
        loaded.config,
        loaded.tokenizer.without_new,
        lineage,
        loaded.base.carried,
    )
    return dataclasses.replace(
        loaded, params=params.replace(base=merged, lora={}, lora_scale=1.0), base=base
    )


def merge_held(
    loaded: LoadedModel, by: str, directory: pathlib.Path, param_dtype: str, mesh: Mesh
) -> LoadedModel:
    """Returns the model with LoRA folded into its base, which is held in `param_dtype` on `mesh`; see `merge_lora`.

    The steps of a base in int8 are larger than what a young adapter changes: there LoRA is folded into the full-precision
    weights, as they lie on disk, and the result is quantised again. One process does so in the host's memory, of which it
    takes the base once, in bfloat16; several on `mesh`, where each has its part.

    Raises: FloatingPointError as `merge_lora`.
    """
    if not is_quantized(param_dtype):
        return merge_lora(loaded, by, directory, param_dtype=param_dtype)
    place = host_mesh() if hosts.n_processes() == 1 else mesh
    dtype = float_of(param_dtype)
    abstract = abstract_base(loaded.config, dtype)
    with jax.set_mesh(place):
        beside = loaded.params.replace(base={})
        params = beside if place is mesh else jax.device_put(beside, shard_tree(beside, place))
        base = loaded.base.load(jnp.dtype(dtype), shard_tree(abstract, place))
        full = dataclasses.replace(loaded, params=params.replace(base=base))
        made = merge_lora(full, by, directory, param_dtype=dtype, donate=True).base
    return on_base(loaded, made, param_dtype, mesh)


def on_base(loaded: LoadedModel, base: Weights, param_dtype: str, mesh: Mesh) -> LoadedModel:
    """Returns the model on `base`, into which its LoRA was merged, held in `param_dtype` on `mesh`."""
    dtype = jnp.dtype(param_dtype)
    tree = base.load(dtype, shard_tree(abstract_base(loaded.config, dtype), mesh))
    params = loaded.params.replace(base=tree, lora={}, lora_scale=1.0)
    return dataclasses.replace(loaded, params=params, base=base)
