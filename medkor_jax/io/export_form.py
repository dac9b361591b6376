"""What a model is as an ordinary Gemma 3 checkpoint: its config, and every tensor by name.

    config = exported_config(model.config, params, is_tied=False)
    tensors = plan_tensors(params, config, fold)         # nothing is computed yet

Adapters are merged, language embeddings folded into the input table, added layers numbered with the others. A tensor is
made when it is written, so the host holds one beside the model. What the form cannot say is refused by `export`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.io.hf import LAYER_NAMES
from medkor_jax.io.language_fold import LanguageFold
from medkor_jax.io.rounding import SILENCED, scaled_norm
from medkor_jax.io.shards import Planned
from medkor_jax.model.config import LOCAL, ModelConfig
from medkor_jax.model.layers import merged_matrix
from medkor_jax.model.params import (
    BACK,
    FRONT,
    Params,
    head_table,
    layer_kinds,
    n_new_tokens,
    new_head_rows,
)


def exported_config(config: ModelConfig, params: Params, *, is_tied: bool) -> ModelConfig:
    """Returns the config of the whole model, added layers and new tokens included."""
    return dataclasses.replace(
        config,
        layer_kinds=layer_kinds(params, config),
        tied_head=is_tied,
        vocab_size=config.vocab_size + n_new_tokens(params),
    )


def hf_config(config: ModelConfig, dtype: str, tokenizer: Any) -> dict[str, Any]:
    """Returns the config.json of a `Gemma3ForCausalLM`, in the layout of transformers 5 and, beside it, of 4.5x.

    Source: transformers 5.23 and 4.53, `Gemma3TextConfig`.
    """
    linear = {"rope_type": "linear", "factor": config.rope_scaling_global}
    scaling = linear if config.rope_scaling_global != 1.0 else None
    scalar = config.query_pre_attn_scalar
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": int(scalar) if float(scalar).is_integer() else scalar,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_eps,
        "sliding_window": config.sliding_window,
        "layer_types": [
            "sliding_attention" if kind == LOCAL else "full_attention"
            for kind in config.layer_kinds
        ],
        "rope_parameters": {
            "full_attention": {
                "rope_theta": config.rope_base_global,
                **(scaling or {"rope_type": "default"}),
            },
            "sliding_attention": {"rope_theta": config.rope_base_local, "rope_type": "default"},
        },
        "rope_theta": config.rope_base_global,
        "rope_local_base_freq": config.rope_base_local,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tied_head,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.stop_ids),
        "pad_token_id": tokenizer.pad_id,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def plan_tensors(
    params: Params, config: ModelConfig, fold: LanguageFold, scale: int = 1
) -> list[Planned]:
    """Returns every tensor of the exported model, in the order of the layers; nothing is computed yet.

    scale: how much larger the residual stream is carried, see `rounding.choose_stream_scale`.
    """
    base = params.base
    size = (config.vocab_size, config.d_model)
    planned = [Planned("model.embed_tokens.weight", size, lambda: _input_table(base, fold, scale))]
    stacks = [
        (params.expand.get(FRONT, {}), {}),
        (base["layers"], params.lora),
        (params.expand.get(BACK, {}), {}),
    ]
    number = 0
    for blocks, lora in stacks:
        for layer in range(depth_of(blocks)):
            for leaf, name in LAYER_NAMES.items():
                shape = blocks[leaf].shape[:0:-1]  # a matrix is [in, out] here and [out, in] there
                make = functools.partial(
                    _layer_value, blocks[leaf], lora.get(leaf), layer, params.lora_scale
                )
                if scale != 1 and leaf in SILENCED:
                    make = functools.partial(
                        lambda blocks, leaf, layer: scaled_norm(blocks[leaf][layer], scale),
                        blocks,
                        leaf,
                        layer,
                    )
                planned.append(Planned(f"model.layers.{number}.{name}.weight", shape, make))
            number += 1
    planned.append(
        Planned("model.norm.weight", (config.d_model,), lambda: np.asarray(base["final_norm"]))
    )
    if not config.tied_head:
        planned.append(Planned("lm_head.weight", size, lambda: _whole_head(params)))
    return planned


def _whole_head(params: Params) -> np.ndarray:
    """Returns the head with the rows of new tokens behind it; float32 where there are some."""
    table, new = np.asarray(head_table(params.base)), new_head_rows(params)
    if new is None:
        return table
    return np.concatenate([table.astype(np.float32), np.asarray(new, np.float32)])


def _input_table(base: dict[str, Any], fold: LanguageFold, scale: int) -> np.ndarray:
    table = fold.apply(base["embed"])
    return table if scale == 1 else table * np.asarray(scale, table.dtype)  # a power of two: exact


def rounded_form(params: Params, fold: LanguageFold, dtype: str, scale: int) -> Params:
    """Returns the model as `plan_tensors` and `dtype` make it, in a form that runs here: for measuring, on the host."""
    kind, base = jnp.dtype(dtype), params.base

    def stack(blocks: dict[str, jax.Array], lora: dict[str, Any]) -> dict[str, jax.Array]:
        def value(name: str, leaf: jax.Array) -> jax.Array:
            if scale != 1 and name in SILENCED:
                return jnp.asarray(scaled_norm(leaf, scale)).astype(kind)
            if name not in lora:
                return leaf.astype(kind)
            one = lambda wab: _merged(
                wab[0].astype(jnp.float32), *wab[1:], params.lora_scale
            ).astype(kind)
            return jax.lax.map(one, (leaf, lora[name]["a"], lora[name]["b"]))

        return {name: value(name, leaf) for name, leaf in blocks.items()}

    whole = {
        "embed": jnp.asarray(_input_table(base, fold, scale)).astype(kind),
        "head": jnp.asarray(_whole_head(params)).astype(kind),
        "final_norm": base["final_norm"].astype(kind),
        "layers": stack(base["layers"], params.lora),
    }
    return Params(whole, expand={side: stack(blocks, {}) for side, blocks in params.expand.items()})


def _layer_value(
    leaf: jax.Array, pair: dict[str, jax.Array] | None, layer: int, scale: float
) -> np.ndarray:
    """Returns one layer's tensor; float32 where an adapter is merged, so that it is rounded once."""
    value = leaf[layer]
    if pair is not None:
        value = _merged(value.astype(jnp.float32), pair["a"][layer], pair["b"][layer], scale)
    return np.asarray(value).T


_merged = jax.jit(merged_matrix, static_argnums=3)


def depth_of(blocks: dict[str, jax.Array]) -> int:
    """Returns how many layers are stacked in `blocks`, 0 if there are none."""
    return next(iter(blocks.values())).shape[0] if blocks else 0


def generation_config(tokenizer: Any) -> dict[str, Any]:
    """Returns the generation_config.json: greedy, ended by what ends a text here."""
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.stop_ids),
        "pad_token_id": tokenizer.pad_id,
        "do_sample": False,
    }
