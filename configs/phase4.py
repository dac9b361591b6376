"""Phase 4: Korean text again, then a front-most and a back-most layer and Korean translation;
English checked after each."""

from configs import pipeline


def get_config():
    return pipeline.get_config(run=("phase4a_text", "phase4b_translation"))
