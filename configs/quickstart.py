"""The method on the embedded Gemma 3 270M and the embedded exam, in minutes on two CPU cores.

    medkor run --config configs/quickstart.py                 # phases 0 to 5c
    medkor run --config configs/quickstart.py:phase3          # to phase 3; the line above goes on there
    medkor run --config configs/quickstart.py:phase5d_exam    # and two steps of the reward behind it

Twenty-four facts are taught, first in English text and then in Korean text, and asked in both languages, four times
each: few enough that a model that reads 120 tokens a second meets each some thirty times. What is asked is never
read: texts state the facts, questions ask them. How a question is answered is taught beside the texts by questions
about other facts: without these the model learnt the sentences and not what to answer (Jiang et al. 2024,
arXiv:2402.12847; measured in docs/RESULTS.md). Every option of these questions is a fact that the texts state as
often as the right one: to prefer what one has read gains nothing. The model is chosen by questions about facts that
nothing teaches. Questions, solutions and rewards that are trained on are about facts of the training split.

Phase 3 goes as the mission has it: Korean alone until the English gate closes, then "each layer" training. Its remedy
here keeps Korean beside the English that is held: each layer alone gives back what Korean had gained. The phases
beside it hold English from their first step. 4a, 5a and 5b, which repeat what 3 and 4b teach, are left out, and 5d
runs where it is named: in a minute the reward teaches nothing that can be told (configs/rewarded.py has what it
needs). Every gate that compares asks the same: nine tenths of the English that phase 1 left, surely.
"""

from configs import common, pipeline

RUN = (
    "phase0",
    "phase1",
    "phase2",
    "phase3",
    "phase4b_translation",
    "phase5c_reasoning",
    "phase5d_exam",
)
LAST = "phase5c_reasoning"
OURS = dict(path="embedded", licence="Apache-2.0")
RELATIONS = "deficiency,transmission,antidote,hormone"
TAUGHT = f"valid+test/{RELATIONS}"  # what texts state and exams ask
ANSWERED = f"train/{RELATIONS}"  # other facts: how such questions are answered
OTHERS = "valid+test/pathogen,sign,nerve"  # what is in no text


def get_config(last=LAST):
    config = pipeline.get_config()
    set_run(config, last)
    config.run_dir, config.weights = "runs/quickstart", "embedded"
    config.dtype = config.param_dtype = "float32"
    config.remat, config.log_every = "none", 4
    config.held_out_tokens = 240
    set_exams(config)
    for name in config.run:
        SET[name](config[name])
    return config


def set_run(config, last):
    """Takes out the phases that are not run, and those behind `last`."""
    if last not in RUN:
        raise ValueError(f"{last!r} is no phase to run up to; the phases are {', '.join(RUN)}")
    config.run = config.phases = RUN[: RUN.index(last) + 1]
    with config.unlocked():
        for name in pipeline.ALL:
            if name not in config.run:
                del config[name]
    for name, after in (("phase4b_translation", "phase3"), ("phase5c_reasoning", RUN[4])):
        if name in config:
            config[name].after = after
    config.final = {}


def set_exams(config):
    judged = [name for name in config.run if name in ("phase3", *RUN[-2:])]
    config.exams = {
        "english-choice": asked("en", phases=RUN[:2], source=dict(split=OTHERS, limit=48)),
        "english": asked("en", phases=config.run[1:]),
        "korean": asked("ko", phases=tuple(judged)),
        "korean-reasoned": asked(
            "ko",
            mode="reason",
            phases=tuple(name for name in config.run if name in RUN[-2:]),
            batch_size=16,
            max_new_tokens=144,
            source=dict(limit=20),
        ),
    }
    config.exams = {name: exam for name, exam in config.exams.items() if exam["phases"]}
    config.held_out = {"korean": dict(kind="text", language="ko", subset=OTHERS, **OURS)}


def asked(language, source=None, **how):
    """A 270M model cannot bind an answer to its letter in minutes; "cloze" asks for the answer's text."""
    wanted = dict(split=TAUGHT, subset="both") | (source or {})
    source = dict(language=language, licence="Apache-2.0") | wanted
    return common.exam("embedded", source, **(dict(mode="cloze", batch_size=32) | how))


def taught(language, weight=1.0, loss=""):
    """Texts that state the facts, and questions about others with the answer's text, as exams here ask."""
    of = dict(language=language, weight=weight, loss=loss, **OURS)
    return {
        f"{language}-text": dict(kind="text", subset=TAUGHT, **of),
        f"{language}-answered": dict(kind="exam", split=ANSWERED, answered_by="text", **of),
    }


def held_english(weight):
    """English whose tokens are learnt and held to the reference, at every layer."""
    return taught("en", weight)


def shape(stage, *, lora=1.7e-3, lang=2e-2, expand=1e-4, batch_size=4, seq_len=128):
    """Small batches, few steps; short runs want high rates."""
    stage.batch_size, stage.seq_len = batch_size, seq_len
    stage.warmup_steps, stage.save_every = 3, 50
    stage.rules.lora.learning_rate = lora
    stage.rules.lang.learning_rate = lang
    stage.rules.expand.learning_rate = expand


def hold(p, *, steps, lora=1.7e-3):
    """One gate for all phases, and its remedy: English held at each layer, Korean kept beside it."""
    p.gate.reading, p.gate.threshold, p.gate.rounds, p.gate.requires = "relative", 0.9, 1, {}
    p.gate.confidence = 0.9  # 96 questions: at 95 % an equal model would open it 42 times in 100
    p.remedy.data = held_english(1.5) | taught("ko", loss="next_token")
    p.remedy.steps, p.remedy.next_token_weight, p.remedy.retention.positions = steps, 1.0, 16
    shape(p.remedy, lora=lora)


def phase0(p):
    p.data, p.steps = taught("en"), 16
    shape(p)


def phase1(p):
    # One candidate, and questions about what nothing teaches: its gate records, and LoRA_1 waits for phase 3.
    p.candidates, p.gate.on_failure = ("phase0",), "continue"
    p.remedy.data, p.remedy.steps = {}, 0


def phase2(p):
    p.data, p.steps = taught("ko", loss="next_token") | held_english(0.5), 8
    p.retention.weight, p.retention.positions = 1.0, 8
    shape(p)
    hold(p, steps=8)


def phase3(p):
    p.data, p.steps = taught("ko"), 32
    shape(p)
    hold(p, steps=24)


def phase4b_translation(p):
    pairs = dict(kind="translation", subset=TAUGHT, loss="next_token", **OURS)
    texts = held_english(0.5) | taught("ko", 0.5, loss="next_token")
    p.data, p.steps = {"pairs": pairs} | texts, 12
    p.retention.weight, p.retention.positions, p.translations = 1.0, 8, {}
    shape(p, lora=5e-4, lang=2e-3)
    hold(p, steps=8, lora=5e-4)


def phase5c_reasoning(p):
    solutions = dict(kind="reasoning", language="ko", loss="next_token", **OURS)
    texts = held_english(1.0) | taught("ko", 4.0, loss="next_token")
    p.data, p.steps = {"solutions-train": solutions} | texts, 8
    p.retention.weight, p.retention.positions, p.loss_positions = 1.0, 8, 288
    shape(p, lora=5e-4, lang=2e-3, batch_size=2, seq_len=384)
    hold(p, steps=8, lora=5e-4)


def phase5d_exam(p):
    p.data, p.steps = {"exam-train": dict(kind="exam", language="ko", **OURS)}, 2
    shape(p, lora=1e-4, lang=1e-4, batch_size=8, seq_len=256)
    p.reward.rollout.group_size, p.reward.rollout.max_new_tokens = 4, 144
    p.reward.rollout.max_refills = 0  # a refill of fewer rows compiles again
    hold(p, steps=8, lora=5e-4)


SET = {
    make.__name__: make
    for make in (
        phase0,
        phase1,
        phase2,
        phase3,
        phase4b_translation,
        phase5c_reasoning,
        phase5d_exam,
    )
}
