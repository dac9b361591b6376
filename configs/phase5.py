"""Phase 5: text and translation again, then reasoning: taught on solutions to the exam, then
rewarded on the exam."""

from configs import pipeline


def get_config():
    return pipeline.get_config(
        run=("phase5a_text", "phase5b_translation", "phase5c_reasoning", "phase5d_exam")
    )
