"""Phases 0 to 3 of the embedded 270M on real data, with a stated budget: the run of
docs/RESULTS.md.

    medkor run --config configs/measured.py:DATA_DIR                # it holds kormedmcqa/, ...
    medkor run --config configs/measured.py:DATA_DIR,no-retention   # no "each layer" training

A 270M model is at chance on these exams, and stays there: no gate stops it, the gates allow chance
and say so in every verdict, and what is compared is the loss on held-out text.
"""

from configs import common, pipeline

EXAM_TEXT = ("question", "A", "B", "C", "D", "E")
NON_COMMERCIAL = "CC BY-NC 2.0"


def shape(stage):
    stage.batch_size, stage.seq_len, stage.warmup_steps, stage.save_every = 4, 256, 4, 50
    stage.rules.lora.learning_rate, stage.rules.lang.learning_rate = 3e-4, 1e-2


def get_config(argument="data"):
    data, _, retention = argument.partition(",")
    config = pipeline.get_config(run=pipeline.up_to("phase3"))
    config.run_dir, config.weights = (
        "runs/measured" + (f"-{retention}" if retention else ""),
        "embedded",
    )
    config.dtype = config.param_dtype = "float32"
    config.remat, config.log_every, config.held_out_tokens, config.drop_bad = "none", 4, 2000, True
    english = dict(language="en", licence=NON_COMMERCIAL, limit=100)
    korean = dict(language="ko", licence=NON_COMMERCIAL, limit=32)
    config.exams = {
        "english": common.exam(f"{data}/kormedmcqa_en/doctor-valid.jsonl", english),
        "korean": common.exam(f"{data}/kormedmcqa/doctor/valid.csv", korean),
    }
    test, dev = (
        f"{data}/kormedmcqa/doctor/test.csv",
        f"{data}/english_exam/medqa-5-options-dev.jsonl",
    )
    config.held_out = {
        "korean": common.text(test, "ko", NON_COMMERCIAL, fields=EXAM_TEXT),
        "english": common.text(dev, "en", "MIT", fields=("question",)),
    }
    set_phases(config, data, on_failure="continue" if retention else "retain")
    return config


def set_phases(config, data, on_failure):
    medquad = f"{data}/english_text/medquad-5k.jsonl.gz"
    genmedgpt, train = (
        f"{data}/korean_text/genmedgpt-5k-ko.csv",
        f"{data}/kormedmcqa/doctor/train.csv",
    )
    english = {"medquad": common.text(medquad, "en", "CC BY 4.0")}
    korean = {
        "genmedgpt-ko": common.text(genmedgpt, "ko", "none stated", fields=("input", "output")),
        "doctor-train-text": common.text(train, "ko", NON_COMMERCIAL, fields=EXAM_TEXT, weight=3.0),
    }
    exam = {"doctor-train": dict(kind="exam", path=train, language="ko", licence=NON_COMMERCIAL)}

    for p in (config.phase0, config.phase2, config.phase3):
        # 100 questions tell 10 points by mean probability, and not 3.
        p.gate.threshold, p.gate.allow_chance, p.gate.on_failure = 0.9, True, "continue"
        p.gate.requires = {"korean-loss": common.korean_loss(0.05)}
        shape(p)
    for p in (config.phase2, config.phase3):
        p.remedy.data, p.remedy.steps = english, 6
        shape(p.remedy)

    p = config.phase0
    p.data, p.steps, p.exam = english, 12, "english"

    p = config.phase1
    p.exam, p.candidates = "english", ("phase0",)
    p.gate.on_failure, p.gate.allow_chance = "continue", True
    p.remedy.steps, p.remedy.data = 0, {}

    p = config.phase2
    p.data, p.steps = korean, 6

    p = config.phase3
    p.data, p.steps = korean | exam, 20
    p.gate.on_failure, p.gate.rounds = on_failure, 2
