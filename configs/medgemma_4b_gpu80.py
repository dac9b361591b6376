"""MedGemma 4B on one GPU of 80 GB: `medkor run --config configs/medgemma_4b_gpu80.py`, or up to a
phase: `configs/medgemma_4b_gpu80.py:phase3`."""

from configs import pipeline


def get_config(last=pipeline.ALL[-1]):
    return pipeline.on_machine(
        "gpu:1x80GB",
        "google/medgemma-4b-it",
        mesh=dict(data=1, fsdp=1),
        rows=8,
        remat="none",
        last=last,
    )
