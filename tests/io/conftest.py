"""Tiny Gemma 3 checkpoints, written by transformers itself."""

from __future__ import annotations

import json
import math
import pathlib
import types

import numpy as np
import pytest


def text_config(**changes):
    from transformers import Gemma3TextConfig

    sizes = dict(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=7, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=16, max_position_embeddings=512,
    )  # fmt: skip
    return Gemma3TextConfig(**(sizes | changes))


def randomise(model):
    """Gives every parameter, the norms too, values of its own."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="session")
def text_model():
    """A torch Gemma3ForCausalLM of seven layers, float32."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    return randomise(transformers.Gemma3ForCausalLM(text_config()))


@pytest.fixture(scope="session")
def text_directory(text_model, tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("text")
    text_model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def text_base(text_model) -> dict:
    """The base tree of `text_model`, laid out by hand from torch's own tensors."""
    state = {name: value.float().numpy() for name, value in text_model.state_dict().items()}
    return base_of(state, "model.", 7)


def base_of(state: dict[str, np.ndarray], prefix: str, depth: int) -> dict:
    def stack(name: str) -> np.ndarray:
        tensors = [state[f"{prefix}layers.{i}.{name}.weight"] for i in range(depth)]
        return np.stack([t.T if t.ndim == 2 else t for t in tensors])

    names = {
        "pre_attn_norm": "input_layernorm", "post_attn_norm": "post_attention_layernorm",
        "pre_ffw_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
        "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    }  # fmt: skip
    return {
        "embed": state[f"{prefix}embed_tokens.weight"],
        "final_norm": state[f"{prefix}norm.weight"],
        "layers": {ours: stack(theirs) for ours, theirs in names.items()},
    }


def write_sparse_checkpoint(directory: pathlib.Path, **changes) -> None:
    """Writes a checkpoint of any size at once: bfloat16, all zeros, the data a hole in the file."""
    from medkor_jax.io import hf
    from medkor_jax.io.streaming import needed_keys
    from medkor_jax.model.config import ModelConfig

    directory.mkdir(parents=True, exist_ok=True)
    raw = text_config(**changes).to_dict()
    (directory / "config.json").write_text(json.dumps(raw))
    header, end = {}, 0
    for (path, layer), shape in needed_keys(ModelConfig.from_hf(raw)).items():
        layers = f"layers.{layer}." if path.startswith("layers/") else ""
        span = [end, end := end + 2 * math.prod(shape)]
        header[f"model.{layers}{hf._NAMES[path]}.weight"] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": span,
        }
    encoded = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(file.tell() + end)


@pytest.fixture(scope="session")
def checkpoints() -> types.SimpleNamespace:
    """The functions above, for tests that write checkpoints of their own."""
    return types.SimpleNamespace(
        text_config=text_config,
        randomise=randomise,
        base_of=base_of,
        write_sparse=write_sparse_checkpoint,
    )
