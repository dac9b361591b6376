"""Reads a Gemma 3 text decoder from a Hugging Face directory of safetensors.

    source = HfSource.open("checkpoints/medgemma-4b-it")        # or HfSource.open(download("google/gemma-3-1b-it"))
    source.make_tokenizer()

One file or shards under an index; text checkpoints (`model.*`) and the text tower of multimodal ones,
whose vision keys are known and left alone. Every key the config asks for must be there and every text
key must be used. The header is checked against the file before anything is computed.

Never opens pickle (`.bin`, `.pt`), and does not read adapters or quantised checkpoints.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.safetensors_file import (
    DTYPES,
    SafeTensor,
    is_equal,
    read_rows_of,
    read_safetensors_header,
)
from medkor_jax.io.streaming import LeafKey, WeightsError, check_coverage, check_shape, needed_keys
from medkor_jax.io.tokenizer_files import read_tokenizer
from medkor_jax.model.config import ModelConfig

EXPORT_RECORD = "medkor_export.json"  # what an export of ours says of itself, beside its weights

_NAMES = {
    "embed": "embed_tokens",
    "final_norm": "norm",
    "layers/pre_attn_norm": "input_layernorm",
    "layers/post_attn_norm": "post_attention_layernorm",
    "layers/pre_ffw_norm": "pre_feedforward_layernorm",
    "layers/post_ffw_norm": "post_feedforward_layernorm",
    "layers/q_norm": "self_attn.q_norm",
    "layers/k_norm": "self_attn.k_norm",
    "layers/q": "self_attn.q_proj",
    "layers/k": "self_attn.k_proj",
    "layers/v": "self_attn.v_proj",
    "layers/o": "self_attn.o_proj",
    "layers/gate": "mlp.gate_proj",
    "layers/up": "mlp.up_proj",
    "layers/down": "mlp.down_proj",
}
LAYER_NAMES = {
    path.removeprefix("layers/"): name
    for path, name in _NAMES.items()
    if path.startswith("layers/")
}
"""Leaf of a block -> its module in a checkpoint, under `model.layers.N.`"""
# Text checkpoints; multimodal ones as first published; multimodal ones as transformers >= 4.52 writes them.
_TEXT_PREFIXES = ("model.", "language_model.model.", "model.language_model.")
_VISION_PREFIXES = tuple(
    f"{outer}{inner}."
    for outer in ("", "model.")
    for inner in ("vision_tower", "vision_model", "multi_modal_projector")
)
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class HfSource:
    """One opened directory: config, names and shapes already checked. A `streaming.TensorSource`."""

    def __init__(
        self, directory: pathlib.Path, config: ModelConfig, tensors: dict[str, SafeTensor]
    ) -> None:
        self.directory = directory
        self.config = config
        self.tensors = self._tensors = tensors
        self._prefix = _text_prefix(tensors, directory)
        shapes = needed_keys(config)
        spare_heads = _HEADS if config.tied_head else ()
        text = [name for name in tensors if not is_vision(name) and name not in spare_heads]
        check_coverage(map(self._name, shapes), text, str(directory))
        for key, shape in shapes.items():
            tensor = tensors[self._name(key)]
            check_shape(self._name(key), tensor.shape, shape, str(tensor.path))
            if tensor.dtype not in DTYPES:
                raise WeightsError(
                    f"{tensor.path}: {self._name(key)} is stored as {tensor.dtype}; expected {', '.join(DTYPES)}"
                )

    @classmethod
    def open(cls, directory: str | pathlib.Path) -> HfSource:
        """Raises: WeightsError if a file is missing, broken or inconsistent, or a key is missing or unused."""
        directory = pathlib.Path(directory)
        if not (directory / "config.json").is_file():
            raise WeightsError(_what_is_there(directory, "config.json"))
        raw = _read_json(directory / "config.json")
        try:
            config = ModelConfig.from_hf(raw)
        except ValueError as error:
            raise WeightsError(
                f"{directory / 'config.json'}: {str(error).removeprefix('config.json: ')}"
            ) from error
        return cls(directory, config, _find_tensors(directory))

    @property
    def files(self) -> set[pathlib.Path]:
        return {tensor.path for tensor in self._tensors.values()}

    @property
    def stored_dtype(self) -> str:
        """bfloat16 if all that is read is stored so, else float32, which holds every stored number."""
        read = {self._tensors[self._name(key)].dtype for key in needed_keys(self.config)}
        return "bfloat16" if read == {"BF16"} else "float32"

    def make_tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.directory)

    def describe(self, key: LeafKey) -> str:
        return f"{self._tensors[self._name(key)].path}: {self._name(key)}"

    def read_rows(self, key: LeafKey, start: int, stop: int) -> np.ndarray:
        return read_rows_of(self._tensors[self._name(key)], start, stop)

    def check_before_load(self) -> None:
        """Raises: WeightsError if a checkpoint that says its head is tied carries one that is not its embedding."""
        for name in _HEADS if self.config.tied_head else ():
            if name in self._tensors and not is_equal(
                self._tensors[name], self._tensors[self._name(("embed", 0))]
            ):
                raise WeightsError(
                    f"{self._tensors[name].path}: {name} differs from the embedding, but config.json does not say "
                    '"tie_word_embeddings": false; say so if this head is meant'
                )

    def _name(self, key: LeafKey) -> str:
        path, layer = key
        if path == "head":
            return _HEADS[self._prefix == "language_model.model."]
        layers = f"layers.{layer}." if path.startswith("layers/") else ""
        return f"{self._prefix}{layers}{_NAMES[path]}.weight"


def is_vision(name: str) -> bool:
    """Whether a tensor is of the vision tower of a multimodal checkpoint, or of what joins it to the text decoder."""
    return name.startswith(_VISION_PREFIXES)


def _find_tensors(directory: pathlib.Path) -> dict[str, SafeTensor]:
    """Returns every tensor of the checkpoint by name, one file or as the index lists them."""
    if (directory / _SINGLE).is_file():
        return read_safetensors_header(directory / _SINGLE)
    if not (directory / _INDEX).is_file():
        raise WeightsError(_what_is_there(directory, f"{_SINGLE} or {_INDEX}"))
    listed = _read_json(directory / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise WeightsError(f"{directory / _INDEX} has no weight_map from tensor names to files")
    tensors: dict[str, SafeTensor] = {}
    for file in sorted(set(listed.values())):
        if pathlib.PurePath(file).name != file or not file.endswith(".safetensors"):
            raise WeightsError(
                f"{directory / _INDEX} names {file!r}; expected the name of a .safetensors file beside it"
            )
        if not (directory / file).is_file():
            raise WeightsError(
                f"{directory / _INDEX} names {file}, which is not there; fetch the missing shard"
            )
        header = read_safetensors_header(directory / file)
        check_coverage(
            [name for name, where in listed.items() if where == file],
            header,
            f"{file} against {_INDEX}",
        )
        tensors |= header
    return tensors


def _what_is_there(directory: pathlib.Path, wanted: str) -> str:
    expected = f"{directory} has no {wanted}"
    if (directory / "adapter_config.json").is_file():
        return f"{expected}; it is a PEFT adapter: merge it into its base model first"
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        listed = ", ".join(pickles[:3])
        return f"{expected}, but pickle files ({listed}), which are never opened; convert them to safetensors"
    return f"{expected}; found {', '.join(sorted(p.name for p in directory.iterdir())[:8]) or 'nothing'}"


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise WeightsError(f"{path} holds a {type(raw).__name__}; expected an object")
    return raw


def _text_prefix(tensors: dict[str, SafeTensor], directory: pathlib.Path) -> str:
    for prefix in _TEXT_PREFIXES:
        if any(name.startswith(f"{prefix}layers.") for name in tensors):
            return prefix
    raise WeightsError(
        f"{directory} holds no text decoder: no tensor begins {' or '.join(f'{p}layers.' for p in _TEXT_PREFIXES)}; "
        f"found {', '.join(sorted(tensors)[:4]) or 'no tensors'}"
    )
