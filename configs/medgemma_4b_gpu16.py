"""MedGemma 4B on one GPU of 16 GB, its frozen weights in int8:
`medkor run --config configs/medgemma_4b_gpu16.py`, or up to a phase:
`configs/medgemma_4b_gpu16.py:phase3`."""

from configs import pipeline


def get_config(last=pipeline.ALL[-1]):
    config = pipeline.on_machine(
        "gpu:1x16GB",
        "google/medgemma-4b-it",
        mesh=dict(data=1, fsdp=1),
        rows=1,
        last=last,
    )
    config.param_dtype = "int8"
    if (
        "phase5d_exam" in config
    ):  # the cache of more answers at once does not fit beside the weights
        reward = config.phase5d_exam
        reward.batch_size, reward.microbatches = 8, 8
    return config
