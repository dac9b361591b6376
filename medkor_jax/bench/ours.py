"""Our side: the very step that the phases run, one CPU or accelerator, weights by name.

    ours = Ours(weights="embedded", dtype="float32")
    ours.prepare_training(documents, batch_size=4, seq_len=512, rank=16)
    ours.step()

Documents are packed; logits exist only at positions that carry loss. Batches are laid out and placed before the
clock starts, as they are for the peer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from medkor_jax.adapt.lora import make_lora
from medkor_jax.bench import counts
from medkor_jax.bench.documents import Document, pack
from medkor_jax.bench.worker import Stopwatch
from medkor_jax.io.weights import open_weights
from medkor_jax.model.config import ModelConfig, periodic_kinds
from medkor_jax.model.params import ADAPTABLE, Params, abstract_base, n_leaves_and_params
from medkor_jax.parallel.mesh import MeshShape, make_mesh, place_batch, shard_tree
from medkor_jax.train.retention import Retention
from medkor_jax.train.step import StepSpec, make_state, make_step
from medkor_jax.train.trainable import Group, Schedule, make_optimizer, split

_MANY_STEPS = 1_000_000  # keeps the learning rate where it starts


class Ours:
    def __init__(self, weights: str, dtype: str = "float32", learning_rate: float = 1e-4) -> None:
        self._weights = open_weights(weights)
        self._dtype, self._learning_rate = dtype, learning_rate
        jax.config.update("jax_enable_compilation_cache", False)  # a cached program has no compile time
        jax.set_mesh(make_mesh(MeshShape(data=1), jax.devices()[:1]))

    def prepare_training(
        self, documents: list[Document], batch_size: int, seq_len: int, rank: int, bos_id: int, retention: bool = False
    ) -> dict[str, Any]:
        """Loads, lays out the batch and compiles. retention: the each-layer loss at its defaults in place of the text's."""
        config, mesh = self._weights.config, jax.sharding.get_mesh()
        abstract = abstract_base(config, jnp.dtype(self._dtype))
        base = self._weights.load(jnp.dtype(self._dtype), shard_tree(abstract, mesh))
        lora = make_lora(base, jax.random.key(0), rank=rank, targets=ADAPTABLE)
        trainable, self._frozen = split(Params(base, lora), ("lora",))
        optimizer = _optimizer(trainable, self._learning_rate)
        state = make_state(optimizer, trainable)
        shardings = shard_tree(state, mesh)
        self._state = jax.device_put(state, shardings)
        self._batch = place_batch(pack(documents, batch_size=batch_size, seq_len=seq_len, bos_id=bos_id), mesh)
        self._reference = Params(base) if retention else None
        step = make_step(config, _spec(self._dtype, retention), optimizer, shardings)
        with Stopwatch() as watch:
            self._step = step.lower(self._state, self._frozen, self._reference, self._batch).compile()
        return {"compile_seconds": watch.seconds, "loss_positions": int(self._batch["targets"].shape[1])}

    def step(self) -> dict[str, float]:
        """Returns seconds and the loss before the update."""
        with Stopwatch() as watch:
            self._state, metrics = self._step(self._state, self._frozen, self._reference, self._batch)
            jax.block_until_ready(self._state)
        return watch.to_json() | {"loss": float(metrics["loss"])}

    def prepare_decoding(self, prompts: list[list[int]], max_new_tokens: int, pad_id: int) -> None:
        from medkor_jax.model.decode import Decoder

        self._params = Params(self._weights.load(jnp.dtype(self._dtype), None))
        decoder = Decoder(self._weights.config, dtype=jnp.dtype(self._dtype))
        self._generate = lambda: decoder.generate(self._params, prompts, max_new_tokens=max_new_tokens)

    def generate(self) -> dict[str, Any]:
        with Stopwatch() as watch:
            completions = self._generate()
        return watch.to_json() | {"tokens": [list(map(int, completion.tokens)) for completion in completions]}

    def compile(self, depth: int, batch_size: int, seq_len: int, rank: int) -> dict[str, Any]:
        """Lowers and compiles the step of a model of `depth` layers from abstract inputs alone, and counts in it."""
        config = dataclasses.replace(self._weights.config, layer_kinds=periodic_kinds(depth))
        jax.clear_caches()
        with Stopwatch() as watch:
            compiled, trainable = compile_step(config, self._dtype, batch_size, seq_len, rank)
        leaves, parameters = n_leaves_and_params(trainable)
        return watch.to_json() | {
            "leaves": leaves,
            "parameters": parameters,
            "flops": counts.compiled_matmul_flops(compiled.as_text()),
            "compiler_flops": float(compiled.cost_analysis().get("flops", 0.0)),
            "temporary_bytes": int(compiled.memory_analysis().temp_size_in_bytes),
            "hand_leaves": 2 * len(ADAPTABLE),
            "hand_parameters": counts.lora_parameters(config, rank),
            "hand_flops": counts.step_flops(config, batch_size, seq_len, seq_len, rank),
        }

    def describe(self) -> dict[str, str]:
        device = jax.devices()[0]
        return {"jax": jax.__version__, "device": f"{device.platform} {device.device_kind}", "weights": self._weights.digest}


def compile_step(config: ModelConfig, dtype: str, batch_size: int, seq_len: int, rank: int) -> tuple[Any, Any]:
    """Returns (compiled plain LoRA step, abstract trainable trees); nothing is allocated."""
    base = abstract_base(config, jnp.dtype(dtype))
    lora = jax.eval_shape(lambda key: make_lora(base, key, rank=rank, targets=ADAPTABLE), jax.random.key(0))
    trainable, frozen = split(Params(base, lora), ("lora",))
    optimizer = _optimizer(trainable, 1e-4)
    state = jax.eval_shape(lambda trainable: make_state(optimizer, trainable), trainable)
    ids, weights = (jax.ShapeDtypeStruct((batch_size, seq_len), kind) for kind in (jnp.int32, jnp.float32))
    names = ("tokens", "positions", "segment_ids", "langs", "loss_positions", "targets")
    batch = dict.fromkeys(names, ids) | {"loss_weights": weights}
    step = make_step(config, _spec(dtype, retention=False), optimizer)
    return step.lower(state, frozen, None, batch).compile(), trainable


def _spec(dtype: str, retention: bool) -> StepSpec:
    if retention:
        return StepSpec(dtype=dtype, next_token_weight=0.0, retention=Retention(weight=1.0))
    return StepSpec(dtype=dtype)


def _optimizer(trainable: Any, learning_rate: float) -> Any:
    return make_optimizer((Group("lora", "lora/.*", learning_rate),), Schedule(_MANY_STEPS), trainable)
