"""A program with the abstract arguments it is called with on a mesh: what is lowered, compiled or traced.

    with jax.set_mesh(mesh):
        traceable(program, config, mesh).lower().compile()

From shapes alone: no weights, no data, no devices. Which programs a recipe has: `stages`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.adapt.language import make_language
from medkor_jax.adapt.lora import make_lora
from medkor_jax.model import decode
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import Params, abstract_base
from medkor_jax.model.prompts import Routing, pad_prompts
from medkor_jax.model.sampling import Sampling
from medkor_jax.parallel.mesh import BATCH_AXES, batch_sharding, shard_tree
from medkor_jax.plan.stages import READ, SCORE, STEP, WRITE, Program, Trees
from medkor_jax.train.step import make_scoring, make_state, make_step
from medkor_jax.train.trainable import OptimizerRule, Schedule, make_optimizer, split

TOKENS_PER_RUN = 8  # that the decoder writes between two looks of the host, see `decode.Decoder`


def abstract_params(config: ModelConfig, trees: Trees, param_dtype: str) -> Params:
    """Returns the parameters as shapes: what `run.trees.add_trees` would have made."""
    base = abstract_base(config, jnp.dtype(param_dtype))
    params, lora = Params(base), trees.lora
    if lora is not None:
        # the key is made within: outside it would be an array on a chip that is not there
        made = jax.eval_shape(
            lambda: make_lora(base, jax.random.key(0), rank=lora.rank, targets=lora.targets)
        )
        params = params.replace(lora=made, lora_scale=lora.scale)
    if trees.lang:
        made = functools.partial(make_language, config, kind=trees.lang, size=trees.n_new)
        params = params.replace(lang=jax.eval_shape(made))
    if any(trees.expand):
        front, back = trees.expand
        params = params.replace(
            expand=jax.eval_shape(functools.partial(make_expansion, front=front, back=back), base)
        )
    return params


def lay(tree: Any, shardings: Any) -> Any:
    """Returns abstract arrays that lie as `shardings` says, a tree or one for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


@dataclasses.dataclass(frozen=True)
class Traceable:
    """A jitted function and the abstract arguments it is called with; parts: of them by what they are."""

    function: Any
    arguments: tuple[Any, ...]
    parts: dict[str, Any]
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)

    def lower(self) -> Any:
        return self.function.lower(*self.arguments, **self.keywords)

    def jaxpr(self) -> Any:
        return jax.make_jaxpr(functools.partial(self.function, **self.keywords))(*self.arguments)


def traceable(program: Program, config: ModelConfig, mesh: Mesh) -> Traceable:
    """Returns `program` for a mesh, to be lowered or traced under `jax.set_mesh(mesh)`."""
    make = {STEP: _step, SCORE: _score, READ: _read, WRITE: _write}[program.kind]
    return make(program, config, mesh)


def _step(program: Program, config: ModelConfig, mesh: Mesh) -> Traceable:
    params = abstract_params(config, program.trees, program.param_dtype)
    trainable, frozen = split(params, program.trained)
    rules = tuple(OptimizerRule(name, f"{name}/.*", 1e-4) for name in program.trained)
    optimizer = make_optimizer(rules, Schedule(100, 0, 0.1, 1.0), trainable)
    state = jax.eval_shape(lambda t: make_state(optimizer, t), trainable)
    shardings = shard_tree(state, mesh)
    state, frozen = lay(state, shardings), lay(frozen, shard_tree(frozen, mesh))
    reference = None
    if program.reference is not None:
        # its base is the frozen one; what the step reads of it are its own trees
        reference = abstract_params(config, program.reference, program.param_dtype)
        reference = lay(reference, shard_tree(reference, mesh))
    batch = lay(_batch(program), batch_sharding(mesh))
    step = make_step(config, program.spec, optimizer, shardings)
    own = None if reference is None else reference.replace(base={})
    parts = {
        "weights": frozen.base,
        "adapters": (state.trainable, frozen.lora, frozen.lang, frozen.expand, own),
        "optimizer": (state.opt_state, state.step),
        "batch": batch,
    }
    return Traceable(step, (state, frozen, reference, batch), parts)


def _batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what `PackedRows.arrays` and `Rollouts` give, as shapes."""
    b, t, m = program.rows, program.length, program.positions
    shapes = dict.fromkeys(("tokens", "positions", "segment_ids", "langs"), (t, jnp.int32))
    shapes |= dict.fromkeys(("loss_positions", "targets"), (m, jnp.int32)) | {
        "loss_weights": (m, jnp.float32)
    }
    if program.spec.policy is not None:
        shapes |= dict.fromkeys(("advantages", "behaviour_nats", "importance"), (m, jnp.float32))
    if program.with_reference_nats:
        shapes |= {"reference_nats": (m, jnp.float32)}
    return {name: jax.ShapeDtypeStruct((b, n), dtype) for name, (n, dtype) in shapes.items()}


def _model(program: Program, config: ModelConfig, mesh: Mesh) -> tuple[Params, dict[str, Any]]:
    params = abstract_params(config, program.trees, program.param_dtype)
    params = lay(params, shard_tree(params, mesh))
    return params, {"weights": params.base, "adapters": (params.lora, params.lang, params.expand)}


def _score(program: Program, config: ModelConfig, mesh: Mesh) -> Traceable:
    params, parts = _model(program, config, mesh)
    batch = lay(_batch(program), batch_sharding(mesh))
    return Traceable(make_scoring(config, program.spec), (params, batch), parts | {"batch": batch})


def _decoding(
    program: Program, config: ModelConfig, mesh: Mesh
) -> tuple[Params, dict, Any, Any, decode.Settings, NamedSharding]:
    params, parts = _model(program, config, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    policy, compute = program.spec.policy, program.spec.compute
    sampling = Sampling(1.0 if policy is None else policy.temperature)
    settings = decode.Settings(
        config, jnp.dtype(compute.dtype), sampling, (1, 106), TOKENS_PER_RUN, policy is not None
    )
    routing = Routing.constant(config.vocab_size + program.trees.n_new)
    prompt = pad_prompts([[2] * program.length] * program.rows, routing, seeds=[0] * program.rows)
    return params, parts, lay(prompt, whole), lay(routing, whole), settings, whole


def _read(program: Program, config: ModelConfig, mesh: Mesh) -> Traceable:
    params, parts, prompt, routing, settings, _ = _decoding(program, config, mesh)
    return Traceable(
        decode._start,
        (params, prompt, routing),
        parts,
        {"settings": settings, "size": program.room},
    )


def _write(program: Program, config: ModelConfig, mesh: Mesh) -> Traceable:
    params, parts, prompt, routing, settings, whole = _decoding(program, config, mesh)
    start = functools.partial(decode._start, settings=settings, size=program.room)
    state = lay_state(jax.eval_shape(start, params, prompt, routing)[0], mesh)
    n, is_done = (
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct(prompt.lengths.shape, bool),
    )
    arguments = (params, state, routing, lay(is_done, whole), n)
    return Traceable(decode._continue, arguments, parts | {"cache": state}, {"settings": settings})


def lay_state(state: decode.State, mesh: Mesh) -> decode.State:
    """Returns the decoder's state laid as its own constraints lay it: rows over the batch axes, key heads over `tensor`."""
    rows = batch_sharding(mesh)
    heads = "tensor" if state.cache.full.keys.shape[2] % mesh.shape["tensor"] == 0 else None
    stack = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES, heads))
    whole = NamedSharding(mesh, PartitionSpec())

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return stack if leaf.ndim == 5 else rows if leaf.ndim else whole

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf)), state
    )
