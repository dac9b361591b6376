"""Does the reward teach? A cold start and GRPO by themselves, on the quick start's model: the
runs of docs/RESULTS.md.

    medkor run --config configs/rewarded.py:SEED        # after the quick start

In English, whose solutions are shorter, about facts that English texts had stated; solutions and
questions that are trained on are about others. A model of 270M knows an answer's text and not which
letter stands before it: a solution states the fact and then goes through the options in turn, up to
the right one, whose letter is the last that was read. Gates decide nothing here.
"""

from configs import phases, quickstart

RUN = ("phase5c_reasoning", "phase5d_exam")
MAX_NEW_TOKENS = 88


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
    asked = dict(mode="reason", batch_size=32, max_new_tokens=MAX_NEW_TOKENS)
    config.exams = {"reasoned": quickstart.asked("en", **asked)}
    for p in (config.phase5c_reasoning, config.phase5d_exam):
        p.exam, p.gate.metric, p.gate.on_failure = "reasoned", "accuracy", "continue"
        p.gate.allow_chance, p.gate.requires = True, {}
        p.remedy.steps, p.remedy.data = 0, {}

    p = config.phase5c_reasoning
    p.after = ""  # from `weights`
    solutions = dict(kind="reasoning", language="en", rationale=("right",), **quickstart.OURS)
    p.data = {"solutions-train": solutions | dict(answered_by="in_turn", orders=2)}
    p.steps = 40
    quickstart.shape(p, lora=1e-3, lang=5e-3, batch_size=8, seq_len=176)

    p = config.phase5d_exam
    p.data, p.steps = {"exam-train": dict(kind="exam", language="en", **quickstart.OURS)}, 12
    quickstart.shape(p, lora=5e-4, lang=5e-3, batch_size=16, seq_len=192)
    rollout = p.reward.rollout
    rollout.group_size, rollout.max_new_tokens, rollout.max_refills = 4, MAX_NEW_TOKENS, 0
    return config
