"""MedGemma 4B on four TPU v5e chips: `medkor run --config configs/medgemma_4b_v5e4.py`, or up to a
phase: `configs/medgemma_4b_v5e4.py:phase3`."""

from configs import pipeline


def get_config(last=pipeline.ALL[-1]):
    return pipeline.on_machine(
        "v5e:2x2", "google/medgemma-4b-it", mesh=dict(data=1, fsdp=4), rows=2, last=last
    )
