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

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from medkor_jax.data.reading import without_place
from medkor_jax.io.carried import SENTENCEPIECE
from medkor_jax.io.export_carried import (
    check_carried,
    outer_config,
    tokenizer_names,
    with_tower,
    write_carried,
)
from medkor_jax.io.export_form import (
    depth_of,
    exported_config,
    generation_config,
    hf_config,
    plan_tensors,
    rounded_form,
)
from medkor_jax.io.export_tokenizer import write_tokenizer
from medkor_jax.io.exported import Exported, ExportError, check_exportable_here, new_directory
from medkor_jax.io.files import write_atomically, write_json
from medkor_jax.io.hf import EXPORT_RECORD
from medkor_jax.io.language_fold import LanguageFold, make_fold
from medkor_jax.io.model_card import read_history, write_card
from medkor_jax.io.models import Model
from medkor_jax.io.rounding import (
    EVERYTHING,
    MOST_LOST,
    MOST_NOISE,
    Kept,
    Probe,
    choose_stream_scale,
    compare,
    rms,
)
from medkor_jax.io.shards import write_shards
from medkor_jax.model.config import ModelConfig, periodic_kinds
from medkor_jax.model.params import BACK, FRONT, LEARNED, Params, n_new_tokens
from medkor_jax.parallel.mesh import host_mesh

MAX_SHARD_BYTES = 4 * 10**9


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
    check_exportable_here(dtype)
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
        config = exported_config(
            model.config, params, is_tied=model.config.tied_head and not fold.changes and scale == 1
        )
        said = _write_what_is_no_tensor(directory, model, config, dtype, text_only=text_only)
        tensors = with_tower(
            plan_tensors(params, config, fold, scale),
            carried,
            text_only=text_only,
            stream_scale=scale,
        )
        files = write_shards(directory, tensors, dtype, max_bytes=max_shard_bytes)
        notes = (*_notes(model, config, fold, dtype, kept, scale), *said)
        record = {
            "dtype": dtype,
            "stream_scale": scale,
            "rounding": {part: one.to_json() for part, one in kept.items()},
        }
        write_json(
            directory / EXPORT_RECORD,
            _identity(model) | record | _made_ordinary(params) | {"notes": list(notes)},
        )
        write_atomically(
            directory / "README.md", write_card(model, read_history(model), config, dtype, notes)
        )
    return Exported(out, files, notes)


def check_expressible(model: Model, params: Params) -> None:
    """Raises: ExportError, naming it, on what an ordinary Gemma 3 checkpoint has no place for."""
    if params.lang and model.language_unit != "token":
        raise ExportError(
            f"{model.name} has language embeddings routed by {model.language_unit}: a token's embedding depends on the whole text, "
            'and a checkpoint has one row a token. Only language_unit="token" can be exported'
        )
    if unknown := sorted(set(params.lang) - {"vector", "table", "input", "output"}):
        raise ExportError(
            f"{model.name} has language embeddings of kind {', '.join(unknown)}; expected vector, table or tokens"
        )
    for side, blocks in params.expand.items():
        if set(blocks) != set(params.base["layers"]):
            raise ExportError(
                f"{model.name} has added layers {side!r} of {sorted(blocks)}; expected {sorted(params.base['layers'])}"
            )


def _what_rounding_took(
    model: Model, params: Params, fold: LanguageFold, dtype: str, scale: int
) -> dict[str, Kept]:
    """Returns what the export keeps of each part of the model; {} in float32, which keeps all of it.

    Raises: ExportError naming the part and the dtype that keeps it, if too much is lost.
    """
    if dtype == "float32":
        return {}
    probe, plain = (
        Probe(model.config, model.tokenizer),
        dataclasses.replace(fold, lang={}, changes=False),
    )
    silent: dict[str, Any] = {}
    if n_new_tokens(
        params
    ):  # what they say is part of everything: without their rows no Korean can be read
        silent = params.lang | {"vector": jnp.zeros_like(params.lang["vector"])}
        plain = dataclasses.replace(fold, lang=silent)
    whole, rounded = probe.logits(params), probe.logits(rounded_form(params, fold, dtype, scale))
    kept = {}
    for name, part in LEARNED.items():
        if getattr(params, name):
            without = params.replace(**{name: silent if name == "lang" else {}})
            folded = plain if name == "lang" else fold
            effect = whole - probe.logits(without)
            kept[part] = compare(
                effect,
                rounded - probe.logits(rounded_form(without, folded, dtype, scale)),
                rms(whole),
            )
    kept[EVERYTHING] = compare(np.zeros_like(whole), rounded - whole, rms(whole))
    wrong = [
        part
        for part, one in kept.items()
        if abs(one.lost) > MOST_LOST or one.error > MOST_NOISE[dtype]
    ]
    if wrong:
        said = "; ".join(f"{part}: {kept[part].words}" for part in wrong)
        raise ExportError(
            f"{model.name} does not survive {dtype}: {said}. At most {MOST_LOST:.0%} of a part's effect may be lost, and the logits "
            f"may be off by {MOST_NOISE[dtype]:g} of their size. Export with --dtype float32, which keeps it"
        )
    return kept


def _write_what_is_no_tensor(
    directory: pathlib.Path, model: Model, config: ModelConfig, dtype: str, *, text_only: bool
) -> tuple[str, ...]:
    """Writes the config, the tokenizer and what the base carries; returns what is to be said of them."""
    tokenizer, carried = model.tokenizer, model.base.carried
    write_json(
        directory / "config.json",
        outer_config(hf_config(config, dtype, tokenizer), carried, text_only=text_only),
    )
    said = write_carried(
        directory, model, text_only=text_only, generation=generation_config(tokenizer)
    )
    return (
        *said,
        *write_tokenizer(
            tokenizer,
            directory,
            max_positions=config.max_positions,
            sentencepiece=carried.files.get(SENTENCEPIECE, b""),
            names=tokenizer_names(carried, tokenizer.pieces, text_only=text_only),
        ),
    )


def _identity(model: Model) -> dict[str, Any]:
    """Returns what an export says of the model that it was made from."""
    return {
        "format": 1,
        "model": model.name,
        "model_digest": model.digest,
        "base_digest": model.base.digest,
        "style": model.style,
        "read": [without_place(one).to_json() for one in model.read],
    }


def _made_ordinary(params: Params) -> dict[str, Any]:
    """Returns what an export says of the parts that have become weights like others."""
    added = {side: depth_of(params.expand.get(side, {})) for side in (FRONT, BACK)}
    return {"merged": sorted(params.lora), "folded": sorted(params.lang), "added_layers": added}


def _notes(
    model: Model,
    config: ModelConfig,
    fold: LanguageFold,
    dtype: str,
    kept: dict[str, Kept],
    scale: int,
) -> tuple[str, ...]:
    notes = [f"{part}: {one.words}" for part, one in kept.items()]
    if scale != 1:
        notes.append(
            f"the residual stream is carried {scale} times as large as the base's, so that the added layers' small scales survive "
            f"{dtype}; the answers are the same in bfloat16 and float32 (float16 overflows, as Gemma 3 does in it)"
        )
    if dtype == "bfloat16" and (model.base.stored_dtype != dtype or model.adapters_digest):
        notes.append(
            "written in bfloat16: logits differ from the run's by that rounding; dtype float32 keeps them"
        )
    if fold.n_approximated:
        notes.append(fold.note())
    if new := model.new_tokens:
        notes.append(
            f"{len(new.pieces)} new Korean tokens, ids {new.first_id} to {config.vocab_size - 1}, stand behind the base's vocabulary; "
            "they need the tokenizer.json of this directory"
        )
    if not config.tied_head:
        notes.append(
            "the output head is not tied to the input embedding; a program that ties them anyway gives other answers"
        )
    if config.layer_kinds != periodic_kinds(config.n_layers):
        notes.append(
            "layer_types does not follow Gemma's 5:1 pattern; a program that derives it from the layer's number (llama.cpp, "
            "transformers before 4.53) gives other answers"
        )
    return tuple(notes)
