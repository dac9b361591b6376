"""How large a model is, as far as that is known without fetching it.

    known_config("google/medgemma-27b-text-it").n_params        # of a published checkpoint, though it is not here

What it does not do: ask the hub, or read a tensor.
"""

from __future__ import annotations

import pathlib

from medkor_jax.io.embedded_model import EMBEDDED_MODEL
from medkor_jax.io.weights import open_weights
from medkor_jax.model.config import PRESETS, ModelConfig, preset

# What the hub ids of the published checkpoints are called among the presets.
PUBLISHED = {
    "google/medgemma-4b-it": "medgemma-4b",
    "google/medgemma-4b-pt": "medgemma-4b",
    "google/medgemma-27b-text-it": "medgemma-27b-text",
    "google/gemma-3-270m": "gemma3-270m",
    "google/gemma-3-1b-it": "gemma3-1b",
    "google/gemma-3-4b-it": "gemma3-4b",
    "google/gemma-3-12b-it": "gemma3-12b",
    "google/gemma-3-27b-it": "gemma3-27b",
    EMBEDDED_MODEL: "gemma3-270m",
}


def published_config(name: str) -> ModelConfig | None:
    """Returns the sizes of a preset, random:PRESET or a published checkpoint; None of any other name."""
    name = name.removeprefix("random:")
    name = PUBLISHED.get(name, name)
    return preset(name) if name in PRESETS else None


def known_config(name: str) -> ModelConfig | None:
    """Returns the sizes of weights that are published, or whose headers are on this disk; None where they are not known."""
    if pathlib.Path(name).exists():
        try:
            return open_weights(name).config
        except (ValueError, OSError):  # whoever opens it is told what is wrong
            return None
    return published_config(name)
