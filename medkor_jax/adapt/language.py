"""Two extra embeddings, English and Korean, added to each token's own by the token's language.

    lang = make_language(config, kind="vector")        # {"vector": [2, D]}, zeros: changes nothing yet

Kind `vector` is one vector a language; kind `table` is one row a token and language. Both stand in
units of the scaled residual stream (after the sqrt(D) of the input embedding). Which language a token
has is data (`data.language`), not this file's business.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import Tree

KINDS = ("vector", "table")


def make_language(config: ModelConfig, *, kind: str, dtype: Any = jnp.float32) -> Tree:
    """Returns {"vector": [2, D]} or {"table": [2, V, D]} of zeros; row 0 English, row 1 Korean.

    Raises: ValueError on another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"language embedding kind is {kind!r}; expected one of {', '.join(KINDS)}")
    shape = (2, config.d_model) if kind == "vector" else (2, config.vocab_size, config.d_model)
    return {kind: jnp.zeros(shape, dtype)}
