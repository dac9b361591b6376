"""The whole method on the embedded Gemma 3 270M and the embedded exam, in minutes on two CPU cores.

    medkor run --config configs/quickstart.py           # phases 0 to 5
    medkor run --config configs/quickstart.py:phase3    # to phase 3; the line above goes on there

The texts state the facts of the training and the validation exam; questions, solutions and rewards
are about training facts only. Facts of the test split are in nothing that is trained on: their
texts are what is held out, their sentence pairs what translation is judged on.
"""

from configs import common, pipeline

LAST = "phase5d_exam"  # a phase that the sheet gets behind it has to be fitted to this model first
OURS = dict(path="embedded", licence="Apache-2.0")
QUESTIONS = {
    "en": 64,
    "ko": 32,
}  # of 96; the rest choose the model (English) and are the final exam (Korean)


def text(language):
    return {
        f"{language}-text-{split}": dict(
            kind="text", language=language, subset=split, **OURS, weight=weight
        )
        for split, weight in (("train", 3.0), ("valid", 1.0))
    }


def asked(language, first=0, **changes):
    """An exam about the embedded questions, those that later gates ask or, from `first` on, all the
    others.

    A 270M model cannot bind an answer to its letter in minutes; "cloze" asks for the answer's text.
    """
    limit = 0 if first else QUESTIONS[language]
    source = dict(language=language, licence="Apache-2.0", skip=first, limit=limit)
    return common.exam("embedded", source, **(dict(mode="cloze", batch_size=32) | changes))


def shape(stage, *, lora=1e-3, lang=2e-2, expand=1e-4, batch_size=4, seq_len=128):
    """Small batches, few steps; short runs want high rates."""
    stage.batch_size, stage.seq_len = batch_size, seq_len
    stage.warmup_steps, stage.save_every = 3, 50
    stage.rules.lora.learning_rate = lora
    stage.rules.lang.learning_rate = lang
    stage.rules.expand.learning_rate = expand


def hold(p, *, late=False, threshold=0.5, **requires):
    """What the gate of a phase asks, and the remedy while it is closed."""
    # What 64 questions about 16 facts can tell: that half of the reference's mean probability is
    # surely kept, not 97 %.
    p.gate.reading, p.gate.threshold, p.gate.rounds, p.gate.requires = (
        "relative",
        threshold,
        2,
        requires,
    )
    p.remedy.data, p.remedy.steps = text("en"), 8
    shape(p.remedy)
    if late:
        # Late phases go gently; their remedy takes all layers at few positions, so that it always
        # holds what the model finally says.
        p.remedy.steps, p.remedy.retention.layers, p.remedy.retention.positions = 4, 0, 8
        shape(p.remedy, lora=3e-4, lang=2e-3)


def get_config(last=LAST):
    config = pipeline.get_config()
    config.run_dir, config.weights = "runs/quickstart", "embedded"
    config.dtype = config.param_dtype = "float32"
    config.remat, config.log_every = "none", 4
    config.held_out_tokens, config.max_translation_tokens = 450, 64
    asked_to = dict(batch_size=16, phases=("phase5d_exam",))
    reasoned = asked("ko", mode="reason", max_new_tokens=160, **asked_to)
    reasoned["source"]["limit"] = 20
    config.exams = {
        "english-choice": asked("en", QUESTIONS["en"], phases=pipeline.ALL[:2]),
        "english": asked("en", phases=pipeline.ALL[1:]),
        "korean": asked("ko", phases=pipeline.ALL[2:]),
        "korean-reasoned": reasoned,
    }
    config.held_out = {
        language: dict(kind="text", language=code, subset="test", **OURS)
        for language, code in (("korean", "ko"), ("english", "en"))
    }
    set_first_phases(config)
    set_late_phases(config)
    pipeline.running(config, pipeline.up_to(last))
    config.final = {"korean-final": asked("ko", QUESTIONS["ko"])} if last == LAST else {}
    return config


def set_first_phases(config):
    # Of Korean the held-out loss alone is asked: this model is at chance on its 32 questions, and
    # no gate opens by those.
    loss = {"korean-loss": common.korean_loss(0.2)}

    p = config.phase0
    p.data, p.steps = text("en"), 12
    shape(p)

    p = config.phase1
    p.candidates, p.gate.threshold = ("phase0",), 0.3  # surely above guessing, which gives 20 %
    p.remedy.data, p.remedy.steps = text("en"), 16
    shape(p.remedy)

    p = config.phase2
    p.data, p.steps = text("ko"), 6
    shape(p)
    hold(p)

    p = config.phase3
    p.data, p.steps = text("ko"), 16
    shape(p)
    hold(p, threshold=0.65, **loss)

    p = config.phase4a_text
    p.data, p.steps = text("ko"), 4
    shape(p)
    hold(p, **loss)

    p = config.phase4b_translation
    set_pairs(p, steps=12)
    shape(p)
    hold(p, **loss)


def set_pairs(p, steps):
    p.data, p.steps = {"pairs-train": dict(kind="translation", subset="train", **OURS)}, steps
    p.translations = {"pairs-test": dict(kind="translation", subset="test", limit=8, **OURS)}


def set_late_phases(config):
    loss = {"korean-loss": common.korean_loss(0.2)}

    p = config.phase5a_text
    p.data, p.steps = text("ko"), 2
    shape(p, lora=3e-4, lang=2e-3)
    hold(p, late=True, **loss)

    p = config.phase5b_translation
    set_pairs(p, steps=4)
    shape(p, lora=3e-4, lang=2e-3)
    hold(p, late=True, **loss)

    p = config.phase5c_reasoning
    solutions = dict(kind="reasoning", language="ko", **OURS, weight=10.0)
    # Without Korean text beside them, solutions cost a nat of it.
    p.data, p.steps = {"solutions-train": solutions} | text("en") | text("ko"), 22
    shape(p, lang=1e-2, batch_size=2, seq_len=384)
    p.loss_positions = 288
    hold(p, late=True, **{"korean-loss": common.korean_loss(0.6)})

    p = config.phase5d_exam
    p.data, p.steps = {"exam-train": dict(kind="exam", language="ko", **OURS)}, 2
    shape(p, lora=1e-4, lang=1e-4, batch_size=8, seq_len=256)
    p.reward.rollout.group_size, p.reward.rollout.max_new_tokens = 4, 160
    p.reward.rollout.max_refills = 0  # a refill of fewer rows compiles again
    hold(p, late=True, form=common.form(threshold=0.5), **loss)
