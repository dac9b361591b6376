"""Phase 2: two extra embeddings, Korean and English, chosen by each token's language; they alone
train."""

from configs import pipeline


def get_config():
    return pipeline.get_config(run=("phase2",))
