"""Trains two steps of the tiny model on all devices of all processes, and saves losses and trees as .npz.

    python two_steps.py OUT.npz PORT N_PROCESSES PROCESS          # one process of several; 4 devices in all
"""

import functools
import os
import sys


def train(shape) -> dict:
    """Returns {"loss": [2], leaf path: whole array}. Every process calls it; each gets everything."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.experimental import multihost_utils

    from medkor_jax.adapt.language import make_language
    from medkor_jax.adapt.lora import make_lora
    from medkor_jax.io.weights import open_weights
    from medkor_jax.model.params import ADAPTABLE, Params, abstract_base, leaf_paths
    from medkor_jax.parallel.mesh import make_mesh, place_batch, shard_tree
    from medkor_jax.train.compute import ComputeSettings
    from medkor_jax.train.retention import Retention
    from medkor_jax.train.stage import Stage
    from medkor_jax.train.step import make_state, make_step, step_spec
    from medkor_jax.train.trainable import split

    weights = open_weights("random:tiny")
    abstract, mesh = abstract_base(weights.config, jnp.float32), make_mesh(shape)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 512, (8, 24)).astype(np.int32)
    batch = {"tokens": tokens, "positions": np.tile(np.arange(24, dtype=np.int32), (8, 1)),
             "segment_ids": np.ones_like(tokens), "langs": tokens % 2,
             "loss_positions": np.tile(np.arange(8, dtype=np.int32), (8, 1)), "targets": tokens[:, 1:9],
             "loss_weights": (rng.random((8, 8)) < 0.5).astype(np.float32)}  # fmt: skip
    with jax.set_mesh(mesh):
        base = weights.load(jnp.float32, shard_tree(abstract, mesh))
        params = Params(base, lora=make_lora(abstract, jax.random.key(1), rank=4, targets=ADAPTABLE),
                        lang=make_language(weights.config, kind="vector"))  # fmt: skip
        trainable, frozen = split(params, ("lora", "lang"))
        # momentum, so there is state to spread; not Adam, which makes rounding of near-zero gradients a whole step
        optimizer = optax.sgd(3.0, momentum=0.9)
        state = make_state(optimizer, trainable)
        shardings = shard_tree(state, mesh)
        state = jax.device_put(state, shardings)
        stage = Stage(retention=Retention(weight=1.0, layers=2, positions=3), microbatches=2)
        spec = step_spec(stage, ComputeSettings("float32", "none"))
        step = make_step(weights.config, spec, optimizer, shardings)
        losses = []
        for _ in range(2):
            state, metrics = step(state, frozen, Params(base), place_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
        gather = functools.partial(multihost_utils.process_allgather, tiled=True)
        return {"loss": np.array(losses)} | {path: np.asarray(gather(leaf)) for path, leaf in leaf_paths(state.trainable).items()}


def main(out: str, port: str, n_processes: str, process: str) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={4 // int(n_processes)}"
    import jax
    import numpy as np

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(n_processes), int(process), initialization_timeout=200)
    from medkor_jax.parallel.mesh import MeshShape

    assert jax.device_count() == 4 and jax.process_count() == int(n_processes)
    found = train(MeshShape(data=2, fsdp=1, tensor=2))
    if jax.process_index() == 0:
        np.savez(out, **found)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
