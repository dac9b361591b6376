"""The shape of a Gemma 3 text decoder, read from a checkpoint's own `config.json`.

    config = ModelConfig.from_hf(json.load(open("config.json")))
    config.layer_kinds[5]          # "global": every sixth layer, unless the checkpoint lists its own

Holds numbers only: no weights, no devices. What Gemma 3 does not use (soft caps, attention biases,
bidirectional attention) is refused here, by name, rather than ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, Mapping

LOCAL, GLOBAL = "local", "global"
_HF_KIND = {"sliding_attention": LOCAL, "full_attention": GLOBAL}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One decoder's sizes. Letters as in the glossary: V, D, N, K, H, F; depth L is len(layer_kinds)."""

    vocab_size: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    layer_kinds: tuple[str, ...]
    sliding_window: int  # a local layer sees positions t - window < s <= t
    query_pre_attn_scalar: float  # queries are scaled by this to the power -1/2
    rope_base_global: float = 1_000_000.0
    rope_base_local: float = 10_000.0
    rope_scaling_global: float = 1.0  # positions of global layers are divided by this ("linear")
    rms_eps: float = 1e-6
    max_positions: int = 131_072
    tied_head: bool = True  # False: the head has a matrix of its own, as our exports with folded language embeddings have

    def __post_init__(self) -> None:
        unknown = set(self.layer_kinds) - {LOCAL, GLOBAL}
        if unknown or not self.layer_kinds:
            raise ValueError(f"layer_kinds holds {sorted(unknown)}; each must be 'local' or 'global', at least one")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")

    @property
    def n_layers(self) -> int:
        return len(self.layer_kinds)

    @property
    def query_scale(self) -> float:
        return self.query_pre_attn_scalar**-0.5

    @property
    def n_params(self) -> int:
        """Parameters of the text decoder, a tied embedding counted once."""
        d, h = self.d_model, self.head_dim
        attention = d * h * (2 * self.n_heads + 2 * self.n_kv_heads) + 2 * h
        tables = 1 if self.tied_head else 2
        return tables * self.vocab_size * d + d + self.n_layers * (attention + 3 * d * self.d_ff + 4 * d)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Returns the config of a Hugging Face `config.json`, text-only or multimodal, old or new layout.

        Published Gemma 3 files leave out whatever equals the library's default, so the same defaults
        stand here (Source: transformers `Gemma3TextConfig`).

        Raises: ValueError on another architecture, or on a feature this decoder does not compute.
        """
        text = dict(raw.get("text_config") or raw)
        kind = text.get("model_type") or raw.get("model_type", "")
        if kind not in ("gemma3_text", "gemma3"):
            raise ValueError(f"model_type {kind!r} is not Gemma 3 (expected 'gemma3_text' or 'gemma3')")
        _refuse_unsupported(text)
        depth = _need(text, "num_hidden_layers")
        if text.get("layer_types"):
            kinds = tuple(_HF_KIND.get(name, name) for name in text["layer_types"])
        else:
            every = text.get("sliding_window_pattern", text.get("_sliding_window_pattern", 6))
            kinds = tuple(GLOBAL if (i + 1) % every == 0 else LOCAL for i in range(depth))
        if len(kinds) != depth:
            raise ValueError(f"layer_types lists {len(kinds)} layers, num_hidden_layers says {depth}")
        base_global, base_local, scaling = _rope(text)
        return cls(
            vocab_size=text.get("vocab_size", 262_208),
            d_model=_need(text, "hidden_size"),
            n_heads=text.get("num_attention_heads", 8),
            n_kv_heads=text.get("num_key_value_heads", 4),
            head_dim=text.get("head_dim", 256),
            d_ff=_need(text, "intermediate_size"),
            layer_kinds=kinds,
            sliding_window=text.get("sliding_window", 4096),
            query_pre_attn_scalar=text.get("query_pre_attn_scalar", 256),
            rope_base_global=base_global,
            rope_base_local=base_local,
            rope_scaling_global=scaling,
            rms_eps=text.get("rms_norm_eps", 1e-6),
            max_positions=text.get("max_position_embeddings", 131_072),
            tied_head=raw.get("tie_word_embeddings", text.get("tie_word_embeddings", True)),
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"layer_kinds": list(self.layer_kinds)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ModelConfig:
        return cls(**(dict(raw) | {"layer_kinds": tuple(raw["layer_kinds"])}))


def preset(name: str) -> ModelConfig:
    """Returns the published sizes by name, for abstract use (compiling, planning) without a checkpoint.

    Raises: ValueError naming the nearest preset.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.0)
        raise ValueError(f"no preset {name!r}; nearest: {', '.join(near)}")
    return PRESETS[name]


def periodic_kinds(depth: int, every: int = 6) -> tuple[str, ...]:
    """Returns the published pattern: `every - 1` local layers, then a global one."""
    return tuple(GLOBAL if (i + 1) % every == 0 else LOCAL for i in range(depth))


def _need(text: Mapping[str, Any], key: str) -> Any:
    if key not in text:
        raise ValueError(f"config.json has no {key!r}; a Gemma 3 text config must give it")
    return text[key]


def _refuse_unsupported(text: Mapping[str, Any]) -> None:
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "attention_bias", "use_bidirectional_attention"):
        if text.get(key):
            raise ValueError(f"config.json sets {key}={text[key]!r}, which this decoder does not compute")
    activation = text.get("hidden_activation", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise ValueError(f"hidden_activation {activation!r}; expected 'gelu_pytorch_tanh'")


def _rope(text: Mapping[str, Any]) -> tuple[float, float, float]:
    """Returns (global base, local base, linear factor of the global layers) from either layout."""
    new = text.get("rope_parameters") or {}
    if set(new) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"rope_parameters has {sorted(new)}; expected one entry each for full_attention, sliding_attention")
    full, sliding = dict(new.get("full_attention") or {}), dict(new.get("sliding_attention") or {})
    full = {**full, **(text.get("rope_scaling") or {})}
    if sliding.get("rope_type", "default") != "default":
        raise ValueError(f"rope of local layers is {sliding['rope_type']!r}; only 'default' is supported there")
    kind = full.get("rope_type", full.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ValueError(f"rope of global layers is {kind!r}; expected 'default' or 'linear'")
    return (
        float(full.get("rope_theta", text.get("rope_theta", 1_000_000.0))),
        float(sliding.get("rope_theta", text.get("rope_local_base_freq", 10_000.0))),
        float(full.get("factor", 1.0)) if kind == "linear" else 1.0,
    )


def _gemma3(depth: int, d: int, heads: int, kv: int, head: int, ff: int, window: int, **rest: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=rest.pop("vocab", 262_144),
        d_model=d,
        n_heads=heads,
        n_kv_heads=kv,
        head_dim=head,
        d_ff=ff,
        layer_kinds=periodic_kinds(depth),
        sliding_window=window,
        query_pre_attn_scalar=rest.pop("query", head),
        **rest,
    )


_4B = _gemma3(34, 2560, 8, 4, 256, 10240, 1024, vocab=262_208, rope_scaling_global=8.0)
_27B = _gemma3(62, 5376, 32, 16, 128, 21504, 1024, vocab=262_208, query=168, rope_scaling_global=8.0)

# Source: the config.json published with each checkpoint.
PRESETS: dict[str, ModelConfig] = {
    "gemma3-270m": _gemma3(18, 640, 4, 1, 256, 2048, 512, max_positions=32_768),
    "gemma3-1b": _gemma3(26, 1152, 4, 1, 256, 6912, 512, max_positions=32_768),
    "gemma3-4b": _4B,
    "gemma3-12b": _gemma3(48, 3840, 16, 8, 256, 15360, 1024, vocab=262_208, rope_scaling_global=8.0),
    "gemma3-27b": _27B,
    "medgemma-4b": _4B,
    "medgemma-27b-text": dataclasses.replace(_27B, vocab_size=262_144),
    "tiny": _gemma3(7, 32, 4, 2, 16, 64, 16, vocab=512, max_positions=1024, rope_scaling_global=8.0),
}
