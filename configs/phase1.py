"""Phase 1: the smallest candidate that passes the English exam is taken; if none does, LoRA_1 is trained in English."""

from configs import common


def phase(**changes):
    defaults = common.phase(
        "choose the model by the English exam; LoRA_1 in English if none passes",
        candidates=("phase0", "google/medgemma-27b-text-it"),
        is_reference=True,
        exam="english-choice",  # by other questions than the later gates, which compare with the model chosen here
        gate=common.gate(reading="absolute", threshold=0.4, on_failure="train", rounds=3),
        remedy_lora=common.LORA,
        remedy=common.stage(
            trees=("lora",),
            steps=1000,
            data={
                "english-exam-train": dict(kind="exam", path="data/english_exam_train.jsonl", language="en", licence="set me"),
                "english-text": dict(kind="text", path="data/english_text.jsonl", language="en", licence="set me"),
            },
        ),
    )
    return common.changed(defaults, changes)


def get_config():
    from configs import pipeline

    return pipeline.get_config(run=("phase1",))
