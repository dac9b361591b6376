"""MedGemma 27B on eight GPUs of 80 GB: `medkor run --config configs/medgemma_27b_8gpu80.py`, or up
to a phase: `configs/medgemma_27b_8gpu80.py:phase3`."""

from configs import pipeline


def get_config(last=pipeline.ALL[-1]):
    return pipeline.on_machine(
        "gpu:8x80GB",
        "google/medgemma-27b-text-it",
        mesh=dict(data=1, fsdp=8),
        rows=2,
        remat="none",
        last=last,
    )
