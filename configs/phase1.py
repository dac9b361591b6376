"""Phase 1: the smallest candidate that passes the English exam is taken; if none does, LoRA_1 is
trained in English. The large one is fetched, and trained by phase 0, only if the small one fails."""

from configs import pipeline


def get_config():
    return pipeline.get_config(run=("phase1",))
