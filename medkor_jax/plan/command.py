"""`medkor plan`: a config and a machine in, a table out.

    plan_config("configs/pipeline.py", [], topology="v5e:4x4", model="medgemma-4b")
"""

from __future__ import annotations

import sys
from typing import Sequence

from medkor_jax.config_file import load_recipe
from medkor_jax.model.config import PRESETS, ModelConfig, preset
from medkor_jax.plan.planner import Plan, make_plan
from medkor_jax.plan.topology import parse_topology

# What the hub ids of the published checkpoints are called among the presets.
_PUBLISHED = {
    "google/medgemma-4b-it": "medgemma-4b", "google/medgemma-4b-pt": "medgemma-4b", "google/medgemma-27b-text-it": "medgemma-27b-text",
    "google/gemma-3-270m": "gemma3-270m", "google/gemma-3-1b-it": "gemma3-1b", "google/gemma-3-4b-it": "gemma3-4b",
    "google/gemma-3-12b-it": "gemma3-12b", "google/gemma-3-27b-it": "gemma3-27b", "embedded": "gemma3-270m",
}  # fmt: skip


def plan_config(path: str, overrides: Sequence[str], *, topology: str, model: str = "", price: float | None = None) -> Plan:
    """Returns the plan of the config at `path`. model: a preset's name, or weights; "": the weights of the config."""
    recipe = load_recipe(path, overrides)
    name = model or recipe.weights
    say = lambda words: print(f"medkor: {words}", file=sys.stderr, flush=True)  # noqa: E731
    return make_plan(recipe, name, config_of(name), parse_topology(topology), price=price, say=say)


def config_of(name: str) -> ModelConfig:
    """Returns the sizes of a model by a preset's name, a published id, or any weights at hand; nothing is downloaded.

    Raises: ValueError, with the presets, for a model that is neither known nor here.
    """
    name = name.removeprefix("random:")
    if name in PRESETS or name in _PUBLISHED:
        return preset(_PUBLISHED.get(name, name))
    import pathlib

    if not pathlib.Path(name).exists():
        raise ValueError(f"model {name!r} is not here and its sizes are not known; give --model one of {', '.join(PRESETS)}")
    from medkor_jax.named_model import open_model

    return open_model(name).config
