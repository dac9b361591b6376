"""Phase 3: Korean text trains the two embeddings and LoRA_1; "each layer" training while the
English gate is closed."""

from configs import pipeline


def get_config():
    return pipeline.get_config(run=("phase3",))
