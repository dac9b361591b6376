"""Phase 5: text and translation again, then reasoning: taught on solutions to the exam, then rewarded on the exam."""

from configs import common
from configs.phase4 import HELD_OUT_PAIRS, KOREAN, PAIRS, checked

TREES = ("lora", "lang", "expand")
SOLUTIONS = {
    "korean-solutions": dict(kind="reasoning", path="data/korean_solutions.jsonl", language="ko", licence="set me"),
}
EXAM = {
    "korean-exam-train": dict(kind="exam", path="sean0042/KorMedMCQA", subset="doctor", language="ko", licence="CC BY-NC 2.0"),
}


def text(**changes):
    own = dict(steps=1000, data=KOREAN)
    return checked("Korean text once more", "phase4b_translation", TREES, **common.changed(own, changes, new_keys=True))


def translation(**changes):
    own = dict(steps=1000, data=PAIRS, translations=HELD_OUT_PAIRS)
    return checked("Korean translation once more", "phase5a_text", TREES, **common.changed(own, changes, new_keys=True))


def reasoning(**changes):
    own = dict(steps=2000, data=SOLUTIONS, gate=dict(requires=common.korean() | common.form()))
    return checked(
        "solutions to the exam teach the form of reasoning", "phase5b_translation", TREES,
        **common.changed(own, changes, new_keys=True),
    )  # fmt: skip


def exam(**changes):
    own = dict(
        steps=1000, data=EXAM, batch_size=64, reward=common.changed(common.REWARD, dict(algorithm="grpo", rollout=dict(group_size=8, max_new_tokens=512))),
        rules={name: dict(learning_rate=2e-5) for name in TREES}, gate=dict(requires=common.korean() | common.form()),
    )  # fmt: skip
    return checked(
        "the exam itself, with a reward: form, one letter, the right letter", "phase5c_reasoning", TREES,
        **common.changed(own, changes, new_keys=True),
    )  # fmt: skip


def get_config():
    from configs import pipeline

    return pipeline.get_config(run=("phase5a_text", "phase5b_translation", "phase5c_reasoning", "phase5d_exam"))
