"""Phase 1: the smallest candidate that passes the English exam is taken; if none does, LoRA_1 is
trained in English."""

from configs import pipeline


def get_config():
    return pipeline.get_config(run=("phase1",))
