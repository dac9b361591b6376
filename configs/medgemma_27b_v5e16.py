"""MedGemma 27B on sixteen TPU v5e chips: `medkor run --config configs/medgemma_27b_v5e16.py`, or up
to a phase: `configs/medgemma_27b_v5e16.py:phase3`."""

from configs import pipeline


def get_config(last=pipeline.ALL[-1]):
    return pipeline.on_machine(
        "v5e:4x4", "google/medgemma-27b-text-it", mesh=dict(data=1, fsdp=16), rows=1, last=last
    )
