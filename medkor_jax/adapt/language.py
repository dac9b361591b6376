"""Two extra embeddings, English and Korean, added to each token's own by the token's language; and rows for new Korean tokens.

    lang = make_language(config, kind="vector")        # {"vector": [2, D]}, zeros: changes nothing yet
    lang = lang | rows_of_new(base, new.spelt)         # {"input": [N, D], "output": [N, D]} beside it

Kind `vector` is one vector a language; kind `table` is one row a token and language; kind `tokens` is the vectors and N new
tokens, each with a row of the input embedding and one of the head. All stand in units of the scaled residual stream (after
the sqrt(D) of the input embedding); so does the head's row, that one rate of learning suits both. Which language a token has
is data (`data.language`), and which tokens are new (`data.new_tokens`): not this file's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import Tree, head_table

TOKENS = "tokens"
KINDS = ("vector", "table", TOKENS)
_AT_ONCE = 1024  # new tokens whose rows are made together


@dataclasses.dataclass(frozen=True)
class LanguageSettings:
    """The language embeddings that a phase adds."""

    kind: str = ""
    """"vector": one vector a language; "table": one row a token and language; "tokens": the vectors, and new Korean tokens,
    learnt from the text that the phase trains on. "": this phase adds none."""
    size: Annotated[int, ">= 0"] = 0
    """tokens: how many new ones, such as 6000. 0: none; the other kinds have none."""
    least_seen: Annotated[int, ">= 1"] = 10
    """tokens: how often each must be seen in that text; a row that is seen less learns nothing."""

    def __post_init__(self) -> None:
        if self.kind and self.kind not in KINDS:
            raise ValueError(
                f"language kind is {self.kind!r}; expected {', '.join(KINDS)}, or '' for none"
            )
        if self.adds_tokens and not self.size:
            raise ValueError(
                "language kind is 'tokens' and size 0: say how many new tokens, such as size=6000, or take kind 'vector'"
            )
        if self.size and not self.adds_tokens:
            raise ValueError(
                f"language size is {self.size} and kind {self.kind!r}; only kind 'tokens' adds tokens"
            )

    @property
    def is_on(self) -> bool:
        return bool(self.kind)

    @property
    def adds_tokens(self) -> bool:
        return self.kind == TOKENS

    def check_source(self, steps: int, *, is_rewarded: bool) -> None:
        """Raises: ValueError if there are tokens to learn, and the phase trains on no text to learn them from."""
        if self.adds_tokens and (is_rewarded or not steps):
            raise ValueError(
                "language.kind is 'tokens', which are learnt from the text that the phase trains on, and it trains "
                + ("on its own answers" if steps else "nothing")
                + ": add them in a phase with steps and data"
            )

    def facts(self) -> dict[str, Any]:
        """Returns what decides how a phase is trained."""
        return dataclasses.asdict(self) if self.adds_tokens else {"kind": self.kind}


def make_language(
    config: ModelConfig, *, kind: str, size: int = 0, dtype: Any = jnp.float32
) -> Tree:
    """Returns {"vector": [2, D]} or {"table": [2, V, D]} of zeros, row 0 English, row 1 Korean; of kind "tokens" the vectors, and
    "input" and "output" [size, D], zeros until `rows_of_new` fills them.

    Raises: ValueError on another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"language embedding kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "table":
        return {kind: jnp.zeros((2, config.vocab_size, config.d_model), dtype)}
    rows = dict.fromkeys(("input", "output") if kind == TOKENS else (), (size, config.d_model))
    return {
        name: jnp.zeros(shape, dtype)
        for name, shape in {"vector": (2, config.d_model), **rows}.items()
    }


def rows_of_new(base: Tree, spelt: Sequence[Sequence[int]]) -> Tree:
    """Returns {"input": [N, D], "output": [N, D]}, float32, for tokens that each stand for some of the base's.

    The input row is the mean of theirs, the output row that of the first, both times sqrt(D).
    Source: Kim et al. 2024 (arXiv:2402.14714), section 3.
    """
    scale = base["embed"].shape[1] ** 0.5
    longest = max(map(len, spelt))
    ids = np.array([[*word, *[word[0]] * (longest - len(word))] for word in spelt], np.int32)
    share = np.array([[1 / len(word)] * len(word) + [0] * (longest - len(word)) for word in spelt])
    parts = []
    for at in range(0, len(spelt), _AT_ONCE):
        here = slice(at, at + _AT_ONCE)
        rows = base["embed"][ids[here]].astype(jnp.float32)
        parts.append(jnp.einsum("npd,np->nd", rows, share[here].astype(np.float32)))
    first = head_table(base)[ids[:, 0]].astype(jnp.float32)
    return {"input": jnp.concatenate(parts) * scale, "output": first * scale}
