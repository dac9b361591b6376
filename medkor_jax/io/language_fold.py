"""Language embeddings as part of the input table: E'[token] = E[token] + lang[language of token] / sqrt(D); behind it the
rows of new tokens.

    fold = make_fold(params.lang, tokenizer.languages, config, "float32")
    table = fold.apply(params.base["embed"])

A piece's language is a fact of the piece, with one exception: UTF-8 continuation bytes (80 to BF), in which the
vocabulary spells characters that it lacks, take the language of their character. One row cannot say both. They
are folded as Korean, which is exact for every syllable spelt so; a character of another script spelt in bytes
(a rare Chinese character or sign) then differs at those bytes. How many pieces that concerns is counted, so that
it can be said or refused.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import Tree
from medkor_jax.model.prompts import Automaton, Routing

_ROWS = 16384  # of the table at a time


@dataclasses.dataclass(frozen=True)
class LanguageFold:
    """languages: [V + N] int32, the row each token is folded with, N of them new; scale: what the model multiplies its embedding by."""

    lang: Tree
    languages: np.ndarray
    scale: float
    changes: bool  # False: every embedding is zero, the table stays as it is
    n_approximated: int  # pieces whose embedding depends on their neighbours

    def apply(self, embed: jax.Array) -> np.ndarray:
        """Returns the folded table [V, D], float32, behind it the rows of new tokens; `embed` itself, in its own dtype, where
        nothing changes."""
        table, new = np.asarray(embed), self.rows_of_new()
        if not self.changes:
            return table
        folded = np.empty(
            (len(table) + (0 if new is None else len(new)), table.shape[1]), np.float32
        )
        if new is not None:
            folded[len(table) :] = new
        for at in range(0, len(table), _ROWS):
            rows = slice(at, min(at + _ROWS, len(table)))
            folded[rows] = (
                table[rows].astype(np.float32)
                + self._delta(rows, self.languages[rows]) / self.scale
            )
        return folded

    def rows_of_new(self) -> np.ndarray | None:
        """Returns the rows [N, D] of new tokens that stand behind the table, float32; None if there are none."""
        if "input" not in self.lang:
            return None
        rows = np.asarray(self.lang["input"], np.float32)
        vectors = np.asarray(self.lang["vector"], np.float32)
        return (rows + vectors[self.languages[-len(rows) :]]) / self.scale

    def note(self) -> str:
        return (
            f"{self.n_approximated} byte pieces (UTF-8 continuation bytes) have a language that depends on the bytes before "
            "them, which one row a token cannot say; they are folded as Korean. Exact for all text but characters other than "
            "Hangul that the vocabulary lacks and spells in bytes (measured: 8 of 100,000 tokens of the Korean licensing exams)"
        )

    def _delta(self, rows: slice, languages: np.ndarray) -> np.ndarray:
        """Returns what is added to the scaled stream for these tokens, [rows, D] float32."""
        delta = np.zeros((), np.float32)
        if "vector" in self.lang:
            delta = delta + np.asarray(self.lang["vector"], np.float32)[languages]
        if "table" in self.lang:
            table = np.asarray(self.lang["table"][:, rows], np.float32)
            delta = delta + table[languages, np.arange(table.shape[1])]
        return delta


def make_fold(lang: Tree, automaton: Automaton, config: ModelConfig, dtype: str) -> LanguageFold:
    """dtype: of the export. The scale sqrt(D) is rounded to it, as whoever runs the model in it will do."""
    routing = Routing.by_token(automaton, config.vocab_size)
    lowest, highest = (
        routing.language.min(axis=0)[routing.token_class],
        routing.language.max(axis=0)[routing.token_class],
    )
    scale = float(jnp.asarray(config.d_model**0.5, jnp.dtype(dtype)))
    changes = any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(lang))
    fold = LanguageFold(lang, highest, scale, changes, 0)
    unsure = np.flatnonzero(lowest != highest)
    if not changes or not len(unsure):
        return fold
    differ = [_differs(fold, int(token), int(lowest[token])) for token in unsure]
    return dataclasses.replace(fold, n_approximated=sum(differ))


def _differs(fold: LanguageFold, token: int, other: int) -> bool:
    rows = slice(token, token + 1)
    return bool(
        np.any(fold._delta(rows, np.array([other])) != fold._delta(rows, fold.languages[rows]))
    )
