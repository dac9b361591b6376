"""Two extra embeddings, English and Korean, added to each token's own by the token's language.

    lang = make_language(config, kind="vector")        # {"vector": [2, D]}, zeros: changes nothing yet

Kind `vector` is one vector a language; kind `table` is one row a token and language. Both stand in
units of the scaled residual stream (after the sqrt(D) of the input embedding). Which language a token
has is data (`data.language`), not this file's business.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import Tree

KINDS = ("vector", "table")


@dataclasses.dataclass(frozen=True)
class LanguageSettings:
    """The language embeddings that a phase adds."""

    kind: str = ""
    """"vector": one vector a language; "table": one row a token and language. "": this phase adds none."""

    def __post_init__(self) -> None:
        if self.kind and self.kind not in KINDS:
            raise ValueError(
                f"language kind is {self.kind!r}; expected {', '.join(KINDS)}, or '' for none"
            )

    @property
    def is_on(self) -> bool:
        return bool(self.kind)


def make_language(config: ModelConfig, *, kind: str, dtype: Any = jnp.float32) -> Tree:
    """Returns {"vector": [2, D]} or {"table": [2, V, D]} of zeros; row 0 English, row 1 Korean.

    Raises: ValueError on another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"language embedding kind is {kind!r}; expected one of {', '.join(KINDS)}")
    shape = (2, config.d_model) if kind == "vector" else (2, config.vocab_size, config.d_model)
    return {kind: jnp.zeros(shape, dtype)}
