"""Phase 4: Korean text again, then a front-most and a back-most layer and Korean translation; English checked after each."""

from configs import common

KOREAN = {
    "korean-text": dict(kind="text", path="data/korean_text.jsonl", language="ko", licence="set me"),
    "korean-exam-train": dict(kind="exam", path="sean0042/KorMedMCQA", subset="doctor", language="ko", licence="CC BY-NC 2.0"),
}
PAIRS = {"pairs": dict(kind="translation", path="data/pairs_train.jsonl", licence="set me")}
HELD_OUT_PAIRS = {"held-out-pairs": dict(kind="translation", path="data/pairs_valid.jsonl", licence="set me")}
ENGLISH = {"english-text": dict(kind="text", path="data/english_text.jsonl", language="en", licence="set me")}


def checked(title, after, trees, **changes):
    """A phase that trains `trees` and holds English by each-layer training while its gate is closed; Korean may not suffer."""
    remedy = common.retention(trees=trees, steps=500, data=ENGLISH)
    gate = common.gate(on_failure="retain", requires=common.korean())
    defaults = common.phase(title, after=after, trees=trees, gate=gate, remedy=remedy)
    return common.changed(defaults, changes)


def text(**changes):
    own = dict(steps=2000, data=KOREAN)
    return checked("Korean text, exam format included", "phase3", ("lora", "lang"), **common.changed(own, changes, new_keys=True))


def translation(**changes):
    own = dict(
        expand=dict(front=1, back=1), steps=4000, data=PAIRS, translations=HELD_OUT_PAIRS,
        rules={"expand": dict(learning_rate=1e-4)},
    )  # fmt: skip
    return checked(
        "a layer added at each end; Korean translation, both ways", "phase4a_text", ("lora", "lang", "expand"),
        **common.changed(own, changes, new_keys=True),
    )  # fmt: skip


def get_config():
    from configs import pipeline

    return pipeline.get_config(run=("phase4a_text", "phase4b_translation"))
