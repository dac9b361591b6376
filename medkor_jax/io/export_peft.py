"""A run's adapters alone, in the form of `peft`, beside a base that transformers can load.

    export_peft(open_model("runs/a/phase2"), pathlib.Path("adapter"), base="exported-base")

LoRA is all that the form can say: language embeddings and added layers are refused by name, `export_hf` writes
those. A base that a run merged, or that is a GGUF file, is no transformers checkpoint: it is exported first, and
the adapter then names that export, which is checked to be of this very base.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from medkor_jax.io.download import download
from medkor_jax.io.exported import Exported, ExportError, check_exportable_here, new_directory
from medkor_jax.io.files import write_atomically, write_json
from medkor_jax.io.hf import EXPORT_RECORD, LAYER_NAMES
from medkor_jax.io.model_card import read_history, write_card
from medkor_jax.io.models import Model
from medkor_jax.io.shards import Planned, write_safetensors
from medkor_jax.io.weights import is_hub_id, open_weights
from medkor_jax.model.params import ADAPTABLE, LEARNED, Tree
from medkor_jax.parallel.mesh import host_mesh

_WEIGHTS = "adapter_model.safetensors"


def export_peft(model: Model, out: pathlib.Path, *, base: str = "") -> Exported:
    """Returns what was written to `out`: adapter_config.json, the adapters in float32, and a model card.

    base: the transformers checkpoint the adapter is for, a directory or a hub id; "" takes the run's own, where it
    is one.

    Raises: ExportError, before anything is written, on what `peft` cannot express, on a base that it cannot load,
    and on a base that is not the adapter's.
    """
    check_exportable_here()
    params = model.load(jnp.float32, host_mesh(), base={})  # the base stays where it is
    for name in ("lang", "expand"):
        if getattr(params, name):
            raise ExportError(
                f"{model.name} has {LEARNED[name]}, which a PEFT adapter cannot hold; export it with --to hf"
            )
    if not params.lora:
        raise ExportError(
            f"{model.name} has no adapters: there is nothing for peft. Export it with --to hf"
        )
    base = base or _own_base(model)
    notes = _check_base(model, base)
    config = _adapter_config(
        params.lora, params.lora_scale, base, is_multimodal=_is_multimodal(base)
    )
    prefix = (
        "base_model.model.model.language_model"
        if _is_multimodal(base)
        else "base_model.model.model"
    )
    with new_directory(out) as directory:
        write_json(directory / "adapter_config.json", config)
        write_safetensors(directory / _WEIGHTS, _plan(params.lora, prefix), "float32")
        files = {_WEIGHTS: (directory / _WEIGHTS).stat().st_size}
        card = write_card(
            model, read_history(model), model.config, "float32", notes, adapter_of=base
        )
        write_atomically(directory / "README.md", card)
    return Exported(out, files, notes)


def _adapter_config(lora: Tree, scale: float, base: str, *, is_multimodal: bool) -> dict[str, Any]:
    """Source: peft 0.21, `LoraConfig`; applied there as lora_alpha / r, here as `scale`."""
    ranks = {pair["a"].shape[-1] for pair in lora.values()}
    if len(ranks) > 1:
        raise ExportError(f"adapters of ranks {sorted(ranks)} in one model; expected one rank")
    names = "|".join(LAYER_NAMES[name].replace(".", r"\.") for name in ADAPTABLE if name in lora)
    tower = r"language_model\." if is_multimodal else ""  # the vision tower has a q_proj of its own
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": ranks.pop(),
        "lora_alpha": scale * next(iter(lora.values()))["a"].shape[-1],
        "lora_dropout": 0.0,
        "target_modules": rf"(.*\.)?{tower}layers\.\d+\.({names})",
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _plan(lora: Tree, prefix: str) -> list[Planned]:
    planned = []
    depth = next(iter(lora.values()))["a"].shape[0]
    for layer in range(depth):
        for name in lora:
            for leaf, letter in (("a", "A"), ("b", "B")):
                matrix = lora[name][leaf]
                make = functools.partial(
                    lambda matrix, layer: np.asarray(matrix[layer]).T, matrix, layer
                )
                full = f"{prefix}.layers.{layer}.{LAYER_NAMES[name]}.lora_{letter}.weight"
                planned.append(Planned(full, matrix.shape[:0:-1], make))
    return planned


def _own_base(model: Model) -> str:
    """Returns the run's base where transformers can load it by that name. Raises: ExportError saying what to do."""
    name = model.base.name
    if (is_hub_id(name) and not pathlib.Path(name).exists()) or (
        pathlib.Path(name) / "config.json"
    ).is_file():
        return name
    kind = (
        "a base that this run merged"
        if (pathlib.Path(name) / "lineage.json").is_file()
        else "a GGUF file"
    )
    raise ExportError(
        f"{model.name} stands on {name}, {kind}, which exists nowhere as a transformers checkpoint. Export that first "
        f"(medkor export --weights {name} --to hf --out BASE), then this one with --base BASE"
    )


def _check_base(model: Model, base: str) -> tuple[str, ...]:
    """Returns notes on the base. Raises: ExportError if it is another one than the adapters were trained on."""
    path = pathlib.Path(base)
    if not path.is_dir():
        if not is_hub_id(base):
            raise ExportError(
                f"no base is called {base!r}; name the directory of an export, or a hub id"
            )
        return (
            ()
            if base == model.base.name
            else (f"{base} was not compared with the base of the run, digest {model.base.digest}",)
        )
    weights = open_weights(base)
    digest, dtype = weights.digest, weights.stored_dtype
    if digest != model.base.digest and (path / EXPORT_RECORD).is_file():
        record = json.loads((path / EXPORT_RECORD).read_text(encoding="utf-8"))
        digest, dtype = record["model_digest"], record["dtype"]
    if digest != model.base.digest:
        raise ExportError(
            f"{base} is of the weights {digest[:12]}, {model.name} stands on {model.base.digest[:12]} ({model.base.name}); "
            "export that base and name it with --base"
        )
    rounded = dtype != model.base.stored_dtype
    return (
        (
            f"{base} is in {dtype}, the run's base in {model.base.stored_dtype}: logits differ by that rounding",
        )
        if rounded
        else ()
    )


def _is_multimodal(base: str) -> bool:
    directory = pathlib.Path(base) if pathlib.Path(base).is_dir() else download(base)
    return "text_config" in json.loads((directory / "config.json").read_text(encoding="utf-8"))
