"""Phases 0 to 3 of the embedded 270M on real data, with a stated budget: the run of docs/RESULTS.md.

    medkor run --config configs/measured.py:DATA_DIR                # DATA_DIR holds kormedmcqa/, english_text/, ...
    medkor run --config configs/measured.py:DATA_DIR,no-retention   # the same without "each layer" training

A 270M model is at chance on these exams, and stays there: no gate stops it, the gates allow chance and say so in every
verdict, and what is compared is the loss on held-out text.
"""

from configs import common, phase0, phase1, phase2, phase3, pipeline

SHAPE = dict(
    batch_size=4, seq_len=256, warmup_steps=4, save_every=50,
    rules={"lora": dict(learning_rate=3e-4), "lang": dict(learning_rate=1e-2)},
)  # fmt: skip

EXAM_TEXT = ("question", "A", "B", "C", "D", "E")


def get_config(argument="data"):
    data, _, retention = argument.partition(",")
    config = pipeline.get_config(run=("phase0", "phase1", "phase2", "phase3"))
    config.run_dir, config.weights = "runs/measured" + (f"-{retention}" if retention else ""), "embedded"
    config.dtype = config.param_dtype = "float32"
    config.remat, config.log_every, config.watch_tokens, config.drop_bad = "none", 4, 2000, True

    def text(name, path, language, licence, **rest):
        return {name: dict(kind="text", path=f"{data}/{path}", language=language, licence=licence, **rest)}

    english = text("medquad", "english_text/medquad-5k.jsonl.gz", "en", "CC BY 4.0")
    korean = text("genmedgpt-ko", "korean_text/genmedgpt-5k-ko.csv", "ko", "none stated", fields=("input", "output")) | text(
        "doctor-train-text", "kormedmcqa/doctor/train.csv", "ko", "CC BY-NC 2.0", fields=EXAM_TEXT, weight=3.0
    )
    korean_exam = {
        "doctor-train": dict(kind="exam", path=f"{data}/kormedmcqa/doctor/train.csv", language="ko", licence="CC BY-NC 2.0")
    }
    with config.unlocked():
        config.exams = {
            "english": common.exam(
                f"{data}/kormedmcqa_en/doctor-valid.jsonl", source=dict(language="en", licence="CC BY-NC 2.0", limit=100)
            ),
            "korean": common.exam(
                f"{data}/kormedmcqa/doctor/valid.csv", source=dict(language="ko", licence="CC BY-NC 2.0", limit=32)
            ),
        }
        config.watch = text("korean", "kormedmcqa/doctor/test.csv", "ko", "CC BY-NC 2.0", fields=EXAM_TEXT) | text(
            "english", "english_exam/medqa-5-options-dev.jsonl", "en", "MIT", fields=("question",)
        )
        # 100 questions tell 10 points by mean probability, and not 3.
        korean_loss = {"korean-loss": dict(watch="korean", rise_nats=0.05)}
        gate = dict(reading="non_inferior", threshold=0.9, allow_chance=True, requires=korean_loss)
        on_failure = "continue" if retention else "retain"
        remedy = dict(data=english, steps=6, **SHAPE)
        config.phase0 = phase0.phase(data=english, steps=12, exam="english", gate=gate | dict(on_failure="continue"), **SHAPE)
        config.phase1 = phase1.phase(
            exam="english",
            candidates=("phase0",),
            gate=dict(on_failure="continue", allow_chance=True),
            remedy=dict(steps=0, data={}),
        )
        config.phase2 = phase2.phase(data=korean, steps=6, gate=gate | dict(on_failure="continue"), remedy=remedy, **SHAPE)
        config.phase3 = phase3.phase(
            data=korean | korean_exam, steps=20, gate=gate | dict(on_failure=on_failure, rounds=2), remedy=remedy, **SHAPE
        )
    return config
