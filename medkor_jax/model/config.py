"""The shape of a Gemma 3 text decoder, read from a checkpoint's own `config.json`.

    config = ModelConfig.from_hf(json.load(open("config.json")))
    config.layer_kinds[5]          # "global": every sixth layer, unless the checkpoint lists its own

Holds numbers only: no weights, no devices. What Gemma 3 does not use (soft caps, attention biases,
bidirectional attention) is refused here, by name, rather than ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from medkor_jax.model.fields import Fields, shown
from medkor_jax.nearest import nearest_few

LOCAL, GLOBAL = "local", "global"
_MOST_LAYERS = (
    10_000  # a depth beyond any model's is a damaged file, found here and not by filling the memory
)
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
        fields = Fields(dataclasses.asdict(self), "model config")
        for name in (
            "vocab_size",
            "d_model",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "d_ff",
            "sliding_window",
            "max_positions",
        ):
            fields.integer(name)
        for name in (
            "query_pre_attn_scalar",
            "rope_base_global",
            "rope_base_local",
            "rope_scaling_global",
            "rms_eps",
        ):
            fields.number(name)
        fields.boolean("tied_head")
        unknown = set(self.layer_kinds) - {LOCAL, GLOBAL}
        if unknown or not self.layer_kinds:
            raise ValueError(
                f"layer_kinds holds {sorted(unknown)}; each must be 'local' or 'global', at least one"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
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
        return (
            tables * self.vocab_size * d
            + d
            + self.n_layers * (attention + 3 * d * self.d_ff + 4 * d)
        )

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Returns the config of a Hugging Face `config.json`, text-only or multimodal, old or new layout.

        Published Gemma 3 files leave out whatever equals the library's default, so the same defaults
        stand here (Source: transformers `Gemma3TextConfig`).

        Raises: ValueError on another architecture, or on a feature this decoder does not compute.
        """
        whole = Fields(raw, "config.json")
        text = whole.part("text_config", default=whole)
        kind = text.text("model_type", default="") or whole.text("model_type", default="")
        if kind not in ("gemma3_text", "gemma3"):
            raise ValueError(
                f"model_type {kind!r} is not Gemma 3 (expected 'gemma3_text' or 'gemma3')"
            )
        _refuse_unsupported(text)
        depth = text.integer("num_hidden_layers", most=_MOST_LAYERS)
        every = text.integer("sliding_window_pattern", default=6)
        listed = text.listed("layer_types", str, "layer kinds", default=None, null=True)
        kinds = (
            periodic_kinds(depth, every)
            if listed is None
            else tuple(_HF_KIND.get(name, name) for name in listed)
        )
        if len(kinds) != depth:
            raise ValueError(
                f"layer_types lists {len(kinds)} layers, num_hidden_layers says {depth}"
            )
        base_global, base_local, scaling = _rope(text)
        return cls(
            vocab_size=text.integer("vocab_size", default=262_208),
            d_model=text.integer("hidden_size"),
            n_heads=text.integer("num_attention_heads", default=8),
            n_kv_heads=text.integer("num_key_value_heads", default=4),
            head_dim=text.integer("head_dim", default=256, least=2),
            d_ff=text.integer("intermediate_size"),
            layer_kinds=kinds,
            sliding_window=text.integer("sliding_window", default=4096),
            query_pre_attn_scalar=text.number("query_pre_attn_scalar", default=256),
            rope_base_global=base_global,
            rope_base_local=base_local,
            rope_scaling_global=scaling,
            rms_eps=text.number("rms_norm_eps", default=1e-6, most=1.0),
            max_positions=text.integer("max_position_embeddings", default=131_072),
            tied_head=whole.boolean(
                "tie_word_embeddings", default=True
            ),  # of a multimodal model, its outer config decides
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
        raise ValueError(f"no preset {name!r}; nearest: {', '.join(nearest_few(name, PRESETS, 3))}")
    return PRESETS[name]


def periodic_kinds(depth: int, every: int = 6) -> tuple[str, ...]:
    """Returns the published pattern: `every - 1` local layers, then a global one."""
    return tuple(GLOBAL if (i + 1) % every == 0 else LOCAL for i in range(depth))


def _refuse_unsupported(text: Fields) -> None:
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if text.values.get(key) is not None:
            raise ValueError(
                f"{text.where} sets {key}={shown(text.values[key])}, which this decoder does not compute"
            )
    for key, may_be_null in (("attention_bias", False), ("use_bidirectional_attention", True)):
        if text.boolean(key, default=False, null=may_be_null):
            raise ValueError(f"{text.where} sets {key}=true, which this decoder does not compute")
    text.choice("hidden_activation", ("gelu_pytorch_tanh",), default="gelu_pytorch_tanh")


def _rope(text: Fields) -> tuple[float, float, float]:
    """Returns (global base, local base, linear factor of the global layers) from either layout."""
    nothing = Fields({}, text.where)
    new = text.part("rope_parameters", default=nothing, null=True)
    if set(new.values) - {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"rope_parameters has {sorted(new.values)}; expected an entry for full_attention and one for sliding_attention"
        )
    full, sliding = (
        new.part(name, default=nothing, null=True)
        for name in ("full_attention", "sliding_attention")
    )
    old = text.part("rope_scaling", default=nothing, null=True)
    full = Fields({**full.values, **old.values}, old.where if old.values else full.where)
    if (kind := _rope_kind(sliding)) != "default":
        raise ValueError(f"rope of local layers is {kind!r}; only 'default' is supported there")
    kind = _rope_kind(full)
    if kind not in ("default", "linear"):
        raise ValueError(f"rope of global layers is {kind!r}; expected 'default' or 'linear'")
    return (
        (full if "rope_theta" in full.values else text).number("rope_theta", default=1_000_000.0),
        sliding.number("rope_theta")
        if "rope_theta" in sliding.values
        else text.number("rope_local_base_freq", default=10_000.0),
        full.number("factor") if kind == "linear" else 1.0,
    )


def _rope_kind(part: Fields) -> str:
    return part.text("rope_type", default=part.text("type", default="default"))


def _gemma3(
    depth: int, d: int, heads: int, kv: int, head: int, ff: int, window: int, **rest: Any
) -> ModelConfig:
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
_27B = _gemma3(
    62, 5376, 32, 16, 128, 21504, 1024, vocab=262_208, query=168, rope_scaling_global=8.0
)

# Source: the config.json published with each checkpoint.
PRESETS: dict[str, ModelConfig] = {
    "gemma3-270m": _gemma3(18, 640, 4, 1, 256, 2048, 512, max_positions=32_768),
    "gemma3-1b": _gemma3(26, 1152, 4, 1, 256, 6912, 512, max_positions=32_768),
    "gemma3-4b": _4B,
    "gemma3-12b": _gemma3(
        48, 3840, 16, 8, 256, 15360, 1024, vocab=262_208, rope_scaling_global=8.0
    ),
    "gemma3-27b": _27B,
    "medgemma-4b": _4B,
    "medgemma-27b-text": dataclasses.replace(_27B, vocab_size=262_144),
    "tiny": _gemma3(
        7, 32, 4, 2, 16, 64, 16, vocab=512, max_positions=1024, rope_scaling_global=8.0
    ),
}
