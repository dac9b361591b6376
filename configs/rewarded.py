"""Does the reward teach? A short cold start and GRPO by itself, on the quick start's model: the runs of docs/RESULTS.md.

    medkor run --config configs/rewarded.py:SEED        # after the quick start

In English, whose solutions are shorter. The cold start is too short on purpose: what it leaves undone is what the
reward has to teach. Gates decide nothing here.
"""

from configs import common, phase5, quickstart

RUN = ("phase5c_reasoning", "phase5d_exam")
MAX_NEW_TOKENS = 112
RATES = dict(lora=dict(learning_rate=5e-4), lang=dict(learning_rate=5e-3), expand=dict(learning_rate=1e-4))


def get_config(seed="0"):
    config = quickstart.get_config()
    config.run, config.run_dir, config.seed = RUN, f"runs/rewarded-{seed}", int(seed)
    config.weights = "runs/quickstart/phase5b_translation"
    english = dict(language="en", **quickstart.OURS)
    recorded = dict(metric="accuracy", on_failure="continue", allow_chance=True, requires={})
    judged = dict(exam="reasoned", gate=recorded, remedy=dict(steps=0, data={}))
    with config.unlocked():
        for name in [name for name in config if name.startswith("phase")]:
            del config[name]
        config.final = {}
        config.exams = {
            "reasoned": common.exam(
                "embedded", source=dict(language="en", licence="Apache-2.0", limit=32), mode="reason", batch_size=32,
                max_new_tokens=MAX_NEW_TOKENS,
            ),
        }  # fmt: skip
        config.phase5c_reasoning = phase5.reasoning(
            data={"solutions-train": dict(kind="reasoning", **english)}, steps=8, **judged,
            **(quickstart.SHAPE | dict(seq_len=256, batch_size=2)),
        )  # fmt: skip
        config.phase5c_reasoning["after"] = ""  # from `weights`
        config.phase5d_exam = phase5.exam(
            data={"exam-train": dict(kind="exam", **english)}, steps=12, **judged,
            reward=dict(rollout=dict(group_size=4, max_new_tokens=MAX_NEW_TOKENS, max_refills=0)),
            **(quickstart.SHAPE | dict(seq_len=192, batch_size=16, rules=RATES)),
        )  # fmt: skip
    return config
