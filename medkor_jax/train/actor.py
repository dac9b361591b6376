"""The model as the one that answers: it samples with the decoder, and says what it thought of what it said.

    actor = Actor(loaded, spec, mesh, temperature=1.0, max_new_tokens=128)
    samples = actor.sample(params, prompts, seeds, languages)
    nats = actor.nats(params, batch)                # [B, M], by the forward pass that the step differentiates

Weights come with each call: the same arrays that train. It knows nothing of questions or rewards (`rollout`).
"""

from __future__ import annotations

import dataclasses
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.data.packing import Batch
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.model.completion import STOP_TOKEN
from medkor_jax.model.decode import Decoder
from medkor_jax.model.params import Params
from medkor_jax.model.prompts import make_routing
from medkor_jax.model.sampling import Sampling
from medkor_jax.parallel.mesh import place_batch
from medkor_jax.train.step import StepSpec, make_scoring


@dataclasses.dataclass(frozen=True)
class Sample:
    """tokens: up to and with the one that ended it; is_finished: it ended by itself, not at the length.

    nats: -log p of each token as the decoder drew it, under the sampling temperature.
    """

    tokens: tuple[int, ...]
    text: str
    is_finished: bool
    nats: tuple[float, ...] = ()


class Actor:
    """Holds settings, and the model as it is given as the reference, where the loss has a KL weight."""

    def __init__(
        self, loaded: LoadedModel, spec: StepSpec, mesh: jax.sharding.Mesh, *, temperature: float, max_new_tokens: int,
        with_reference: bool = False,
    ) -> None:  # fmt: skip
        """spec: of the step that learns from the samples; without a policy loss, nothing can be asked of `nats`."""
        config, tokenizer = loaded.config, loaded.tokenizer
        self._is_by_token, self._max_new_tokens, self._mesh = loaded.language_unit == "token", max_new_tokens, mesh
        self._reference = loaded.params if with_reference else None
        self._decoder = Decoder(
            config, dtype=jnp.dtype(spec.compute.dtype), sampling=Sampling(temperature), stop_ids=tokenizer.stop_ids,
            with_nats=spec.policy is not None,
            decode=tokenizer.decode,
            routing=make_routing(tokenizer, config.vocab_size, by_token=self._is_by_token),
        )  # fmt: skip
        self._score = make_scoring(config, spec) if spec.policy is not None else None

    def sample(
        self, params: Params, prompts: Sequence[Sequence[int]], seeds: Sequence[int], languages: Sequence[int]
    ) -> list[Sample]:
        """Returns one sample a prompt, decoded together. seeds, languages: one a prompt."""
        completions = self._decoder.generate(
            params, prompts, max_new_tokens=self._max_new_tokens, seeds=seeds,
            languages=None if self._is_by_token else languages,
        )  # fmt: skip
        return [Sample(c.tokens, c.text, c.finish == STOP_TOKEN, c.nats) for c in completions]

    def nats(self, params: Params, batch: Batch) -> np.ndarray:
        """Returns -log p of each target under `params`, [B, M] float32, 0 where it has no weight."""
        return np.where(batch["loss_weights"] > 0, self._score(params, place_batch(batch, self._mesh)), np.float32(0))

    def reference_nats(self, batch: Batch) -> np.ndarray:
        return self.nats(self._reference, batch)

    @property
    def has_reference(self) -> bool:
        return self._reference is not None
