"""The whole method on the embedded Gemma 3 270M and the embedded exam, in minutes on two CPU cores.

    medkor run --config configs/quickstart.py           # phases 0 to 5
    medkor run --config configs/quickstart.py:phase3    # up to phase 3; the line above goes on from there

The texts state the facts of the training and the validation exam; questions, solutions and rewards are about
training facts only. Facts of the test split are in nothing that is trained on: their texts are what is watched,
their sentence pairs what translation is judged on.
"""

from configs import common, phase0, phase1, phase2, phase3, phase4, phase5, pipeline

OURS = dict(path="embedded", licence="Apache-2.0")
RULES = {  # short runs want high rates
    "lora": dict(learning_rate=1e-3),
    "lang": dict(learning_rate=2e-2),
    "expand": dict(learning_rate=1e-4),
}
SHAPE = dict(batch_size=4, seq_len=128, warmup_steps=3, save_every=50, rules=RULES)
QUESTIONS = {"en": 64, "ko": 32}  # of 96; the rest choose the model (English) and are the final exam (Korean)


def text(language):
    return {
        f"{language}-text-{split}": dict(kind="text", language=language, subset=split, **OURS, weight=weight)
        for split, weight in (("train", 3.0), ("valid", 1.0))
    }


def korean_loss(rise_nats):
    return {"korean-loss": dict(watch="korean", rise_nats=rise_nats)}


def get_config(last=pipeline.ALL[-1]):
    if last not in pipeline.ALL:
        raise ValueError(f"{last!r} is no phase to run up to; the phases are {', '.join(pipeline.ALL)}")
    run = pipeline.ALL[: pipeline.ALL.index(last) + 1]
    config = pipeline.get_config(run)
    config.run_dir, config.weights = "runs/quickstart", "embedded"
    config.dtype = config.param_dtype = "float32"
    config.remat, config.log_every, config.watch_tokens, config.max_translation_tokens = "none", 4, 450, 64
    english, korean = (dict(language=code, licence="Apache-2.0", limit=QUESTIONS[code]) for code in ("en", "ko"))
    # What 64 questions about 16 facts can tell: that half of the reference's mean probability is surely kept, not 97 %.
    # Of Korean the held-out loss alone is asked: this model is at chance on its 32 questions, and no gate opens by those.
    gate = dict(reading="relative", threshold=0.5, rounds=2, requires=korean_loss(0.2))
    held = dict(gate=gate, remedy=dict(data=text("en"), steps=8, **SHAPE), **SHAPE)
    # Late phases go gently; their remedy takes all layers at few positions, so that it always holds what the model finally says.
    gently = dict(lora=dict(learning_rate=3e-4), lang=dict(learning_rate=2e-3))
    late = SHAPE | dict(rules=RULES | gently)
    remedy = dict(data=text("en"), steps=4, retention=dict(layers=0, positions=8), **late)
    held_late = dict(gate=gate, remedy=remedy, **late)
    pairs = {"pairs-train": dict(kind="translation", subset="train", **OURS)}
    held_out = {"pairs-test": dict(kind="translation", subset="test", limit=8, **OURS)}
    with config.unlocked():
        # A 270M model cannot bind an answer to its letter in minutes; "cloze" asks for the answer's text.
        config.exams = {
            "english-choice": common.exam(
                "embedded", source=english | dict(skip=QUESTIONS["en"], limit=0), mode="cloze", batch_size=32,
                phases=pipeline.ALL[:2],
            ),  # fmt: skip
            "english": common.exam("embedded", source=english, mode="cloze", batch_size=32, phases=pipeline.ALL[1:]),
            "korean": common.exam("embedded", source=korean, mode="cloze", batch_size=32, phases=pipeline.ALL[2:]),
            "korean-reasoned": common.exam(
                "embedded", source=korean | dict(limit=20), mode="reason", max_new_tokens=160, phases=("phase5d_exam",)
            ),
        }
        config.final = {}
        if last == pipeline.ALL[-1]:
            asked_never = korean | dict(skip=QUESTIONS["ko"], limit=0)
            config.final = {"korean-final": common.exam("embedded", source=asked_never, mode="cloze", batch_size=32)}
        config.watch = {
            language: dict(kind="text", language=code, subset="test", **OURS)
            for language, code in (("korean", "ko"), ("english", "en"))
        }
        config.phase0 = phase0.phase(data=text("en"), steps=12, **SHAPE)
        config.phase1 = phase1.phase(
            candidates=("phase0",),
            gate=dict(threshold=0.3),  # surely above guessing, which gives 20 %
            remedy=dict(data=text("en"), steps=16, **SHAPE),
        )
        config.phase2 = phase2.phase(data=text("ko"), steps=6, **(held | dict(gate=gate | dict(requires={}))))
        config.phase3 = phase3.phase(data=text("ko"), steps=16, **(held | dict(gate=gate | dict(threshold=0.65))))
        config.phase4a_text = phase4.text(data=text("ko"), steps=4, **held)
        config.phase4b_translation = phase4.translation(data=pairs, translations=held_out, steps=12, **held)
        config.phase5a_text = phase5.text(data=text("ko"), steps=2, **held_late)
        config.phase5b_translation = phase5.translation(data=pairs, translations=held_out, steps=4, **held_late)
        config.phase5c_reasoning = phase5.reasoning(
            # Without Korean text beside them, solutions cost a nat of it.
            data={"solutions-train": dict(kind="reasoning", language="ko", **OURS, weight=10.0)} | text("en") | text("ko"),
            steps=22, gate=gate | dict(requires=korean_loss(0.6)), remedy=remedy,
            **(late | dict(batch_size=2, seq_len=384, loss_positions=288, rules=RULES | dict(lang=dict(learning_rate=1e-2)))),
        )
        config.phase5d_exam = phase5.exam(
            data={"exam-train": dict(kind="exam", language="ko", **OURS)},
            steps=2,
            reward=dict(rollout=dict(group_size=4, max_new_tokens=160, max_refills=0)),  # a refill of fewer rows compiles anew
            gate=gate | dict(requires=korean_loss(0.2) | common.form(threshold=0.5)), remedy=remedy,
            **(late | dict(batch_size=8, seq_len=256, rules={name: dict(learning_rate=1e-4) for name in RULES})),
        )
        for name in set(pipeline.ALL) - set(run):
            del config[name]
    return config
