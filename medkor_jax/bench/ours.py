"""Our side: the very step, decoder and sampler that the phases run, on one device or all of them, weights by name.

    ours = Ours(weights="embedded", dtype="float32")
    ours.prepare_training(documents, batch_size=4, seq_len=512, rank=16, bos_id=2)
    ours.step()

Documents are packed; logits exist only at positions that carry loss. Batches are laid out and placed before the
clock starts, as they are for the peer. The dtype is float32 on a CPU and bfloat16 elsewhere, unless it is given.
"""

from __future__ import annotations

import dataclasses
import statistics
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medkor_jax.adapt.lora import make_lora
from medkor_jax.bench import counts
from medkor_jax.bench.documents import Document, pack, to_encoded
from medkor_jax.bench.stopwatch import Stopwatch, peak_memory_bytes
from medkor_jax.data.packing import PackedRows
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.weights import open_weights
from medkor_jax.model.config import ModelConfig, periodic_kinds
from medkor_jax.model.params import ADAPTABLE, Params, abstract_base, n_leaves_and_params
from medkor_jax.parallel.mesh import MeshShape, make_mesh, place_batch, shard_tree
from medkor_jax.plan.program import read_program
from medkor_jax.train.actor import Actor, Sample
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.retention import Retention
from medkor_jax.train.reward_settings import RewardSettings
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import StepSpec, make_state, make_step, step_spec
from medkor_jax.train.trainable import OptimizerRule, Schedule, make_optimizer, split

_MANY_STEPS = 1_000_000  # keeps the learning rate where it starts


class Ours:
    def __init__(
        self, weights: str, dtype: str = "float32", learning_rate: float = 1e-4, remat: str = "none", n_devices: int = 1
    ) -> None:
        """dtype "": by the device. n_devices: 0 takes all; the weights are spread over them, and the batch."""
        self._weights = open_weights(weights)
        self._dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        self._learning_rate, self._remat = learning_rate, remat
        jax.config.update("jax_enable_compilation_cache", False)  # a cached program has no compile time
        devices = jax.devices()[: n_devices or None]
        jax.set_mesh(make_mesh(MeshShape(data=1, fsdp=len(devices)), devices))

    def prepare_training(
        self, documents: list[Document], batch_size: int, seq_len: int, rank: int, bos_id: int, retention: bool = False
    ) -> dict[str, Any]:
        """Loads, lays out the batch and compiles. retention: the each-layer loss at its defaults in place of the text's."""
        config, mesh = self._weights.config, jax.sharding.get_mesh()
        params = self._load(rank)
        trainable, self._frozen = split(params, ("lora",))
        optimizer = _optimizer(trainable, self._learning_rate)
        state = make_state(optimizer, trainable)
        shardings = shard_tree(state, mesh)
        self._state = jax.device_put(state, shardings)
        self._batch = place_batch(pack(documents, batch_size=batch_size, seq_len=seq_len, bos_id=bos_id), mesh)
        self._reference = Params(params.base) if retention else None
        step = make_step(config, _spec(self._dtype, retention, self._remat), optimizer, shardings)
        with Stopwatch() as watch:
            self._step = step.lower(self._state, self._frozen, self._reference, self._batch).compile()
        return {
            "compile_seconds": watch.seconds, "loss_positions": int(self._batch["targets"].shape[1]),
            "parameters": n_leaves_and_params(trainable)[1], "tokens": int((self._batch["segment_ids"] > 0).sum()),
        }  # fmt: skip

    def step(self) -> dict[str, float]:
        """Returns seconds and the loss before the update."""
        with Stopwatch() as watch:
            self._state, metrics = self._step(self._state, self._frozen, self._reference, self._batch)
            jax.block_until_ready(self._state)
        return watch.to_json() | {"loss": float(metrics["loss"])}

    def prepare_decoding(self, prompts: list[list[int]], max_new_tokens: int, pad_id: int) -> None:
        from medkor_jax.model.decode import Decoder

        self._params = self._load(rank=0)
        decoder = Decoder(self._weights.config, dtype=jnp.dtype(self._dtype))
        self._generate = lambda: decoder.generate(self._params, prompts, max_new_tokens=max_new_tokens)

    def generate(self) -> dict[str, Any]:
        with Stopwatch() as watch:
            completions = self._generate()
        return watch.to_json() | {"tokens": [list(map(int, completion.tokens)) for completion in completions]}

    def prepare_rollout(self, prompts: list[list[int]], max_new_tokens: int, rank: int) -> None:
        """The sampler of GRPO as `train.rollout` uses it, but for text: what is drawn is not read, and nothing ends early."""
        config, v = self._weights.config, self._weights.config.vocab_size
        no_text: Any = types.SimpleNamespace(stop_ids=(), vocab_size=v, is_writable=np.ones(v, bool), decode=lambda ids: "")
        self._params, self._prompts, self._n_drawn = self._load(rank), prompts, 0
        self._max_new_tokens = max_new_tokens
        stage = Stage(reward=RewardSettings("grpo"))
        spec = step_spec(stage, ComputeSettings(self._dtype, self._remat))
        loaded = LoadedModel(self._params, self._weights, config, no_text, language_unit="document")
        self._actor = Actor(loaded, spec, jax.sharding.get_mesh(), temperature=1.0, max_new_tokens=max_new_tokens)

    def rollout(self) -> dict[str, Any]:
        """Samples an answer a prompt, with its nats, and scores all of them; gap_nats: between what the two passes think of a token."""
        n, self._n_drawn = len(self._prompts), self._n_drawn + 1
        with Stopwatch() as watch:
            samples = self._actor.sample(self._params, self._prompts, [1000 * self._n_drawn + i for i in range(n)], [0] * n)
            with Stopwatch() as scoring:
                batch = _sampled_batch(self._prompts, samples, self._max_new_tokens)
                nats = self._actor.nats(self._params, batch)
        drawn = np.concatenate([sample.nats for sample in samples])
        scored = nats[batch["loss_weights"] > 0]
        return watch.to_json() | {
            "scoring_seconds": scoring.seconds, "n_tokens": len(drawn), "nats": float(drawn.mean()),
            "gap_nats": float(np.abs(drawn - scored).mean()),
        }  # fmt: skip

    def matmul_rate(self, size: int = 2048, repeats: int = 5) -> float:
        """Returns the FLOPs a second of a product of two square matrices, as large as all its devices know to use."""
        x = jnp.ones((size, size), self._dtype)
        multiply = jax.jit(lambda x: x @ x)
        jax.block_until_ready(multiply(x))
        seconds = []
        for _ in range(repeats):
            with Stopwatch() as watch:
                jax.block_until_ready(multiply(x))
            seconds.append(watch.seconds)
        return 2 * size**3 / statistics.median(seconds)

    def peak_memory_bytes(self) -> int:
        """Returns the most that was in use on one accelerator, on a CPU the most this process had."""
        found = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.sharding.get_mesh().devices.flat]
        return max(found) if jax.default_backend() != "cpu" and all(found) else peak_memory_bytes()

    def _load(self, rank: int) -> Params:
        mesh, dtype = jax.sharding.get_mesh(), jnp.dtype(self._dtype)
        base = self._weights.load(dtype, shard_tree(abstract_base(self._weights.config, dtype), mesh))
        return Params(base, make_lora(base, jax.random.key(0), rank=rank, targets=ADAPTABLE)) if rank else Params(base)

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
            "flops": read_program(compiled.as_text()).flops,
            "compiler_flops": float(compiled.cost_analysis().get("flops", 0.0)),
            "temporary_bytes": int(compiled.memory_analysis().temp_size_in_bytes),
            "hand_leaves": 2 * len(ADAPTABLE),
            "hand_parameters": counts.lora_parameters(config, rank),
            "hand_flops": counts.step_flops(config, batch_size, seq_len, seq_len, rank),
        }

    def describe(self) -> dict[str, str]:
        device = jax.devices()[0]
        return {
            "jax": jax.__version__, "device": f"{device.platform} {device.device_kind}", "weights": self._weights.digest,
            "platform": device.platform, "device_kind": device.device_kind, "n_devices": jax.sharding.get_mesh().size, "dtype": self._dtype,
        }  # fmt: skip


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


def _sampled_batch(prompts: list[list[int]], samples: list[Sample], max_new_tokens: int) -> dict[str, np.ndarray]:
    """Returns a row for each sample, loss on what was sampled, as `train.rollout` lays them out."""
    rows, seq_len = [], max(map(len, prompts)) + max_new_tokens
    for prompt, sample in zip(prompts, samples, strict=True):
        row = PackedRows(batch_size=1, seq_len=seq_len, loss_positions=max_new_tokens, bos_id=prompt[0], pad_id=0)
        asked = prompt[1:]
        row.place(to_encoded({"tokens": [*asked, *sample.tokens], "loss": [0] * len(asked) + [1] * len(sample.tokens)}))
        rows.append(row.arrays(None, language_unit="document"))
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _spec(dtype: str, retention: bool, remat: str = "none") -> StepSpec:
    stage = Stage(next_token_weight=0.0, retention=Retention(weight=1.0)) if retention else Stage()
    return step_spec(stage, ComputeSettings(dtype, remat))


def _optimizer(trainable: Any, learning_rate: float) -> Any:
    return make_optimizer((OptimizerRule("lora", "lora/.*", learning_rate),), Schedule(_MANY_STEPS, 0, 0.1, 1.0), trainable)
