"""Compiles steps and decoding of a real model for TPUs that are not there, and prints what a chip would hold.

    pip install libtpu
    python compile_for_tpu.py v5e:2x4 gemma3-4b '{"data": -1}' 16 text,retention,grpo,decode

TOPOLOGY MODEL MESH BATCH CASES: a step reads BATCH rows of 1,024 tokens and trains LoRA, language vectors and a layer at each
end; decoding continues BATCH prompts of 512 tokens. bfloat16 weights, everything else as in configs/common.py. A line of JSON a
case: GiB of arguments and of temporaries a chip, and how many fused kernels stand in the program. Nothing is allocated.
"""

import functools
import json
import os
import sys
import time

GIB = 2**30
FUSED = 'custom_call_target="tpu_custom_call"'
SEQ_LEN, SAMPLED, PROMPT, CACHE = 1024, 128, 512, 1024


def main(topology: str, model: str, mesh_shape: str, batch_size: str, cases: str) -> None:
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    import jax
    from jax.experimental import topologies

    from medkor_jax.parallel.mesh import MeshShape, make_mesh

    devices = topologies.get_topology_desc(topology, "tpu").devices
    mesh = make_mesh(MeshShape(**json.loads(mesh_shape)), devices)
    with jax.set_mesh(mesh):
        for case in cases.split(","):
            compiled_of = compile_decoding if case == "decode" else functools.partial(compile_step, case)
            began = time.perf_counter()
            for name, compiled in compiled_of(model, int(batch_size), mesh):
                memory = compiled.memory_analysis()
                sizes = {
                    "arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes,
                    "not_aliased": memory.output_size_in_bytes - memory.alias_size_in_bytes,
                }  # fmt: skip
                row = {"case": name, "seconds": round(time.perf_counter() - began), "fused": compiled.as_text().count(FUSED)}
                print(json.dumps(row | {f"{kind}_gib": round(n / GIB, 2) for kind, n in sizes.items()}), flush=True)
                began = time.perf_counter()


def lay(tree, shardings):
    """Returns abstract arrays that lie as `shardings` says, a tree or one for all."""
    import jax

    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def make_params(model: str):
    """Returns the abstract trees of the longest model a phase has, and its config."""
    import jax
    import jax.numpy as jnp

    from medkor_jax.adapt.expansion import make_expansion
    from medkor_jax.adapt.language import make_language
    from medkor_jax.adapt.lora import make_lora
    from medkor_jax.model.config import preset
    from medkor_jax.model.params import ADAPTABLE, Params, abstract_base

    config = preset(model)
    base = abstract_base(config, jnp.bfloat16)
    lora = jax.eval_shape(lambda: make_lora(base, jax.random.key(0), rank=16, targets=ADAPTABLE))
    lang = jax.eval_shape(lambda: make_language(config, kind="vector"))
    return config, Params(base, lora=lora, lang=lang, expand=jax.eval_shape(make_expansion, base), lora_scale=2.0)


def compile_step(case: str, model: str, batch_size: int, mesh):
    import jax
    import jax.numpy as jnp

    from medkor_jax.model.params import Params
    from medkor_jax.parallel.mesh import batch_sharding, shard_tree
    from medkor_jax.train.policy import PolicyLoss
    from medkor_jax.train.retention import Retention
    from medkor_jax.train.step import StepSpec, make_state, make_step
    from medkor_jax.train.trainable import Group, Schedule, make_optimizer, split

    config, params = make_params(model)
    trees = ("lora", "lang", "expand")
    trainable, frozen = split(params, trees)
    optimizer = make_optimizer(tuple(Group(name, f"{name}/.*", 1e-4) for name in trees), Schedule(100), trainable)
    state = jax.eval_shape(lambda t: make_state(optimizer, t), trainable)
    shardings = shard_tree(state, mesh)
    loss = {
        "text": dict(), "retention": dict(next_token_weight=0.0, retention=Retention(weight=1.0)),
        "grpo": dict(next_token_weight=0.0, policy=PolicyLoss()),
    }[case]  # fmt: skip
    m = SAMPLED if case == "grpo" else SEQ_LEN
    shapes = dict.fromkeys(("tokens", "positions", "segment_ids", "langs"), (SEQ_LEN, jnp.int32))
    shapes |= dict.fromkeys(("loss_positions", "targets"), (m, jnp.int32)) | {"loss_weights": (m, jnp.float32)}
    shapes |= dict.fromkeys(("advantages", "behaviour_nats", "importance"), (m, jnp.float32)) if case == "grpo" else {}
    batch = {name: jax.ShapeDtypeStruct((batch_size, n), dtype) for name, (n, dtype) in shapes.items()}
    frozen = lay(frozen, shard_tree(frozen, mesh))
    reference = Params(frozen.base) if case == "retention" else None
    step = make_step(config, StepSpec(dtype="bfloat16", remat="gate_up", **loss), optimizer, shardings)
    yield case, step.lower(lay(state, shardings), frozen, reference, lay(batch, batch_sharding(mesh))).compile()


def compile_decoding(model: str, batch_size: int, mesh):
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from medkor_jax.model import decode
    from medkor_jax.model.prompts import Routing, pad_prompts
    from medkor_jax.model.sampling import Sampling
    from medkor_jax.parallel.mesh import shard_tree

    config, params = make_params(model)
    params, whole = lay(params, shard_tree(params, mesh)), NamedSharding(mesh, PartitionSpec())
    settings = decode.Settings(config, jnp.dtype("bfloat16"), Sampling(), (1,), 8)
    routing = Routing.constant(config.vocab_size)
    prompt = pad_prompts([[2] * PROMPT] * batch_size, routing, seeds=[0] * batch_size)
    start = decode._start.lower(params, lay(prompt, whole), lay(routing, whole), settings=settings, size=CACHE)
    compiled = start.compile()
    yield "read prompts", compiled
    state = lay(start.out_info[0], compiled.output_shardings[0])
    is_done, n = jax.ShapeDtypeStruct(prompt.lengths.shape, bool), jax.ShapeDtypeStruct((), jnp.int32)
    more = decode._continue.lower(params, state, lay(routing, whole), lay(is_done, whole), n, settings=settings)
    yield "write tokens", more.compile()


if __name__ == "__main__":
    main(*sys.argv[1:])
