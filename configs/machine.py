"""A machine's choices laid over every phase: mesh, what is made again, rows at once. A machine's file is one call of `on`.

    def get_config(last=pipeline.ALL[-1]):
        return machine.on("v5e:4x4", "google/medgemma-27b-text-it", mesh=dict(data=1, fsdp=16), rows=1, last=last)

What a phase learns from is its own file's business; what is set here changes no result beyond rounding. `medkor plan --config
FILE` says what each stage then needs of the machine.
"""

from configs import pipeline


def on(topology, weights, *, mesh, rows, remat="gate_up", chunk=256, last=pipeline.ALL[-1]):
    """Returns the config of all phases up to `last` for one machine.

    topology: as `medkor plan` names it. rows: of the training batch that one device holds at once; the rest of its share
    comes in further microbatches. Only this model is a candidate: another would be another machine's.
    """
    config = pipeline.get_config(pipeline.ALL[: pipeline.ALL.index(last) + 1])
    config.topology, config.weights, config.remat, config.chunk = topology, weights, remat, chunk
    config.mesh.update(mesh)
    ways = config.mesh.data * config.mesh.fsdp
    for name in config.run:
        for stage in (config[name], config[name].remedy):
            if stage.steps:
                stage.microbatches = max(1, stage.batch_size // (ways * rows))
    if "phase1" in config:
        config.phase1.candidates = ("phase0",)
    return config
