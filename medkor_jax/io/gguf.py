"""Reads Gemma 3 from a GGUF file: its config, its tokenizer, and its tensors, dequantised row by row.

    source = GgufSource.open("model.gguf")
    source.config.n_layers; source.make_tokenizer()

Block formats and their arithmetic come from the package `gguf`; the header is parsed by `gguf_header`.

Does not write GGUF, and does not read big-endian or split files.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.carried import TOKENIZER_CONFIG, Carried
from medkor_jax.io.gguf_header import GgufTensor, as_weights_error, read_header
from medkor_jax.io.streaming import LeafKey, WeightsError, check_coverage, check_shape, needed_keys
from medkor_jax.model.config import GLOBAL, LOCAL, ModelConfig, periodic_kinds
from medkor_jax.model.fields import Fields

_NAMES = {
    "embed": "token_embd",
    "final_norm": "output_norm",
    "layers/pre_attn_norm": "attn_norm",
    "layers/post_attn_norm": "post_attention_norm",
    "layers/pre_ffw_norm": "ffn_norm",
    "layers/post_ffw_norm": "post_ffw_norm",
    "layers/q_norm": "attn_q_norm",
    "layers/k_norm": "attn_k_norm",
    "layers/q": "attn_q",
    "layers/k": "attn_k",
    "layers/v": "attn_v",
    "layers/o": "attn_output",
    "layers/gate": "ffn_gate",
    "layers/up": "ffn_up",
    "layers/down": "ffn_down",
}


class GgufSource:
    """One opened file: names, shapes and size already checked. A `streaming.TensorSource`."""

    def __init__(
        self, path: pathlib.Path, metadata: dict[str, Any], tensors: dict[str, GgufTensor]
    ) -> None:
        self.path = path
        self._metadata = metadata
        self._tensors = tensors
        with as_weights_error():
            self.config = _config(metadata, tensors, path)
        shapes = needed_keys(self.config)
        check_coverage(map(_name, shapes), tensors, str(path))
        for key, shape in shapes.items():
            check_shape(_name(key), tensors[_name(key)].shape, shape, str(path))

    @classmethod
    def open(cls, path: str | pathlib.Path) -> GgufSource:
        """Raises: WeightsError if the file is not GGUF, is cut short, or is not a whole Gemma 3."""
        path = pathlib.Path(path)
        return cls(path, *read_header(path))

    def make_tokenizer(self) -> Tokenizer:
        """Raises: WeightsError if the file's vocabulary is not a sentencepiece one; FileNotFoundError if it has none."""
        if "tokenizer.ggml.model" not in self._metadata:
            raise FileNotFoundError(
                f"{self.path} has no tokenizer (no metadata 'tokenizer.ggml.model')"
            )
        fields, path = Fields(self._metadata, str(self.path)), self.path
        with as_weights_error():
            kind = fields.text("tokenizer.ggml.model")
            if kind != "llama":
                raise WeightsError(
                    f"{path}: its tokenizer is {kind!r}; expected 'llama' (sentencepiece), as Gemma has"
                )
            pieces = fields.listed("tokenizer.ggml.tokens", str, "texts")
            unk_id = fields.integer(
                "tokenizer.ggml.unknown_token_id", least=0, most=len(pieces) - 1
            )
            scores = _array(self._metadata, "tokenizer.ggml.scores", "f", "numbers", path)
            types = _array(self._metadata, "tokenizer.ggml.token_type", "iu", "whole numbers", path)
            if not np.isfinite(scores).all() or not np.isin(types, range(1, 7)).all():
                raise WeightsError(
                    f"{path}: its vocabulary has scores that are not finite, or types other than 1 to 6"
                )
            return Tokenizer.from_vocabulary(pieces, scores.tolist(), types.tolist(), unk_id=unk_id)

    def make_carried(self) -> Carried:
        """Returns the chat template, which is all that such a file has room for. Raises: WeightsError if it is no text."""
        with as_weights_error():
            template = Fields(self._metadata, str(self.path)).text(
                "tokenizer.chat_template", default=None
            )
        files = (
            {}
            if template is None
            else {TOKENIZER_CONFIG: json.dumps({"chat_template": template}).encode()}
        )
        return Carried(str(self.path), files)

    def describe(self, key: LeafKey) -> str:
        return f"{self.path}: {_name(key)}"

    def check_before_load(self) -> None:
        """GGUF has nothing that its header does not tell."""

    def read_rows(self, key: LeafKey, start: int, stop: int) -> np.ndarray:
        """Returns float32 rows; norm weights are stored with 1 added, which is taken off again here."""
        from gguf.quants import dequantize

        tensor = self._tensors[_name(key)]
        is_vector = len(tensor.shape) == 1
        first, n_rows = (0, 1) if is_vector else (start, stop - start)
        raw = np.empty((n_rows, tensor.row_bytes), np.uint8)
        with self.path.open("rb") as file:
            file.seek(tensor.offset + first * tensor.row_bytes)
            if file.readinto(raw.data) != raw.nbytes:
                raise WeightsError(
                    f"{self.describe(key)} ends early; the file changed while it was read"
                )
        try:
            rows = dequantize(raw, tensor.format)
        except NotImplementedError as error:
            raise WeightsError(
                f"{self.describe(key)} is in format {tensor.format.name}, which the gguf package cannot read"
            ) from error
        return rows[0, start:stop] - np.float32(1) if is_vector else rows


def _name(key: LeafKey) -> str:
    path, layer = key
    prefix = f"blk.{layer}." if path.startswith("layers/") else ""
    return f"{prefix}{_NAMES[path]}.weight"


def _config(
    metadata: dict[str, Any], tensors: dict[str, GgufTensor], path: pathlib.Path
) -> ModelConfig:
    """Returns the config that the metadata states; what GGUF leaves out is as llama.cpp fills it in.

    Source: llama.cpp, `llama_model_gemma3`.
    """
    fields = Fields(metadata, str(path))
    kind = fields.text("general.architecture")
    if kind != "gemma3":
        raise WeightsError(f"{path} holds a {kind!r} model; expected 'gemma3'")
    if "token_embd.weight" not in tensors:
        raise WeightsError(f"{path} has no token_embd.weight; is it a whole Gemma 3 model file?")
    depth, width = (
        fields.integer("gemma3.block_count", most=10_000),
        fields.integer("gemma3.embedding_length"),
    )
    n_heads, head_dim = (
        fields.integer("gemma3.attention.head_count"),
        fields.integer("gemma3.attention.key_length"),
    )
    scaling = fields.choice("gemma3.rope.scaling.type", ("none", "linear"), default="none")
    factor = fields.number("gemma3.rope.scaling.factor", default=1.0)
    return ModelConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        d_model=width,
        n_heads=n_heads,
        n_kv_heads=fields.integer("gemma3.attention.head_count_kv"),
        head_dim=head_dim,
        d_ff=fields.integer("gemma3.feed_forward_length"),
        layer_kinds=_layer_kinds(fields, depth),
        sliding_window=fields.integer("gemma3.attention.sliding_window"),
        # The file does not say; only the 27B (62 layers) departs from the head size.
        query_pre_attn_scalar=width / n_heads if depth == 62 else head_dim,
        rope_base_global=fields.number("gemma3.rope.freq_base", default=1_000_000.0),
        rope_base_local=fields.number("gemma3.rope.freq_base_swa", default=10_000.0),
        rope_scaling_global=factor if scaling == "linear" else 1.0,
        # Stored in single precision; its shortest decimal is the number that was meant.
        rms_eps=float(
            str(np.float32(fields.number("gemma3.attention.layer_norm_rms_epsilon", most=1.0)))
        ),
        max_positions=fields.integer("gemma3.context_length"),
    )


def _layer_kinds(fields: Fields, depth: int) -> tuple[str, ...]:
    key = "gemma3.attention.sliding_window_pattern"
    listed = fields.values.get(key)
    if not isinstance(listed, np.ndarray):
        return periodic_kinds(depth, fields.integer(key, default=6))
    if listed.dtype != bool or len(listed) != depth:
        raise WeightsError(
            f"{fields.where}: {key} lists {len(listed)} values of type {listed.dtype}; expected {depth} booleans"
        )
    return tuple(LOCAL if is_local else GLOBAL for is_local in listed)


def _array(
    metadata: dict[str, Any], key: str, kinds: str, what: str, path: pathlib.Path
) -> np.ndarray:
    """Returns an array whose dtype is of one of numpy's `kinds`."""
    value = metadata.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        found = (
            "missing"
            if value is None
            else f"of type {getattr(value, 'dtype', type(value).__name__)}"
        )
        raise WeightsError(f"{path}: {key} is {found}; expected a list of {what}")
    return value
