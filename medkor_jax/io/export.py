"""A model in the form others use: one directory that plain `transformers` loads.

    export_hf(open_model("runs/quickstart"), pathlib.Path("exported"))          # Exported(directory, notes, ...)

What stands beside the base goes into it: adapters are merged, language embeddings folded into the input table
(the output head then gets a matrix of its own), added layers become ordinary layers at the front and the back.
What that form cannot say is refused by name before anything is written. The directory appears whole or not
at all: it is written beside its place and moved there.

Tensors are made and written one at a time, so the host holds one beside the model. Adapters alone, for `peft`,
are `export_peft`'s business; quantised formats are nobody's here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medkor_jax.data.reading import without_place
from medkor_jax.io.carried import SENTENCEPIECE
from medkor_jax.io.export_carried import check_carried, outer_config, tokenizer_names, with_tower, write_carried
from medkor_jax.io.export_tokenizer import write_tokenizer
from medkor_jax.io.files import write_atomically, write_json
from medkor_jax.io.hf import EXPORT_RECORD, LAYER_NAMES
from medkor_jax.io.language_fold import LanguageFold, make_fold
from medkor_jax.io.model_card import read_history, write_card
from medkor_jax.io.models import Model
from medkor_jax.io.rounding import (
    EVERYTHING,
    MOST_LOST,
    MOST_NOISE,
    SILENCED,
    Kept,
    Probe,
    choose_stream_scale,
    compare,
    rms,
    scaled_norm,
)
from medkor_jax.io.shards import Planned, write_shards
from medkor_jax.io.streaming import WeightsError
from medkor_jax.model.config import LOCAL, ModelConfig, periodic_kinds
from medkor_jax.model.dtypes import check_dtype
from medkor_jax.model.layers import merged_matrix
from medkor_jax.model.params import BACK, FRONT, LEARNED, Params, head_table, layer_kinds
from medkor_jax.parallel import hosts
from medkor_jax.parallel.mesh import MeshShape, make_mesh

RECORD = EXPORT_RECORD
MAX_SHARD_BYTES = 4 * 10**9


class ExportError(WeightsError):
    """A model that cannot be written in the form asked for; the message names what stands in the way."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """directory: what was written; files: bytes of each weight file; notes: what whoever uses it should know."""

    directory: pathlib.Path
    files: dict[str, int]
    notes: tuple[str, ...]

    def text(self) -> str:
        size = sum(self.files.values()) / 1e9
        lines = [f"{self.directory}: {size:.2f} GB in {len(self.files)} file{'s' if len(self.files) > 1 else ''}"]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def export_hf(
    model: Model,
    out: pathlib.Path,
    *,
    dtype: str = "",
    exact_bytes: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    text_only: bool = False,
) -> Exported:
    """Returns what was written to `out`: config, tensors, tokenizer, what the base carries (`io.carried`) and model card.

    dtype: "float32" or "bfloat16"; "" takes the one the base is stored in, which is the one it was trained in.
    exact_bytes: refuse language embeddings that the fold reproduces for all but a few byte pieces, see
    `io.language_fold`, instead of noting it.
    text_only: leave out the vision tower of a multimodal base, which is carried on otherwise.

    Raises: ExportError, before anything is written, if `out` holds something or the model cannot be expressed;
    WeightsError if the model's files do not fit together.
    """
    dtype = dtype or model.base.stored_dtype
    try:
        check_dtype(dtype)
    except ValueError as error:
        raise ExportError(str(error)) from None
    if hosts.n_processes() > 1:
        raise ExportError(f"export runs in one process, this is one of {hosts.n_processes()}; run it on one host")
    tokenizer, carried = model.tokenizer, model.base.carried
    check_carried(model, text_only=text_only)
    with new_directory(out) as directory:
        params = model.load(jnp.dtype(model.base.stored_dtype), host_mesh())
        check_expressible(model, params)
        fold = make_fold(params.lang, tokenizer.languages, model.config, dtype)
        if exact_bytes and fold.n_approximated:
            raise ExportError(f"{model.name}: {fold.note()}")
        scale = choose_stream_scale(params.expand, dtype)
        check_carried(model, text_only=text_only, stream_scale=scale)
        kept = _what_rounding_took(model, params, fold, dtype, scale)
        config = exported_config(model.config, params, is_tied=model.config.tied_head and not fold.changes and scale == 1)
        write_json(directory / "config.json", outer_config(hf_config(config, dtype, tokenizer), carried, text_only=text_only))
        said = write_carried(directory, model, text_only=text_only, generation=_generation_config(tokenizer))
        said += write_tokenizer(
            tokenizer, directory, max_positions=config.max_positions, sentencepiece=carried.files.get(SENTENCEPIECE, b""),
            names=tokenizer_names(carried, tokenizer.pieces, text_only=text_only),
        )  # fmt: skip
        tensors = with_tower(plan_tensors(params, config, fold, scale), carried, text_only=text_only, stream_scale=scale)
        files = write_shards(directory, tensors, dtype, max_bytes=max_shard_bytes)
        notes = (*_notes(model, config, fold, dtype, kept, scale), *said)
        history = read_history(model)
        write_json(directory / RECORD, {
            "format": 1, "model": model.name, "model_digest": model.digest, "base_digest": model.base.digest, "dtype": dtype,
            "stream_scale": scale, "rounding": {part: one.to_json() for part, one in kept.items()},
            "read": [without_place(one).to_json() for one in model.read], "merged": sorted(params.lora), "folded": sorted(params.lang), "added_layers": _n_added(params), "notes": list(notes),
        })  # fmt: skip
        write_atomically(directory / "README.md", write_card(model, history, config, dtype, notes))
    return Exported(out, files, notes)


def host_mesh() -> Mesh:
    """Returns one CPU device as a mesh: what is only to be written need not pass through an accelerator's memory."""
    return make_mesh(MeshShape(data=1), jax.local_devices(backend="cpu")[:1])


@contextlib.contextmanager
def new_directory(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a directory beside `out` that becomes `out` at the end; if it fails, nothing is left.

    Raises: ExportError if `out` is there and is not an empty directory.
    """
    if out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ExportError(f"{out} exists and is not empty; name a new directory, or remove this one")
    beside = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        os.replace(beside, out)  # onto nothing or an empty directory
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_expressible(model: Model, params: Params) -> None:
    """Raises: ExportError, naming it, on what an ordinary Gemma 3 checkpoint has no place for."""
    if params.lang and model.route != "token":
        raise ExportError(
            f"{model.name} has language embeddings routed by {model.route}: a token's embedding depends on the whole text, "
            'and a checkpoint has one row a token. Only route="token" can be exported'
        )
    if unknown := sorted(set(params.lang) - {"vector", "table"}):
        raise ExportError(f"{model.name} has language embeddings of kind {', '.join(unknown)}; expected vector or table")
    for side, blocks in params.expand.items():
        if set(blocks) != set(params.base["layers"]):
            raise ExportError(f"{model.name} has added layers {side!r} of {sorted(blocks)}; expected {sorted(params.base['layers'])}")


def exported_config(config: ModelConfig, params: Params, *, is_tied: bool) -> ModelConfig:
    """Returns the config of the whole model, added layers included."""
    return dataclasses.replace(config, layer_kinds=layer_kinds(params, config), tied_head=is_tied)


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
        "layer_types": ["sliding_attention" if kind == LOCAL else "full_attention" for kind in config.layer_kinds],
        "rope_parameters": {
            "full_attention": {"rope_theta": config.rope_base_global, **(scaling or {"rope_type": "default"})},
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


def plan_tensors(params: Params, config: ModelConfig, fold: LanguageFold, scale: int = 1) -> list[Planned]:
    """Returns every tensor of the exported model, in the order of the layers; nothing is computed yet.

    scale: how much larger the residual stream is carried, see `rounding.choose_stream_scale`.
    """
    base = params.base
    size = (config.vocab_size, config.d_model)
    planned = [Planned("model.embed_tokens.weight", size, lambda: _input_table(base, fold, scale))]
    stacks = [(params.expand.get(FRONT, {}), {}), (base["layers"], params.lora), (params.expand.get(BACK, {}), {})]
    number = 0
    for blocks, lora in stacks:
        for layer in range(_depth(blocks)):
            for leaf, name in LAYER_NAMES.items():
                shape = blocks[leaf].shape[:0:-1]  # a matrix is [in, out] here and [out, in] there
                make = functools.partial(_layer_value, blocks[leaf], lora.get(leaf), layer, params.lora_scale)
                if scale != 1 and leaf in SILENCED:
                    make = functools.partial(lambda blocks, leaf, layer: scaled_norm(blocks[leaf][layer], scale), blocks, leaf, layer)
                planned.append(Planned(f"model.layers.{number}.{name}.weight", shape, make))
            number += 1
    planned.append(Planned("model.norm.weight", (config.d_model,), lambda: np.asarray(base["final_norm"])))
    if not config.tied_head:
        planned.append(Planned("lm_head.weight", size, lambda: np.asarray(head_table(base))))
    return planned


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
            one = lambda wab: _merged(wab[0].astype(jnp.float32), *wab[1:], params.lora_scale).astype(kind)  # noqa: E731
            return jax.lax.map(one, (leaf, lora[name]["a"], lora[name]["b"]))

        return {name: value(name, leaf) for name, leaf in blocks.items()}

    whole = {
        "embed": jnp.asarray(_input_table(base, fold, scale)).astype(kind), "head": head_table(base).astype(kind),
        "final_norm": base["final_norm"].astype(kind), "layers": stack(base["layers"], params.lora),
    }  # fmt: skip
    return Params(whole, expand={side: stack(blocks, {}) for side, blocks in params.expand.items()})


def _what_rounding_took(model: Model, params: Params, fold: LanguageFold, dtype: str, scale: int) -> dict[str, Kept]:
    """Returns what the export keeps of each part of the model; {} in float32, which keeps all of it.

    Raises: ExportError naming the part and the dtype that keeps it, if too much is lost.
    """
    if dtype == "float32":
        return {}
    probe, plain = Probe(model.config, model.tokenizer), dataclasses.replace(fold, lang={}, changes=False)
    whole, rounded = probe.logits(params), probe.logits(rounded_form(params, fold, dtype, scale))
    kept = {}
    for name, part in LEARNED.items():
        if getattr(params, name):
            without = params.replace(**{name: {}})
            folded = plain if name == "lang" else fold
            effect = whole - probe.logits(without)
            kept[part] = compare(effect, rounded - probe.logits(rounded_form(without, folded, dtype, scale)), rms(whole))
    kept[EVERYTHING] = compare(np.zeros_like(whole), rounded - whole, rms(whole))
    wrong = [part for part, one in kept.items() if abs(one.lost) > MOST_LOST or one.error > MOST_NOISE[dtype]]
    if wrong:
        said = "; ".join(f"{part}: {kept[part].words}" for part in wrong)
        raise ExportError(
            f"{model.name} does not survive {dtype}: {said}. At most {MOST_LOST:.0%} of a part's effect may be lost, and the logits "
            f"may be off by {MOST_NOISE[dtype]:g} of their size. Export with --dtype float32, which keeps it"
        )
    return kept


def _layer_value(leaf: jax.Array, pair: dict[str, jax.Array] | None, layer: int, scale: float) -> np.ndarray:
    """Returns one layer's tensor; float32 where an adapter is merged, so that it is rounded once."""
    value = leaf[layer]
    if pair is not None:
        value = _merged(value.astype(jnp.float32), pair["a"][layer], pair["b"][layer], scale)
    return np.asarray(value).T


_merged = jax.jit(merged_matrix, static_argnums=3)


def _depth(blocks: dict[str, jax.Array]) -> int:
    return next(iter(blocks.values())).shape[0] if blocks else 0


def _n_added(params: Params) -> dict[str, int]:
    return {side: _depth(params.expand.get(side, {})) for side in (FRONT, BACK)}


def _generation_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id,
        "do_sample": False,
    }  # fmt: skip


def _notes(
    model: Model, config: ModelConfig, fold: LanguageFold, dtype: str, kept: dict[str, Kept], scale: int
) -> tuple[str, ...]:
    notes = [f"{part}: {one.words}" for part, one in kept.items()]
    if scale != 1:
        notes.append(
            f"the residual stream is carried {scale} times as large as the base's, so that the added layers' small scales survive "
            f"{dtype}; the answers are the same in bfloat16 and float32 (float16 overflows, as Gemma 3 does in it)"
        )
    if dtype == "bfloat16" and (model.base.stored_dtype != dtype or model.adapters_digest):
        notes.append("written in bfloat16: logits differ from the run's by that rounding; dtype float32 keeps them")
    if fold.n_approximated:
        notes.append(fold.note())
    if not config.tied_head:
        notes.append("the output head is not tied to the input embedding; a program that ties them anyway gives other answers")
    if config.layer_kinds != periodic_kinds(config.n_layers):
        notes.append(
            "layer_types does not follow Gemma's 5:1 pattern; a program that derives it from the layer's number (llama.cpp, "
            "transformers before 4.53) gives other answers"
        )
    return tuple(notes)
