"""New Korean tokens against language vectors alone, on the embedded 270M and real data: the table of
docs/RESULTS.md.

    medkor run --config configs/korean_tokens.py:DATA_DIR,vector      # it holds kormedmcqa/, ...
    medkor run --config configs/korean_tokens.py:DATA_DIR,tokens

Same text, steps and tokens a step; then what was held out, in nats a token of the base, which is the
same text for both. No gate stops it: what is compared is that loss, and the seconds.
"""

from configs import common, phases
from configs.measured import EXAM_TEXT, NON_COMMERCIAL

SIZE = 6000
STEPS = {"phase2": 16, "phase3": 16}


def get_config(argument="data,tokens"):
    data, kind = argument.split(",")
    config = common.get_config()
    with config.unlocked():
        config.phase2, config.phase3 = phases.phase2(), phases.phase3()
    config.run = config.phases = ("phase2", "phase3")
    config.run_dir, config.weights = f"runs/korean-{kind}", "embedded"
    config.dtype = config.param_dtype = "float32"
    config.remat, config.log_every, config.held_out_tokens, config.drop_bad = "none", 4, 0, True
    config.exams = {
        "english": common.exam(
            f"{data}/kormedmcqa_en/doctor-valid.jsonl",
            dict(language="en", licence=NON_COMMERCIAL, limit=8),
        )
    }
    chats = dict(fields=("input", "output"), held_share=0.02)
    genmedgpt = f"{data}/korean_text/genmedgpt-5k-ko.csv"
    config.held_out = {
        "exam-text": common.text(
            f"{data}/kormedmcqa/doctor/valid.csv", "ko", NON_COMMERCIAL, fields=EXAM_TEXT, limit=60
        ),
        "chats": common.text(genmedgpt, "ko", "none stated", part="held_out", limit=40, **chats),
        "english": common.text(
            f"{data}/english_exam/medqa-5-options-dev.jsonl",
            "en",
            "MIT",
            fields=("question",),
            limit=40,
        ),
    }
    korean = {
        "genmedgpt-ko": common.text(
            genmedgpt, "ko", "none stated", part="train", weight=2.0, **chats
        ),
        **{
            f"{name}-train-text": common.text(
                f"{data}/kormedmcqa/{name}/train.csv", "ko", NON_COMMERCIAL, fields=EXAM_TEXT
            )
            for name in ("doctor", "nurse", "pharm")
        },
        "medquad": common.text(
            f"{data}/english_text/medquad-5k.jsonl.gz", "en", "CC BY 4.0", weight=0.5
        ),
    }
    for name, steps in STEPS.items():
        p = config[name]
        p.exam, p.data, p.steps = "english", korean, steps
        p.batch_size, p.seq_len, p.warmup_steps, p.save_every = 4, 256, 4, 100
        p.rules.lora.learning_rate, p.rules.lang.learning_rate = 1e-3, 1e-2
        p.gate.threshold, p.gate.allow_chance, p.gate.on_failure = 0.1, True, "continue"
        p.gate.reading, p.gate.requires = "absolute", {}
        p.remedy.steps, p.remedy.data = 0, {}
    config.phase2.after = ""
    config.phase2.language.kind = kind
    if kind == "tokens":
        config.phase2.language.size = SIZE
    return config
