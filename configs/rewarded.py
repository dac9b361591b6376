"""Does the reward teach? A short cold start and GRPO by itself, on the quick start's model: the
runs of docs/RESULTS.md.

    medkor run --config configs/rewarded.py:SEED        # after the quick start

In English, whose solutions are shorter. The cold start is too short on purpose: what it leaves
undone is what the reward has to teach. Gates decide nothing here.
"""

from configs import common, phases, quickstart

RUN = ("phase5c_reasoning", "phase5d_exam")
MAX_NEW_TOKENS = 112


def get_config(seed="0"):
    config = quickstart.get_config()
    config.run_dir, config.seed = f"runs/rewarded-{seed}", int(seed)
    config.weights = "runs/quickstart/phase4b_translation"
    with config.unlocked():
        for name in config.phases:
            del config[name]
        config.phase5c_reasoning, config.phase5d_exam = (
            phases.phase5c_reasoning(),
            phases.phase5d_exam(),
        )
    config.run = config.phases = RUN
    config.final = {}
    english = dict(language="en", licence="Apache-2.0", limit=32)
    asked = dict(mode="reason", batch_size=32, max_new_tokens=MAX_NEW_TOKENS)
    config.exams = {"reasoned": common.exam("embedded", english, **asked)}
    for p in (config.phase5c_reasoning, config.phase5d_exam):
        p.exam, p.gate.metric, p.gate.on_failure = "reasoned", "accuracy", "continue"
        p.gate.allow_chance, p.gate.requires = True, {}
        p.remedy.steps, p.remedy.data = 0, {}

    p = config.phase5c_reasoning
    p.after = ""  # from `weights`
    p.data = {"solutions-train": dict(kind="reasoning", language="en", **quickstart.OURS)}
    p.steps = 8
    quickstart.shape(p, batch_size=2, seq_len=256)

    p = config.phase5d_exam
    p.data, p.steps = {"exam-train": dict(kind="exam", language="en", **quickstart.OURS)}, 12
    quickstart.shape(p, lora=5e-4, lang=5e-3, batch_size=16, seq_len=192)
    rollout = p.reward.rollout
    rollout.group_size, rollout.max_new_tokens, rollout.max_refills = 4, MAX_NEW_TOKENS, 0
    return config
