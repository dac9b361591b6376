"""A model with its tokenizer, as exams ask for it: logits after a prompt, or greedy text.

    scorer = ModelScorer(loaded, dtype=jnp.float32, mesh=mesh, batch_size=16)
    scorer.next_logits(prompts, letter_ids)                     # float32 [prompts, ids]
    scorer.generate(prompts, max_new_tokens=64, stop=(".",))    # list[str]
    scorer.complete(prompts, max_new_tokens=64, stop=())        # list[Continuation]: also whether each ended itself
    scorer.continuation_nats(prompts, continuations)            # for each prompt float64 [its continuations]

Letters need no cache and no vocabulary: one forward pass, and of the head only the rows asked for. Text comes
from the one decoder. Both go longest first, so that neighbours pad little and what does not fit fails at once.

Does not build prompts, read answers or add bos.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.data.language import ENGLISH, KOREAN, check_language_unit, token_languages
from medkor_jax.data.thinking import count_thought, hide_thought
from medkor_jax.eval.scoring import Continuation
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.model.completion import LENGTH
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.decode import Decoder
from medkor_jax.model.forward import Inputs, forward, project_logits
from medkor_jax.model.params import Params, head_rows, new_head_rows
from medkor_jax.model.prompts import Prompt, bucket, make_routing, pad_branches, pad_prompts
from medkor_jax.parallel.mesh import replicate, spread

_POSITIONS = 32  # whose logits exist at once in `continuation_nats`


class ModelScorer:
    """Implements `eval.scoring.Scorer`."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        dtype: Any,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int,
    ) -> None:
        """Its language_unit: "token" takes each token's language from its text, "document" makes a prompt with any Hangul Korean.

        Raises: ValueError on another language_unit, or a batch of no rows.
        """
        config, tokenizer, language_unit = loaded.config, loaded.tokenizer, loaded.language_unit
        self.style = loaded.style
        check_language_unit(language_unit)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.params, self.config, self.tokenizer, self._mesh = (
            loaded.params,
            config,
            tokenizer,
            mesh,
        )
        self._dtype, self._batch_size, self._is_by_token = (
            jnp.dtype(dtype),
            batch_size,
            language_unit == "token",
        )
        self.routing = make_routing(tokenizer, config.vocab_size, by_token=self._is_by_token)
        self.decoder = Decoder(
            config,
            dtype=dtype,
            stop_ids=tokenizer.stop_ids,
            decode=tokenizer.decode,
            to_search=hide_thought,
            routing=self.routing,
        )

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    def next_logits(self, prompts: list[list[int]], token_ids: list[int]) -> np.ndarray:
        """Returns float32 [prompts, token_ids]: the logits after each prompt's last token, at `token_ids`."""
        ids = np.asarray(token_ids, np.int32)

        def ask(batch: list[list[int]]) -> list[np.ndarray]:
            prompt = pad_prompts(batch, self.routing, languages=self.languages_of(batch))
            logits = _last_logits(self.params, prompt, ids, config=self.config, dtype=self._dtype)
            return list(np.asarray(logits))[: len(batch)]

        return np.stack(self._in_batches(prompts, ask))

    def generate(
        self, prompts: list[list[int]], *, max_new_tokens: int, stop: tuple[str, ...]
    ) -> list[str]:
        """Returns the greedy continuations as text, of control tokens only the marks of a thought, each cut before its first
        stop string outside of a thought."""
        return [
            written.text
            for written in self.complete(prompts, max_new_tokens=max_new_tokens, stop=stop)
        ]

    def complete(
        self, prompts: list[list[int]], *, max_new_tokens: int, stop: tuple[str, ...]
    ) -> list[Continuation]:
        """Returns what `generate` does, with the number of tokens and whether the text ended before the limit."""

        def ask(batch: list[list[int]]) -> list[Continuation]:
            completions = self.decoder.generate(
                self.params,
                batch,
                max_new_tokens=max_new_tokens,
                stop=stop,
                languages=self.languages_of(batch),
            )
            return [
                Continuation(
                    c.text,
                    len(c.tokens),
                    c.finish != LENGTH,
                    count_thought(c.tokens, self.tokenizer),
                )
                for c in completions
            ]

        return self._in_batches(prompts, ask)

    def continuation_nats(
        self, prompts: list[list[int]], continuations: list[list[list[int]]]
    ) -> list[np.ndarray]:
        """Returns for each prompt float64 [its continuations]: the negative log-likelihood of the tokens of each.

        A prompt is read once for all its continuations; once a language, where a document has one for all its tokens.
        """
        if not all(own and all(own) for own in continuations):
            raise ValueError(
                "every prompt needs a continuation, and every continuation at least one token"
            )
        rows: dict[tuple[int, int], list[int]] = collections.defaultdict(
            list
        )  # (prompt, language): numbers of continuations
        for i, (prompt, own) in enumerate(zip(prompts, continuations, strict=True)):
            for number, language in enumerate(
                self.languages_of([[*prompt, *tokens] for tokens in own]) or [ENGLISH] * len(own)
            ):
                rows[i, language].append(number)
        n_tokens = {
            key: len(prompts[key[0]]) + sum(len(continuations[key[0]][c]) for c in own)
            for key, own in rows.items()
        }

        def ask(batch: list[tuple[int, int]]) -> list[np.ndarray]:
            asked = [[continuations[i][c] for c in rows[i, language]] for i, language in batch]
            return self._branch_nats(
                [prompts[i] for i, _ in batch], asked, [language for _, language in batch]
            )

        found = [np.empty(len(own)) for own in continuations]
        for (i, language), nats in zip(
            rows, self._in_batches(list(rows), ask, length=n_tokens.__getitem__), strict=True
        ):
            found[i][rows[i, language]] = nats
        return found

    def _branch_nats(
        self, prompts: list[list[int]], continuations: list[list[list[int]]], languages: list[int]
    ) -> list[np.ndarray]:
        inputs = pad_branches(prompts, continuations, self.routing, languages=languages)
        # Only what predicts a continuation's token meets the head: all of the batch in one list, padded to one of few sizes.
        places, targets, owners = [], [], []
        firsts = np.cumsum([0, *map(len, continuations)])
        for b, (prompt, own) in enumerate(zip(prompts, continuations)):
            start = len(prompt)
            for c, tokens in enumerate(own):
                places += [(b, len(prompt) - 1), *((b, start + t) for t in range(len(tokens) - 1))]
                targets += tokens
                owners += [firsts[b] + c] * len(tokens)
                start += len(tokens)
        spare = bucket(max(len(places), 4 * self._batch_size)) - len(places)
        at, asked = (
            np.array(places + [(0, 0)] * spare, np.int32),
            np.array(targets + [0] * spare, np.int32),
        )
        nats = np.asarray(
            _nats_at(self.params, inputs, at, asked, config=self.config, dtype=self._dtype),
            np.float64,
        )
        return np.split(np.bincount(owners, weights=nats[: len(owners)]), firsts[1:-1])

    def _in_batches(
        self,
        prompts: list[Any],
        ask: Callable[[list[Any]], list[Any]],
        length: Callable[[Any], int] = len,
    ) -> list[Any]:
        """Returns the answers in the order of `prompts`, asked longest first under the mesh."""
        if not prompts or not all(map(length, prompts)):
            raise ValueError(
                "every prompt needs at least one token (bos), and there must be a prompt"
            )
        order = sorted(range(len(prompts)), key=lambda i: -length(prompts[i]))
        answers: list[Any] = [None] * len(prompts)
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            for at in range(0, len(order), self._batch_size):
                batch = order[at : at + self._batch_size]
                for i, answer in zip(batch, ask([prompts[i] for i in batch]), strict=True):
                    answers[i] = answer
        return answers

    def languages_of(self, batch: list[list[int]]) -> list[int] | None:
        """Returns one language a prompt for routing by document, None for routing by token."""
        if self._is_by_token:
            return None
        has_korean = [
            (token_languages(np.asarray(prompt), self.tokenizer) == KOREAN).any()
            for prompt in batch
        ]
        return [KOREAN if found else ENGLISH for found in has_korean]


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _last_logits(
    params: Params, prompt: Prompt, token_ids: jax.Array, *, config: ModelConfig, dtype: Any
) -> jax.Array:
    """Returns float32 [B, ids], whole on every device."""
    hidden, lengths = read_prompts(params, prompt, config, dtype), prompt.lengths
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    rows = head_rows(params, token_ids).astype(dtype)
    return replicate(jnp.einsum("bd,cd->bc", last, rows, preferred_element_type=jnp.float32))


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _nats_at(
    params: Params,
    inputs: Inputs,
    at: jax.Array,
    targets: jax.Array,
    *,
    config: ModelConfig,
    dtype: Any,
) -> jax.Array:
    """Returns float32 [P]: the negative log-likelihood of targets[p] after row and place at[p], `_POSITIONS` at a time."""
    hidden = forward(params, config, jax.tree.map(spread, inputs), dtype=dtype)[at[:, 0], at[:, 1]]
    fold = lambda x: x.reshape(-1, math.gcd(_POSITIONS, x.shape[0]), *x.shape[1:])

    def nats(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, targets = chunk
        logits = project_logits(params.base, hidden, new_head_rows(params))
        return (
            jax.nn.logsumexp(logits, axis=-1)
            - jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        )

    return replicate(jax.lax.map(nats, (fold(hidden), fold(targets))).reshape(-1))


def read_prompts(params: Params, prompt: Prompt, config: ModelConfig, dtype: Any) -> jax.Array:
    """Returns the final hidden states of padded prompts, [B, T, D]."""
    prompt = jax.tree.map(spread, prompt)
    positions = jnp.broadcast_to(
        jnp.arange(prompt.tokens.shape[1], dtype=jnp.int32), prompt.tokens.shape
    )
    segments = (positions < prompt.lengths[:, None]).astype(jnp.int32)
    return forward(
        params, config, Inputs(prompt.tokens, positions, segments, prompt.langs), dtype=dtype
    )
