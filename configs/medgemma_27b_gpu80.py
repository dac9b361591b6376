"""MedGemma 27B on one GPU of 80 GB, its frozen weights in int8:
`medkor run --config configs/medgemma_27b_gpu80.py`, or up to a phase:
`configs/medgemma_27b_gpu80.py:phase3`.

A merge is made in the host's memory, of which it takes 60 GB.
"""

from configs import pipeline


def get_config(last=pipeline.ALL[-1]):
    config = pipeline.on_machine(
        "gpu:1x80GB",
        "google/medgemma-27b-text-it",
        mesh=dict(data=1, fsdp=1),
        rows=4,
        last=last,
    )
    config.param_dtype = "int8"
    if (
        "phase5d_exam" in config
    ):  # the cache of more answers at once does not fit beside the weights
        reward = config.phase5d_exam
        reward.batch_size, reward.microbatches = 16, 4
    return config
