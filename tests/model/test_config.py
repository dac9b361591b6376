import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from medkor_jax.model.config import GLOBAL, LOCAL, PRESETS, ModelConfig, periodic_kinds, preset
from medkor_jax.model.params import abstract_base

# The text part of google/gemma-3-4b-it's config.json, which leaves out what equals the library's default.
MULTIMODAL = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
}
# google/gemma-3-270m's, which writes everything out.
TEXT = {
    "_sliding_window_pattern": 6,
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "use_bidirectional_attention": False,
    "vocab_size": 262144,
}


def test_published_multimodal_file_gives_the_4b():
    assert ModelConfig.from_hf(MULTIMODAL) == preset("gemma3-4b") == preset("medgemma-4b")


def test_published_text_file_gives_the_270m():
    assert ModelConfig.from_hf(TEXT) == preset("gemma3-270m")


def test_new_layout_means_the_same_as_the_old():
    new = {k: v for k, v in MULTIMODAL["text_config"].items() if k != "rope_scaling"}
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    new["layer_types"] = [
        "full_attention" if kind == GLOBAL else "sliding_attention" for kind in periodic_kinds(34)
    ]
    assert ModelConfig.from_hf({"model_type": "gemma3", "text_config": new}) == preset("gemma3-4b")


@pytest.mark.parametrize("local", [{}, {"sliding_attention": {"rope_type": "default"}}])
def test_the_mixed_layout_means_the_same(local):
    """TranslateGemma's of January 2026: the bases flat, rope_scaling null, and of rope_parameters the factor alone."""
    mixed = MULTIMODAL["text_config"] | {
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": None,
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}, **local},
    }
    assert ModelConfig.from_hf({"model_type": "gemma3", "text_config": mixed}) == preset(
        "gemma3-4b"
    )


def test_every_number_of_the_file_is_read():
    odd = {
        "model_type": "gemma3_text", "vocab_size": 101, "hidden_size": 12, "num_attention_heads": 6,
        "num_key_value_heads": 3, "head_dim": 10, "intermediate_size": 14, "num_hidden_layers": 3,
        "sliding_window_pattern": 2, "sliding_window": 7, "query_pre_attn_scalar": 9, "rope_theta": 5e5,
        "rope_local_base_freq": 2e4, "rope_scaling": {"type": "linear", "factor": 3}, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 77,
    }  # fmt: skip
    assert ModelConfig.from_hf(odd) == ModelConfig(
        101, 12, 6, 3, 10, 14, (LOCAL, GLOBAL, LOCAL), 7, 9, 5e5, 2e4, 3.0, 1e-5, 77
    )
    assert ModelConfig.from_hf(odd).query_scale == pytest.approx(1 / 3)


def test_listed_layers_win_over_the_pattern():
    listed = TEXT | {"layer_types": ["full_attention"] + ["sliding_attention"] * 17}
    assert ModelConfig.from_hf(listed).layer_kinds == (GLOBAL,) + (LOCAL,) * 17


def test_a_head_of_its_own_is_read_from_either_layout_and_counted():
    tied, own = (
        ModelConfig.from_hf(TEXT),
        ModelConfig.from_hf(TEXT | {"tie_word_embeddings": False}),
    )
    assert tied.tied_head and not own.tied_head
    assert own.n_params - tied.n_params == tied.vocab_size * tied.d_model
    # a multimodal config says it at the top
    nested = {"model_type": "gemma3", "text_config": TEXT, "tie_word_embeddings": False}
    assert not ModelConfig.from_hf(nested).tied_head
    old = {key: value for key, value in tied.to_json().items() if key != "tied_head"}
    assert ModelConfig.from_json(old) == tied and ModelConfig.from_json(own.to_json()) == own


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gemma2"}, "gemma2"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_activation": "silu"}, "silu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "local",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "full_attention"),
        ({"layer_types": ["full_attention"] * 17}, "17 layers"),
        ({"layer_types": ["chunked_attention"] * 18}, "chunked_attention"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        ModelConfig.from_hf(TEXT | change)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_missing_size_is_named(key):
    with pytest.raises(ValueError, match=key):
        ModelConfig.from_hf({k: v for k, v in TEXT.items() if k != key})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_heads": 3}, "multiple of n_kv_heads"),
        ({"head_dim": 5}, "odd"),
        ({"layer_kinds": ()}, "at least one"),
    ],
)
def test_impossible_sizes_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(preset("tiny"), **change)


# Text decoders alone, embedding counted once: counted by hand from the published sizes.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("gemma3-270m", 268.098),
        ("gemma3-1b", 999.886),
        ("gemma3-4b", 3880.26),
        ("gemma3-12b", 11766.03),
        ("gemma3-27b", 27009.35),
    ],
)
def test_presets_have_the_parameters_of_their_names(name, millions):
    config = preset(name)
    assert config.n_params / 1e6 == pytest.approx(millions, rel=1e-5)
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(abstract_base(config, jnp.bfloat16)))
        == config.n_params
    )


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="gemma3-4b"):
        preset("gemma-4b")


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    assert ModelConfig.from_json(json.loads(json.dumps(preset(name).to_json()))) == preset(name)


class Watched(dict):
    """A dict that remembers which keys were asked for."""

    def __init__(self, values, seen):
        super().__init__(values)
        self.seen = seen

    def __contains__(self, key):
        self.seen.add(key)
        return super().__contains__(key)

    def get(self, key, default=None):
        self.seen.add(key)
        return super().get(key, default)


def keys_read() -> set[str]:
    seen = set()
    ModelConfig.from_hf(Watched({k: v for k, v in TEXT.items() if k != "layer_types"}, seen))
    return seen


BAD = {
    "null": None, "a text": "x", "a number as text": "4", "negative": -1, "zero": 0, "a fraction": 0.5, "NaN": float("nan"),
    "infinity": float("inf"), "an empty list": [], "a list": [3], "an object": {"a": 1}, "true": True, "huge": 10**30,
}  # fmt: skip
NULL_IS_DEFAULT = {
    "layer_types", "rope_parameters", "rope_scaling", "attn_logit_softcapping", "final_logit_softcapping",
    "use_bidirectional_attention",
}  # fmt: skip
NUMBERS = {"query_pre_attn_scalar", "rope_theta", "rope_local_base_freq", "rms_norm_eps"}
MAY_BE = {
    *((key, "null") for key in NULL_IS_DEFAULT),
    *((key, "a fraction") for key in NUMBERS),
    *((key, "huge") for key in NUMBERS - {"rms_norm_eps"}),
    ("tie_word_embeddings", "true"),
    ("rope_scaling", "an object"),  # what it holds is not read
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("key", sorted(keys_read() | {"layer_types"}))
def test_every_value_of_the_file_is_checked_when_it_is_read(key, bad):
    changed = {k: v for k, v in TEXT.items() if k != "layer_types"} | {key: BAD[bad]}
    if (key, bad) in MAY_BE:
        ModelConfig.from_hf(changed)
        if bad == "null":
            assert ModelConfig.from_hf(changed) == ModelConfig.from_hf(
                {k: v for k, v in changed.items() if k != key}
            )
        return
    with pytest.raises(ValueError) as caught:
        ModelConfig.from_hf(changed)
    assert key in str(caught.value) and "\n" not in str(caught.value)
    if key not in ("model_type", "text_config"):
        assert (
            "config.json" in str(caught.value)
            or "layer_types" in str(caught.value)
            or "rope_parameters" in str(caught.value)
        )
    nested = {
        "model_type": "gemma3",
        "text_config": changed,
        **({key: BAD[bad]} if key == "tie_word_embeddings" else {}),
    }
    if key not in ("model_type", "text_config"):
        with pytest.raises(ValueError, match=key):
            ModelConfig.from_hf(nested)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("key", ["rope_theta", "rope_type", "factor"])
@pytest.mark.parametrize("entry", ["full_attention", "sliding_attention"])
def test_every_value_of_the_rope_is_checked(entry, key, bad):
    right = {
        "rope_theta": 5.0,
        "rope_type": "linear" if entry == "full_attention" else "default",
        "factor": 2.0,
    }
    changed = TEXT | {"rope_parameters": {entry: right | {key: BAD[bad]}}}
    if (key == "factor" and entry == "sliding_attention") or (
        key != "rope_type" and bad in ("a fraction", "huge")
    ):
        ModelConfig.from_hf(changed)
        return
    with pytest.raises(ValueError, match=f"{key}|rope of (local|global) layers"):
        ModelConfig.from_hf(changed)


@pytest.mark.parametrize(
    "key",
    sorted(
        keys_read()
        - {
            "text_config",
            "model_type",
            "rope_theta",
            "rope_local_base_freq",
            "rope_scaling",
            "sliding_window_pattern",
        }
    ),
)
def test_null_is_what_transformers_takes_it_for(key):
    transformers = pytest.importorskip("transformers")
    try:
        given, absent = (
            transformers.Gemma3TextConfig(**values).to_dict() for values in ({key: None}, {})
        )
        theirs = {**given, key: given[key] or False} == {**absent, key: absent[key] or False}
    except Exception:  # their own classes of errors
        theirs = False
    assert theirs == (key in NULL_IS_DEFAULT), key


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ModelConfig)])
@pytest.mark.parametrize("bad", [0, -3, None, "x", float("nan")])
def test_a_config_without_sense_cannot_be_made(name, bad):
    with pytest.raises(ValueError, match=name if name != "layer_kinds" else "layer"):
        ModelConfig.from_json(
            preset("tiny").to_json() | {name: [bad] if name == "layer_kinds" else bad}
        )
