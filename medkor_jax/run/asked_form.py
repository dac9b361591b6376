"""The form in which a run teaches and asks, where its config leaves that open.

    form = asked_form(recipe)           # as the run was begun, else as its weights were trained, else as they were made
    form.style, form.words

What it does not do: make prompts (`data.style`).
"""

from __future__ import annotations

import dataclasses
import pathlib

from medkor_jax.data.style import AUTO, Style
from medkor_jax.io.loaded_model import style_of
from medkor_jax.io.models import style_of_phase
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import Recipe


@dataclasses.dataclass(frozen=True)
class AskedForm:
    """words: what a person should know of it."""

    style: Style
    words: str


def asked_form(recipe: Recipe) -> AskedForm:
    """Returns the form of the run. Raises: WeightsError, as `style_of`."""
    model = open_model(recipe.weights)
    begun = _begun(recipe) if recipe.style == AUTO else ""
    style = style_of(model, begun or recipe.style)
    words = f"the model is taught and asked in {style.name} form"
    if begun:
        words += ", as this run was begun"
    if model.style not in ("", style.name):
        words += f"; {recipe.weights} was taught in {model.style} form before"
    return AskedForm(style, words)


def _begun(recipe: Recipe) -> str:
    """Returns the form of the first phase that this run has finished; "" if none has."""
    found = (style_of_phase(pathlib.Path(recipe.run_dir) / phase.name) for phase in recipe.phases)
    return next(filter(None, found), "")
