"""MedGemma 27B on four TPU v5e chips, its frozen weights in int8:
`medkor run --config configs/medgemma_27b_v5e4.py`, or up to a phase:
`configs/medgemma_27b_v5e4.py:phase3`."""

from configs import pipeline


def get_config(last=pipeline.ALL[-1]):
    config = pipeline.on_machine(
        "v5e:2x2", "google/medgemma-27b-text-it", mesh=dict(data=1, fsdp=4), rows=1, last=last
    )
    config.param_dtype = "int8"
    if (
        "phase5d_exam" in config
    ):  # the cache of more answers at once does not fit beside the weights
        reward = config.phase5d_exam
        reward.batch_size, reward.microbatches = 16, 4
    return config
