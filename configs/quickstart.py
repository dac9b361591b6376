"""Phases 0 to 3 on the embedded Gemma 3 270M and the embedded exam, in minutes on two CPU cores.

The texts state the facts of the training and the validation exam; no question is trained on. Facts of the
test split are in nothing that is trained on: their texts are what is watched.
"""

from configs import common, phase0, phase1, phase2, phase3, pipeline

OURS = dict(path="embedded", licence="Apache-2.0")
GROUPS = {"lora": dict(learning_rate=1e-3), "lang": dict(learning_rate=2e-2)}  # short runs want high rates
SHAPE = dict(batch_size=4, seq_len=128, warmup_steps=3, save_every=50, groups=GROUPS)


def text(language):
    return {
        f"{language}-text-{split}": dict(kind="text", language=language, subset=split, **OURS, weight=weight)
        for split, weight in (("train", 3.0), ("valid", 1.0))
    }


def get_config(run=("phase0", "phase1", "phase2", "phase3")):
    config = pipeline.get_config(run)
    config.run_dir, config.weights = "runs/quickstart", "embedded"
    config.dtype = config.param_dtype = "float32"
    config.remat, config.log_every, config.watch_tokens = False, 4, 1024
    with config.unlocked():
        # A 270M model cannot bind an answer to its letter in minutes; "cloze" asks for the answer's text.
        config.exams = {
            language: common.exam("embedded", source=dict(language=code, licence="Apache-2.0"), mode="cloze", batch_size=32)
            for language, code in (("english", "en"), ("korean", "ko"))
        }
        config.watch = {
            language: dict(kind="text", language=code, subset="test", **OURS)
            for language, code in (("korean", "ko"), ("english", "en"))
        }
        config.phase0 = phase0.phase(data=text("en"), steps=12, **SHAPE)
        config.phase1 = phase1.phase(
            candidates=("phase0",),
            gate=dict(threshold=0.5, rounds=3),
            remedy=dict(data=text("en"), steps=12, **SHAPE),
        )
        config.phase2 = phase2.phase(
            data=text("ko"),
            steps=6,
            gate=dict(reading="relative", threshold=0.9),
            remedy=dict(data=text("en"), steps=4, **SHAPE),
            **SHAPE,
        )
        config.phase3 = phase3.phase(
            data=text("ko"),
            steps=16,
            gate=dict(reading="relative", threshold=0.9),
            remedy=dict(data=text("en"), steps=6, **SHAPE),
            **SHAPE,
        )
    return config
