"""Phase 0: English medical text trains LoRA_0, which is merged into the base weights."""

from configs import pipeline


def get_config():
    return pipeline.get_config(run=("phase0",))
