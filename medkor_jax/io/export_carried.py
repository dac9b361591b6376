"""What an export takes over from its base beside text weights: chat templates, defaults of generation, the vision tower.

    check_carried(model, text_only=False)                                # before anything is written
    write_carried(directory, model, text_only=False, generation={"bos_token_id": 2})
    planned = with_tower(plan_tensors(...), model.base.carried)          # the tower's bytes as they lie in the base

A multimodal base gives a multimodal export: its config with our text config inside, its tensors copied through, so that
an image question goes on working. `text_only` writes the text model alone. What is neither is refused.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from medkor_jax.io.carried import CONFIG, GENERATION, PROCESSOR, TOKENIZER_CONFIG, Carried, copied
from medkor_jax.io.files import write_json
from medkor_jax.io.models import Model
from medkor_jax.io.shards import STORED, Planned
from medkor_jax.io.streaming import WeightsError

_JOINT = "multi_modal_projector.mm_input_projection_weight"
_OLD_TEXT, _NEW_TEXT = "language_model.model.", "model.language_model."
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_OUTSIDE = ("dtype", "torch_dtype", "tie_word_embeddings")  # what a multimodal config says beside its text config


def check_carried(model: Model, *, text_only: bool, stream_scale: float = 1.0) -> None:
    """Raises: WeightsError, naming what stands in the way, if what the base carries cannot be carried on."""
    carried = model.base.carried
    _ = carried.chat_templates, carried.generation
    _check_generation(carried, model)
    if not carried.tower or text_only:
        return
    ask = "--text-only exports the text model alone, without images"
    config = carried.object(CONFIG)
    for key in ("text_config", "vision_config"):
        if not isinstance(config.values.get(key), dict):
            raise WeightsError(
                f"{model.base.name} has a vision tower of {len(carried.tower)} tensors, but its config.json no {key}: it cannot be "
                f"carried on; {ask}"
            )
    try:
        with_tower([], carried, stream_scale=stream_scale)
    except WeightsError as error:
        raise WeightsError(f"{error}; {ask}") from error


def is_multimodal(carried: Carried, text_only: bool) -> bool:
    return bool(carried.tower) and not text_only


def outer_config(text: dict[str, Any], carried: Carried, *, text_only: bool) -> dict[str, Any]:
    """Returns the config.json of an export; text: that of the text model alone."""
    if not is_multimodal(carried, text_only):
        return text
    inside = {key: value for key, value in text.items() if key not in ("architectures", *_OUTSIDE, *_TOKENS)}
    return {
        **{key: text[key] for key in _TOKENS}, **carried.config, **{key: text[key] for key in _OUTSIDE},
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": inside,
    }  # fmt: skip


def with_tower(
    planned: Iterable[Planned], carried: Carried, *, text_only: bool = False, stream_scale: float = 1.0
) -> list[Planned]:
    """Returns the tensors of an export, the base's tower among them; text tensors get the names of such a checkpoint.

    stream_scale: a power of two that the text decoder's residual stream is multiplied by in this export; what the tower
    puts into that stream is then multiplied alike.

    Raises: WeightsError if the tower's joint is not there, or a scale is not exact in the dtype it is stored in.
    """
    if not is_multimodal(carried, text_only):
        return list(planned)
    tower = [copied(name, tensor) for name, tensor in carried.tower.items()]
    if stream_scale != 1.0:
        if not any(one.name.endswith(_JOINT) for one in tower):
            raise WeightsError(f"the base's vision tower has no {_JOINT}, which would have to be scaled by {stream_scale:g}")
        tower = [_scaled(one, stream_scale) if one.name.endswith(_JOINT) else one for one in tower]
    is_old = not any(name.startswith("model.") for name in carried.tower)
    prefix, head = (_OLD_TEXT, "language_model.lm_head.weight") if is_old else (_NEW_TEXT, "lm_head.weight")
    name_of = lambda name: head if name == "lm_head.weight" else prefix + name.removeprefix("model.")  # noqa: E731
    return [*(dataclasses.replace(one, name=name_of(one.name)) for one in planned), *tower]


def write_carried(directory: pathlib.Path, model: Model, *, text_only: bool, generation: dict[str, Any]) -> list[str]:
    """Writes the base's chat templates, generation defaults and processor; returns notes.

    generation: what to write where the base says nothing.
    """
    carried, notes = model.base.carried, []
    for name in carried.template_files:  # templates of the other form are in tokenizer_config.json, see `tokenizer_names`
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(carried.files[name])
    if GENERATION in carried.files:
        (directory / GENERATION).write_bytes(carried.files[GENERATION])
    else:
        write_json(directory / GENERATION, generation)
    if is_multimodal(carried, text_only):
        for name in PROCESSOR:
            if name in carried.files:
                (directory / name).write_bytes(carried.files[name])
    elif carried.tower:
        notes.append("the text model alone (--text-only): the base's vision tower is left out, and images cannot be asked about")
    return notes


def tokenizer_names(carried: Carried, pieces: Iterable[str], *, text_only: bool) -> dict[str, Any]:
    """Returns what of the base's tokenizer_config.json an export's says too.

    That is what special tokens are called, as far as the vocabulary has them, and the chat template if it stands there.
    """
    held, said, names = set(pieces), carried.object(TOKENIZER_CONFIG).values, {}
    if not carried.template_files and carried.chat_templates:
        names["chat_template"] = said["chat_template"]
    for key, value in said.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str) and text in held:
            names[key] = text
    for key in ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens"):
        value = said.get(key)
        if isinstance(value, dict):
            kept: Any = {name: text for name, text in value.items() if isinstance(text, str) and text in held}
        else:
            texts = [one.get("content") if isinstance(one, dict) else one for one in value or ()]
            kept = [text for text in texts if isinstance(text, str) and text in held]
        if kept:
            names[key] = kept
    if is_multimodal(carried, text_only) and isinstance(said.get("processor_class"), str):
        names["processor_class"] = said["processor_class"]
    return names


def _check_generation(carried: Carried, model: Model) -> None:
    said = carried.generation or {}
    rows = model.config.vocab_size
    for key in _TOKENS:
        value = said.get(key)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and one >= rows:
                raise WeightsError(f"{carried.where}/{GENERATION}: {key} is {one}; expected a token below {rows}, the embedding's rows")


def _scaled(tensor: Planned, scale: float) -> Planned:
    """Returns the tensor times a power of two, in the dtype it is stored in. Raises: WeightsError if that loses anything."""
    kinds = {label: kind for kind, label in STORED.values()}
    if tensor.stored[0] not in kinds:
        raise WeightsError(f"{tensor.name} is stored as {tensor.stored[0]}; to be scaled by {scale:g}, expected {' or '.join(kinds)}")
    kind = kinds[tensor.stored[0]]
    value = tensor.make().view(kind)
    scaled = (value.astype(np.float64) * scale).astype(kind)
    if not np.array_equal(scaled.astype(np.float64), value.astype(np.float64) * scale):
        raise WeightsError(f"{tensor.name} cannot be scaled by {scale:g} in {kind.name} without loss")
    return dataclasses.replace(tensor, make=lambda: np.ascontiguousarray(scaled).view(np.uint8))
