"""A model with its tokenizer, as exams ask for it: logits after a prompt, or greedy text.

    scorer = ModelScorer(params, config, tokenizer, dtype=jnp.float32, mesh=mesh, batch_size=16)
    scorer.next_logits(prompts, letter_ids)                     # float32 [prompts, ids]
    scorer.generate(prompts, max_new_tokens=64, stop=(".",))    # list[str]

Letters need no cache and no vocabulary: one forward pass, and of the head only the rows asked for. Text comes
from the one decoder. Both go longest first, so that neighbours pad little and what does not fit fails at once.

Does not build prompts, read answers or add bos.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.data.language import ENGLISH, KOREAN, token_languages
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.decode import Decoder, replicate
from medkor_jax.model.forward import Inputs, forward, spread
from medkor_jax.model.params import Params, head_table
from medkor_jax.model.prompts import Prompt, Routing, pad_prompts

ROUTES = ("token", "document")


class ModelScorer:
    """Implements `eval.exam.Scorer`."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        dtype: Any,
        mesh: jax.sharding.Mesh | None = None,
        batch_size: int,
        route: str = "token",
    ) -> None:
        """route: "token" takes each token's language from its text, "document" makes a prompt with any Hangul Korean.

        Raises: ValueError on another route, or a batch of no rows.
        """
        if route not in ROUTES:
            raise ValueError(f"route is {route!r}, expected one of {', '.join(ROUTES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self._params, self._config, self._tokenizer, self._mesh = params, config, tokenizer, mesh
        self._dtype, self._batch_size, self._is_by_token = jnp.dtype(dtype), batch_size, route == "token"
        by_token = Routing.by_token(tokenizer.languages, config.vocab_size) if self._is_by_token else None
        self._routing = by_token or Routing.constant(config.vocab_size)
        stop_ids = (tokenizer.eos_id, tokenizer.end_of_turn_id)
        self._decoder = Decoder(
            config,
            dtype=dtype,
            stop_ids=[token for token in stop_ids if token is not None],
            decode=self._decode,
            routing=by_token,
        )

    def next_logits(self, prompts: list[list[int]], token_ids: list[int]) -> np.ndarray:
        """Returns float32 [prompts, token_ids]: the logits after each prompt's last token, at `token_ids`."""
        ids = np.asarray(token_ids, np.int32)

        def ask(batch: list[list[int]]) -> list[np.ndarray]:
            prompt = pad_prompts(batch, self._routing, languages=self._languages(batch))
            logits = _last_logits(self._params, prompt, ids, config=self._config, dtype=self._dtype)
            return list(np.asarray(logits))[: len(batch)]

        return np.stack(self._in_batches(prompts, ask))

    def generate(self, prompts: list[list[int]], *, max_new_tokens: int, stop: tuple[str, ...]) -> list[str]:
        """Returns the greedy continuations as text without control tokens, each cut before its first stop string."""

        def ask(batch: list[list[int]]) -> list[str]:
            completions = self._decoder.generate(
                self._params, batch, max_new_tokens=max_new_tokens, stop=stop, languages=self._languages(batch)
            )
            return [completion.text for completion in completions]

        return self._in_batches(prompts, ask)

    def _in_batches(self, prompts: list[list[int]], ask: Callable[[list[list[int]]], list[Any]]) -> list[Any]:
        """Returns the answers in the order of `prompts`, asked longest first under the mesh."""
        if not prompts or not all(prompts):
            raise ValueError("every prompt needs at least one token (bos), and there must be a prompt")
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        answers: list[Any] = [None] * len(prompts)
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            for at in range(0, len(order), self._batch_size):
                batch = order[at : at + self._batch_size]
                for i, answer in zip(batch, ask([prompts[i] for i in batch]), strict=True):
                    answers[i] = answer
        return answers

    def _languages(self, batch: list[list[int]]) -> list[int] | None:
        """Returns one language a prompt for routing by document, None for routing by token."""
        if self._is_by_token:
            return None
        has_korean = [(token_languages(np.asarray(prompt), self._tokenizer) == KOREAN).any() for prompt in batch]
        return [KOREAN if found else ENGLISH for found in has_korean]

    def _decode(self, ids: Sequence[int]) -> str:
        """Returns the text; rows of the embedding beyond the vocabulary have none."""
        return self._tokenizer.decode([i for i in ids if i < self._tokenizer.vocab_size])


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _last_logits(params: Params, prompt: Prompt, token_ids: jax.Array, *, config: ModelConfig, dtype: Any) -> jax.Array:
    """Returns float32 [B, ids], whole on every device."""
    prompt = jax.tree.map(spread, prompt)
    positions = jnp.broadcast_to(jnp.arange(prompt.tokens.shape[1], dtype=jnp.int32), prompt.tokens.shape)
    segments = (positions < prompt.lengths[:, None]).astype(jnp.int32)
    hidden = forward(params, config, Inputs(prompt.tokens, positions, segments, prompt.langs), dtype=dtype)
    last = jnp.take_along_axis(hidden, prompt.lengths[:, None, None] - 1, axis=1)[:, 0]
    rows = head_table(params.base)[token_ids].astype(dtype)
    return replicate(jnp.einsum("bd,cd->bc", last, rows, preferred_element_type=jnp.float32))
