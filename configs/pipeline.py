"""All phases in order, on MedGemma: `medkor run --config configs/pipeline.py`.

Bring: data/english_text.jsonl and data/korean_text.jsonl ({"text": ...} a line), data/english_exam_train.jsonl
and data/english_exam_valid.jsonl (the exam in English, the KorMedMCQA columns). The Korean exam comes from the hub.
"""

from configs import common, phase0, phase1, phase2, phase3


def get_config(run=("phase0", "phase1", "phase2", "phase3")):
    config = common.get_config()
    config.run = run
    with config.unlocked():
        config.exams = dict(
            english=common.exam("data/english_exam_valid.jsonl", source=dict(language="en")),
            korean=common.exam("sean0042/KorMedMCQA", source=dict(subset="doctor", split="dev", language="ko", licence="CC BY-NC 2.0")),
        )
        config.watch = {
            "korean": dict(kind="text", path="data/korean_held_out.jsonl", language="ko", licence="set me"),
            "english": dict(kind="text", path="data/english_held_out.jsonl", language="en", licence="set me"),
        }
        config.phase0, config.phase1 = phase0.phase(), phase1.phase()
        config.phase2, config.phase3 = phase2.phase(), phase3.phase()
    return config
