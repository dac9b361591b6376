"""Phase 0: English medical text trains LoRA_0, which is merged into the base weights."""

from configs import common


def phase(**changes):
    defaults = common.phase(
        "English medical text trains LoRA_0; merged into the base",
        lora=common.LORA,
        merge=True,
        trees=("lora",),
        steps=2000,
        data={"english-text": dict(kind="text", path="data/english_text.jsonl", language="en", licence="set me")},
        exam="english-choice",
        gate=common.gate(on_failure="continue"),
    )
    return common.changed(defaults, changes)


def get_config():
    from configs import pipeline

    return pipeline.get_config(run=("phase0",))
