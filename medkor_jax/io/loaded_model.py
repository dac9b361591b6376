"""A model as it is in memory, passed whole: whoever trains it, asks it or writes it has all that belongs to it.

    loaded = load(open_model("runs/quickstart/phase3"), jnp.float32, mesh)
    loaded.digest                   # the same as of the model that `io.models.save_model` would write

What it does not do: change or score a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medkor_jax.data.chat import ChatError, ChatTemplate
from medkor_jax.data.new_tokens import NewTokens
from medkor_jax.data.reading import Reading
from medkor_jax.data.style import AUTO, CHAT, PLAIN, Plain, Style, check_style
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.models import Model, model_digest
from medkor_jax.io.streaming import WeightsError
from medkor_jax.io.weights import Weights
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import TRAINABLE_TREES, Params, Tree


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """Its parameters, the weights they rest on, how it reads text, and all that is known to have been trained on.

    language_unit: how tokens are told their language, by "token" or by "document"; see `io.models.Model`. style: the form in
    which it is taught and asked, by default plain text.
    """

    params: Params
    base: Weights
    config: ModelConfig
    tokenizer: Tokenizer
    read: tuple[Reading, ...] = ()
    language_unit: str = "token"
    style: Style = cast("Style", None)

    def __post_init__(self) -> None:
        if self.style is None:
            object.__setattr__(self, "style", Plain(self.tokenizer))

    @property
    def digest(self) -> str:
        trees = {name: getattr(self.params, name) for name in TRAINABLE_TREES}
        trees = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
        return model_digest(
            self.base.digest,
            digest_tree(trees) if trees else "",
            self.params.lora_scale,
            self.new_tokens.digest if self.new_tokens else "",
        )

    @property
    def new_tokens(self) -> NewTokens | None:
        """Those that a run added to the base's vocabulary."""
        return self.tokenizer.new_tokens if self.tokenizer else None

    def with_tokenizer(self, tokenizer: Tokenizer) -> LoadedModel:
        """Returns the model as it reads with another tokenizer, in the same form."""
        style = self.style
        form: Style = (
            ChatTemplate(style.template, tokenizer)
            if isinstance(style, ChatTemplate)
            else Plain(tokenizer)
        )
        return dataclasses.replace(self, tokenizer=tokenizer, style=form)


def load(
    model: Model,
    dtype: Any,
    mesh: Mesh,
    *,
    language_unit: str = "",
    base: Tree | None = None,
    style: str = AUTO,
) -> LoadedModel:
    """Returns the model on `mesh`, its base in `dtype`. language_unit "": its own; base: the base's arrays, where they are loaded already.

    style: see `style_of`, which also raises.
    """
    form = style_of(model, style)
    params = model.load(jnp.dtype(dtype), mesh, base)
    return LoadedModel(
        params,
        model.base,
        model.config,
        model.tokenizer,
        model.read,
        language_unit or model.language_unit,
        form,
    )


def style_of(model: Model, wanted: str = AUTO) -> Style:
    """Returns the form in which the model is taught and asked.

    wanted: CHAT, PLAIN or AUTO: as it was trained by a run of this program, else by chat where the checkpoint has a template and
    was instruction-tuned (its defaults of generation end at the end of a turn), else plainly.

    Raises: WeightsError if a chat is wanted and the checkpoint has no template, or one that is no conversation.
    """
    check_style(wanted)
    templates = model.base.carried.chat_templates
    if wanted == AUTO:
        wanted = model.style or (CHAT if templates and _is_instruction_tuned(model) else PLAIN)
    if wanted == PLAIN:
        return Plain(model.tokenizer)
    if "default" not in templates:
        raise WeightsError(
            f"{model.name} is to be asked by its chat template and has {_listed(templates)}; "
            "set style to 'plain', or name weights that come with chat_template.jinja"
        )
    try:
        return ChatTemplate(templates["default"], model.tokenizer)
    except ChatError as error:
        raise WeightsError(f"{model.name}: {error}; set style to 'plain'") from error


def _listed(templates: Mapping[str, str]) -> str:
    return f"only templates named {', '.join(templates)}" if templates else "none"


def _is_instruction_tuned(model: Model) -> bool:
    said = (model.base.carried.generation or {}).get("eos_token_id")
    _, *turn_end = model.tokenizer.stop_ids
    return not set(turn_end).isdisjoint(said if isinstance(said, list) else [said])
