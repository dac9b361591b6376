"""`medkor plan`: a config and a machine in, a table out.

    plan_config("configs/pipeline.py", [], topology="v5e:4x4", model="medgemma-4b")

What it does not do: compile (`compiling`) or print (`report`).
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Sequence

from medkor_jax.io.sizes import published_config
from medkor_jax.io.weights import is_hub_id
from medkor_jax.model.config import PRESETS, ModelConfig
from medkor_jax.plan.auto import Choice, choose, price_of
from medkor_jax.plan.planner import Plan, make_plan
from medkor_jax.plan.topology import CHIPS, parse_topology
from medkor_jax.run.choosing import told
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import ConfigError


def plan_config(
    path: str, overrides: Sequence[str], *, topology: str = "", model: str = "", price: str = ""
) -> Plan | Choice:
    """Returns the plan of the config at `path`, or with topology "auto" the machine to take.

    topology: "" takes the one that the config is written for. model: a preset's name, or weights; "": the config's. price:
    "1.2", or "v5e=1.2,gpu=2.5".

    Raises: ConfigError, or ValueError, if one of them is not understood.
    """
    recipe = load_recipe(path, overrides)
    name, topology = model or recipe.weights, topology or recipe.topology
    if not topology:
        raise ConfigError(
            f"{path} is written for no machine: give --topology, such as v5e:4x4, or auto"
        )
    prices = read_prices(price)
    say = lambda words: print(f"medkor: {words}", file=sys.stderr, flush=True)
    if words := told(recipe):
        say(f"{words}\n  not in this plan of {name}; plan it with --model")
    if topology == "auto":
        return choose(recipe, name, config_of(name), prices=prices, say=say)
    machine = parse_topology(topology)
    return make_plan(
        recipe, name, config_of(name), machine, price=price_of(prices, machine), say=say
    )


def read_prices(text: str) -> dict[str, float]:
    """Returns {kind of chip: USD for one of them and an hour}; the kind is "" where one price is for all.

    Raises: ValueError on what is no price, or of a kind that is not known.
    """
    prices = {}
    for part in filter(None, text.split(",")):
        kind, _, number = part.rpartition("=")
        try:
            prices[kind.strip()] = float(number)
        except ValueError:
            prices[kind.strip()] = math.nan
        if not 0 < prices[kind.strip()] < math.inf or kind.strip() not in (
            "",
            "gpu",
            "cpu",
            *CHIPS,
        ):
            raise ValueError(
                f"--price {part!r} is not understood; expected 1.2, or KIND=USD with KIND one of {', '.join(CHIPS)}, gpu"
            )
    return prices


def config_of(name: str) -> ModelConfig:
    """Returns the sizes of a model by a preset's name, a published id, or any weights at hand; nothing is downloaded.

    Raises: ValueError, with the presets, for a model that is neither known nor here.
    """
    if published := published_config(name):
        return published
    name = name.removeprefix("random:")
    if is_hub_id(name) and not pathlib.Path(name).exists():
        raise ValueError(
            f"model {name!r} is not here and its sizes are not known; give --model one of {', '.join(PRESETS)}"
        )
    return open_model(name).config
