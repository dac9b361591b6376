r"""Prompts to continuations: one decoder for exams, translation, reasoning and rollouts.

    decoder = Decoder(config, dtype=jnp.bfloat16, stop_ids=tokenizer.stop_ids, decode=tokenizer.decode,
                      routing=Routing.by_token(tokenizer.languages, config.vocab_size))
    decoder.generate(params, prompts, max_new_tokens=64, stop=("\n\n",))      # list[Completion]

Prompts are right-padded to a length bucket and read in one pass; then tokens come `check_every` at a time from
one jitted loop whose cache is donated, which ends as soon as every row is done. In between the host looks for
stop strings and gives the cache more room if it needs it. The weights are used as they lie: call under
`jax.set_mesh(mesh)` with the training parameters. Greedy tokens are those of the full forward pass.

Does not split a list of prompts into batches, share the cache of a common prompt, or return logits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from medkor_jax.model import cache as kv
from medkor_jax.model.cached_forward import read_prompt, read_token
from medkor_jax.model.completion import NOTHING, Completion, Row
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.forward import project_logits
from medkor_jax.model.params import Params, new_head_rows
from medkor_jax.model.prompts import Prompt, Routing, bucket, pad_prompts
from medkor_jax.model.sampling import Sampling, choose_tokens, restrict
from medkor_jax.parallel.mesh import replicate, spread


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the jitted functions are compiled for, besides shapes."""

    config: ModelConfig
    dtype: Any
    sampling: Sampling
    stop_ids: tuple[int, ...]
    check_every: int
    with_nats: bool


class State(struct.PyTreeNode):
    """The rows after some tokens. `tokens` [B] were chosen but not read yet; they belong at `positions` [B]."""

    cache: kv.Cache
    tokens: jax.Array
    langs: jax.Array
    positions: jax.Array
    states: jax.Array
    seeds: jax.Array
    is_done: jax.Array
    n_new: jax.Array  # [] int32: tokens chosen so far


class Decoder:
    """Holds settings only; weights come with each call, so one decoder serves a model while it learns."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: Any,
        sampling: Sampling = Sampling(),
        stop_ids: Sequence[int] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
        routing: Routing | None = None,
        check_every: int = 8,
        room: int = 256,
        with_nats: bool = False,
        to_search: Callable[[str], str] = str,
    ) -> None:
        """decode: token ids to text. routing: how tokens get their language, and which are never written; None for one
        language a row, given with each call, and no token mute. to_search: what of a text stop strings are looked for in.
        with_nats: completions say how likely each token was where it was drawn, under temperature.
        check_every: tokens between two looks of the host. room: new tokens a row that the cache has room for at first.
        """
        for name, n in (("check_every", check_every), ("room", room)):
            if n < 1:
                raise ValueError(f"{name} is {n}; it must be at least 1 token")
        self.settings = Settings(
            config, jnp.dtype(dtype), sampling, tuple(stop_ids), check_every, with_nats
        )
        self._decode, self._room, self._to_search = decode, room, to_search
        self._is_constant = routing is None or routing.language.shape[1] == 1
        self._routing = Routing.constant(config.vocab_size) if routing is None else routing

    def generate(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        seeds: Sequence[int] | None = None,
        languages: Sequence[int] | None = None,
        on_text: Callable[[list[str]], bool | None] | None = None,
    ) -> list[Completion]:
        """Returns one completion a prompt, all decoded in one batch.

        seeds: one a row, needed when sampling. languages: one a row, only for constant routing (default 0).
        on_text: called with every row's text so far, after each `check_every` tokens; the last call has what is returned. True
        ends all rows there.

        Raises: ValueError, before anything is compiled, on an empty or too long prompt or missing arguments.
        """
        self._check(prompts, max_new_tokens, stop, seeds, languages)
        settings, config = self.settings, self.settings.config
        longest = max(map(len, prompts))
        prompt = pad_prompts(prompts, self._routing, seeds=seeds, languages=languages)
        # Rows may stop early, so a long cache starts smaller and grows, rather than being read whole at every step.
        # Every growth compiles: a short answer is not worth one, and whoever watches would wait for it.
        room = max_new_tokens if on_text else min(max_new_tokens, self._room)
        size = bucket(prompt.tokens.shape[1] + room)
        state, *emitted = _start(params, prompt, self._routing, settings=settings, size=size)
        rows = [Row(self._decode, stop, settings.stop_ids, self._to_search) for _ in prompts]
        n_new = 1
        while True:
            for row, new, nats in zip(rows, *map(np.asarray, emitted)):
                row.take(new, nats)
            is_enough = bool(on_text and on_text([row.completion().text for row in rows]))
            if is_enough or n_new == max_new_tokens or all(row.finish for row in rows):
                return [row.completion() for row in rows]
            n_steps = min(settings.check_every, max_new_tokens - n_new)
            if longest + n_new + n_steps > size:
                size = bucket(longest + n_new + n_steps)
                state = _grow(state, config=config, size=size)
            is_done = np.ones(prompt.lengths.shape, bool)
            is_done[: len(rows)] = [row.finish is not None for row in rows]
            state, *emitted = _continue(
                params, state, self._routing, is_done, np.int32(n_steps), settings=settings
            )
            n_new += n_steps

    def _check(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: Sequence[str],
        seeds: Sequence[int] | None,
        languages: Sequence[int] | None,
    ) -> None:
        config = self.settings.config
        if not prompts or not all(len(p) for p in prompts):
            raise ValueError(
                "every prompt needs at least one token (bos), and there must be a prompt"
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        longest = max(map(len, prompts))
        if longest + max_new_tokens > config.max_positions:
            raise ValueError(
                f"the longest prompt has {longest} tokens; with max_new_tokens {max_new_tokens} that is more than the "
                f"model's {config.max_positions} positions. Shorten the prompt or ask for fewer tokens"
            )
        low, high = min(map(min, prompts)), max(map(max, prompts))
        n = len(self._routing.token_class)
        if low < 0 or high >= n:
            raise ValueError(f"prompts hold token ids {low} to {high}; the model has 0 to {n - 1}")
        if stop and self._decode is None:
            raise ValueError(
                "stop strings need text: make the Decoder with decode=tokenizer.decode"
            )
        if "" in stop:
            raise ValueError("an empty stop string stops everything; remove it")
        if self.settings.sampling.temperature > 0 and seeds is None:
            raise ValueError(
                "sampling needs `seeds`, one a prompt, so that a row can be drawn again"
            )
        if languages is not None and not self._is_constant:
            raise ValueError(
                "`languages` are given, but routing is by token; make the Decoder without `routing`"
            )
        for name, given in (("seeds", seeds), ("languages", languages)):
            if given is not None and len(given) != len(prompts):
                raise ValueError(
                    f"{len(given)} {name} for {len(prompts)} prompts; expected one a prompt"
                )


def n_compilations() -> dict[str, int]:
    """Returns how many variants of each jitted function this process holds."""
    jitted: dict[str, Any] = {"start": _start, "continue": _continue, "grow": _grow}
    return {name: function._cache_size() for name, function in jitted.items()}


@functools.partial(jax.jit, static_argnames=("settings", "size"))
def _start(
    params: Params, prompt: Prompt, routing: Routing, *, settings: Settings, size: int
) -> tuple[State, jax.Array, jax.Array]:
    """Returns the state after reading the prompts and choosing a token each, those tokens, [B, 1], and their nats."""
    prompt = jax.tree.map(spread, prompt)
    lengths = prompt.lengths
    hidden, cache = read_prompt(
        params,
        settings.config,
        prompt.tokens,
        lengths,
        prompt.langs,
        size=size,
        dtype=settings.dtype,
    )
    # Before its first token a row stands on its last prompt token; `_choose` moves it on.
    state = State(
        cache,
        prompt.tokens[:, 0],
        prompt.langs[:, 0],
        lengths - 1,
        prompt.states,
        prompt.seeds,
        ~prompt.is_real,
        jnp.zeros((), jnp.int32),
    )
    state, emitted, nats = _choose(params, state, routing, hidden, settings)
    return state, replicate(emitted[:, None]), replicate(nats[:, None])


@functools.partial(jax.jit, static_argnames=("settings",), donate_argnames=("state",))
def _continue(
    params: Params,
    state: State,
    routing: Routing,
    is_done: jax.Array,
    n_steps: jax.Array,
    *,
    settings: Settings,
) -> tuple[State, jax.Array, jax.Array]:
    """Returns the state after up to `n_steps` more tokens, those, [B, check_every], -1 where a row had ended, and their nats.

    is_done: [B], rows that the host found to be finished. Donates `state`.
    """
    state = state.replace(is_done=state.is_done | spread(is_done))

    def step(
        carry: tuple[jax.Array, State, jax.Array, jax.Array],
    ) -> tuple[jax.Array, State, jax.Array, jax.Array]:
        i, state, emitted, all_nats = carry
        hidden, cache = read_token(
            params,
            settings.config,
            state.cache,
            state.tokens,
            state.positions,
            state.langs,
            dtype=settings.dtype,
        )
        state, tokens, nats = _choose(params, state.replace(cache=cache), routing, hidden, settings)
        put = lambda into, new: jax.lax.dynamic_update_slice(into, new[:, None], (0, i))
        return i + 1, state, put(emitted, tokens), put(all_nats, nats)

    def is_going(carry: tuple[jax.Array, State, jax.Array, jax.Array]) -> jax.Array:
        return (carry[0] < n_steps) & ~jnp.all(carry[1].is_done)

    emitted = spread(jnp.full((is_done.shape[0], settings.check_every), NOTHING, jnp.int32))
    start = (jnp.zeros((), jnp.int32), state, emitted, jnp.zeros(emitted.shape, jnp.float32))
    _, state, emitted, nats = jax.lax.while_loop(is_going, step, start)
    return state, replicate(emitted), replicate(nats)


# a longer ring cannot reuse the memory of a shorter
@functools.partial(jax.jit, static_argnames=("config", "size"))
def _grow(state: State, *, config: ModelConfig, size: int) -> State:
    return state.replace(cache=kv.grow(state.cache, config, size=size))


def _choose(
    params: Params, state: State, routing: Routing, hidden: jax.Array, settings: Settings
) -> tuple[State, jax.Array, jax.Array]:
    """Returns the state moved on to a token chosen from `hidden` [B, D], what each row emits, [B], and its nats (0 unless asked)."""
    logits = project_logits(params.base, hidden, new_head_rows(params)) + jnp.asarray(routing.mute)
    tokens = choose_tokens(logits, settings.sampling, state.seeds, state.n_new)
    nats = jnp.zeros(tokens.shape, jnp.float32)
    if settings.with_nats:
        is_drawn = settings.sampling.temperature > 0
        drawn_from = restrict(logits, settings.sampling) if is_drawn else logits
        nats = (
            jax.nn.logsumexp(drawn_from, axis=-1)
            - jnp.take_along_axis(drawn_from, tokens[:, None], axis=-1)[:, 0]
        )
    emitted = jnp.where(state.is_done, NOTHING, tokens)
    tokens = jnp.where(state.is_done, state.tokens, tokens)
    token_class = jnp.asarray(routing.token_class)[tokens]
    is_stop = jnp.isin(tokens, jnp.array(settings.stop_ids, jnp.int32))
    state = state.replace(
        tokens=tokens,
        langs=jnp.asarray(routing.language)[state.states, token_class],
        states=jnp.asarray(routing.next_state)[state.states, token_class],
        positions=state.positions + jnp.where(state.is_done, 0, 1),
        is_done=state.is_done | is_stop,
        n_new=state.n_new + 1,
    )
    return state, emitted, nats
