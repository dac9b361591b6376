"""Prompts of different lengths as one padded batch, with the language of every token.

    routing = Routing.by_token(tokenizer.languages, config.vocab_size)
    prompt = pad_prompts([[2, 17, 5], [2, 9]], routing)         # tokens [2, 32], lengths [3, 2]
    inputs = pad_branches([[2, 17, 5], [2, 9]], [[[4, 4], [8]], [[6]]], routing)     # each prompt read once

Shapes come from two short ladders, so that a long exam compiles a handful of times. Routing is a table walk
that the device can carry on where the prompt ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import struct

from medkor_jax.model.forward import Inputs
from medkor_jax.parallel.mesh import batch_ways

MIN_BUCKET = 32


class Automaton(Protocol):
    """token_class [V], next_state and language [S, classes], int32: see `data.language.LanguageAutomaton`."""

    @property
    def token_class(self) -> np.ndarray: ...

    @property
    def next_state(self) -> np.ndarray: ...

    @property
    def language(self) -> np.ndarray: ...


@struct.dataclass
class Routing:
    """How tokens get their language: an automaton walked from 0, or from the row's language where that is constant.

    mute: [V] float32, added to the logits of the next token: -inf where a row of the embedding means no text, else 0.
    """

    token_class: np.ndarray
    next_state: np.ndarray
    language: np.ndarray
    mute: np.ndarray

    @classmethod
    def by_token(
        cls, automaton: Automaton, vocab_size: int, is_writable: np.ndarray | None = None
    ) -> Routing:
        """vocab_size: rows of the base's embedding, which may outnumber the tokenizer's pieces, or with new tokens be outnumbered
        by them. is_writable: [pieces] (None: all)."""
        vocab_size = max(vocab_size, len(automaton.token_class))
        spare = vocab_size - len(automaton.token_class)
        writable = np.ones(len(automaton.token_class), bool) if is_writable is None else is_writable
        return cls(
            np.pad(automaton.token_class, (0, spare)),
            automaton.next_state,
            automaton.language,
            _mute(writable, vocab_size),
        )

    @classmethod
    def constant(
        cls, vocab_size: int, n_languages: int = 2, is_writable: np.ndarray | None = None
    ) -> Routing:
        itself = np.arange(n_languages, dtype=np.int32)[:, None]
        writable = np.ones(vocab_size, bool) if is_writable is None else is_writable
        return cls(np.zeros(vocab_size, np.int32), itself, itself, _mute(writable, vocab_size))

    def walk(self, tokens: Sequence[int], state: int) -> tuple[np.ndarray, int]:
        """Returns the language of each token, [T] int32, and the state after the last."""
        languages = np.empty(len(tokens), np.int32)
        for t, token_class in enumerate(self.token_class[np.asarray(tokens)]):
            languages[t] = self.language[state, token_class]
            state = int(self.next_state[state, token_class])
        return languages, state


def make_routing(tokenizer: Any, vocab_size: int, *, by_token: bool) -> Routing:
    """Returns the routing of a tokenizer's vocabulary, by token or by document; what it can never write is mute."""
    if by_token:
        return Routing.by_token(tokenizer.languages, vocab_size, tokenizer.is_writable)
    n = max(vocab_size, len(tokenizer.is_writable))
    return Routing.constant(n, is_writable=tokenizer.is_writable)


def _mute(is_writable: np.ndarray, vocab_size: int) -> np.ndarray:
    return np.where(
        np.pad(is_writable, (0, vocab_size - len(is_writable))), np.float32(0), np.float32(-np.inf)
    )


@struct.dataclass
class Prompt:
    """tokens, langs: [B, T] int32, padded on the right; lengths, states: [B] int32; seeds: [B] uint32; is_real: [B] bool."""

    tokens: jax.Array
    langs: jax.Array
    lengths: jax.Array
    states: jax.Array
    seeds: jax.Array
    is_real: jax.Array


def pad_prompts(
    prompts: Sequence[Sequence[int]],
    routing: Routing,
    *,
    seeds: Sequence[int] | None = None,
    languages: Sequence[int] | None = None,
) -> Prompt:
    """Returns the prompts padded to a bucket in both directions; added rows hold one token and are not real.

    languages: where each row's walk through `routing` begins (default 0).
    """
    n, width = pad_rows(len(prompts)), bucket(max(map(len, prompts)))
    tokens, langs = np.zeros((2, n, width), np.int32)
    lengths, states, all_seeds = np.ones(n, np.int32), np.zeros(n, np.int32), np.zeros(n, np.uint32)
    if seeds is not None:
        all_seeds[: len(prompts)] = np.asarray(seeds, np.uint32)
    for b, row in enumerate(prompts):
        tokens[b, : len(row)], lengths[b] = row, len(row)
        langs[b, : len(row)], states[b] = routing.walk(
            row, 0 if languages is None else languages[b]
        )
    # NumPy until a jitted function takes it
    return Prompt(tokens, langs, lengths, states, all_seeds, np.arange(n) < len(prompts))  # type: ignore[arg-type]


def pad_branches(
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    routing: Routing,
    *,
    languages: Sequence[int] | None = None,
) -> Inputs:
    """Returns a row a prompt: the prompt as branch 0, then its continuations one after another as branches 1, 2, ...

    Padded as `pad_prompts` does. Each continuation's positions and languages go on where the prompt ended.
    """
    lengths = [
        len(row) + sum(map(len, branches))
        for row, branches in zip(prompts, continuations, strict=True)
    ]
    tokens, positions, segments, langs, branch_ids = np.zeros(
        (5, pad_rows(len(prompts)), bucket(max(lengths))), np.int32
    )
    for b, (prompt, branches) in enumerate(zip(prompts, continuations)):
        state, at = 0 if languages is None else languages[b], 0
        for number, part in enumerate((prompt, *branches)):
            here, start = slice(at, at + len(part)), len(prompt) if number else 0
            tokens[b, here], segments[b, here], branch_ids[b, here] = part, 1, number
            positions[b, here] = np.arange(start, start + len(part))
            langs[b, here], after = routing.walk(part, state)
            state, at = state if number else after, at + len(part)
    return Inputs(tokens, positions, segments, langs, branch_ids)  # type: ignore[arg-type]


def bucket(n: int) -> int:
    """Returns the least of 32, 48, 64, 96, 128, ... that is at least n: few shapes, at most half padded."""
    power = max(MIN_BUCKET, 1 << (n - 1).bit_length())
    return power * 3 // 4 if power > MIN_BUCKET and n <= power * 3 // 4 else power


def pad_rows(n: int) -> int:
    """Returns the power of two at or above n, made a multiple of the devices that share a batch in the mesh in force."""
    ways, rows = batch_ways(), 1 << (n - 1).bit_length()
    return -(-rows // ways) * ways
