"""Phase 3: Korean text trains the two embeddings and LoRA_1; "each layer" training while the English gate is closed."""

from configs import common


def phase(**changes):
    defaults = common.phase(
        "Korean text trains the embeddings and LoRA_1; English held by each-layer training",
        after="phase2",
        lora=common.LORA,
        trees=("lora", "lang"),
        steps=4000,
        data={
            "korean-text": dict(kind="text", path="data/korean_text.jsonl", language="ko", licence="set me"),
            "korean-exam-train": dict(kind="exam", path="sean0042/KorMedMCQA", subset="doctor", language="ko", licence="CC BY-NC 2.0"),
        },
        gate=common.gate(on_failure="retain", requires=common.korean()),
        remedy=common.retention(
            trees=("lora", "lang"),
            steps=500,
            data={"english-text": dict(kind="text", path="data/english_text.jsonl", language="en", licence="set me")},
        ),
    )
    return common.changed(defaults, changes)


def get_config():
    from configs import pipeline

    return pipeline.get_config(run=("phase3",))
