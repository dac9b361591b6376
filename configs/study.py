"""Is "each layer" training worth its price? One phase of Korean on real data, a condition and a seed a run.

    bash launch/study.sh DATA                                        # all of it; again, it goes on where it stood
    medkor run --config configs/study.py:DATA,each-layer,0           # one condition
    medkor compare runs/study/*-0                                    # which is better, and can one tell

DATA holds kormedmcqa/, korean_text/, ... Every condition starts from the same weights and reads as many tokens in as
many steps by the same optimizer; they differ in what those tokens are and in what is asked of them (CONDITIONS). A
share is of the tokens. RATE is one at which plain LoRA forgets: without it there would be nothing to hold; "-half-rate"
and "-quarter-rate" are what a lower one does instead. The peer (transformers with PEFT) trains on the very batches of
"lora": `medkor_jax.bench.study_peer`; what it made is measured here as "peer". Gates record only, but for "remedy" and
"remedy-gentle", whose gate closes as phase 3's does. Another machine or model: set `weights`, `mesh` and the shape below.
Results: docs/STUDY.md.
"""

import dataclasses

from configs import common, phases
from configs.measured import EXAM_TEXT, NON_COMMERCIAL

STEPS, ROWS, LENGTH = 40, 4, 128
REMEDY_STEPS = 10
NEWS = "runs/study/news-en.txt"  # `launch/study.sh` puts DATA's there: general English, which nothing trains on
RATE = 2e-3  # of LoRA, at which it forgets; the embeddings' is five times that
RISE = 0.05  # nats of English that close the gate of "remedy"


@dataclasses.dataclass(frozen=True)
class Condition:
    """english: share of the tokens that are English; loss: what they carry (`Source.loss`); rate: LoRA's; remedy: its rate,
    0 for none."""

    embeddings: bool = True
    english: float = 0.0
    loss: str = "next_token"
    retention: float = 0.0
    at: str = "each"
    rate: float = RATE
    remedy: float = 0.0


CONDITIONS = {
    "lora": Condition(embeddings=False),
    "embeddings": Condition(),
    "remedy": Condition(remedy=RATE),
    "remedy-gentle": Condition(remedy=RATE / 10),
    "rehearsal-10": Condition(english=0.1),
    "rehearsal-30": Condition(english=0.3),
    "each-layer": Condition(english=0.3, loss="each_layer", retention=1.0),
    "each-layer-4": Condition(english=0.3, loss="each_layer", retention=4.0),
    "last-layer": Condition(english=0.3, loss="each_layer", retention=1.0, at="last"),
    "both": Condition(english=0.3, loss="", retention=1.0),
}
CONDITIONS |= {
    f"{name}-{part}-rate": dataclasses.replace(CONDITIONS[name], rate=RATE * share)
    for part, share, names in (
        ("half", 0.5, ("lora", "rehearsal-30", "each-layer", "last-layer")),
        ("quarter", 0.25, ("lora",)),
    )
    for name in names
}
PEER = "peer"


def get_config(argument="data,embeddings,0"):
    data, name, seed = argument.split(",")
    if name not in (*CONDITIONS, PEER):
        raise ValueError(f"{name!r} is no condition; choose from {', '.join((*CONDITIONS, PEER))}")
    config = common.get_config()
    config.run_dir, config.seed = f"runs/study/{name}-{seed}", int(seed)
    config.weights = f"runs/study/{PEER}-model-{seed}" if name == PEER else "embedded"
    config.dtype = config.param_dtype = "float32"
    config.remat, config.log_every, config.drop_bad = "none", 4, True
    config.held_out_tokens = 1200
    config.exams, config.held_out = exams(data), held_out(data)
    with config.unlocked():
        config.phase3 = phases.phase3()
    config.run = config.phases = ("phase3",)
    set_phase(config.phase3, data, CONDITIONS.get(name))
    return config


def set_phase(p, data, condition):
    p.after, p.gate.on_failure, p.gate.allow_chance = "", "continue", True
    p.gate.threshold = 0.5  # records only: 20 questions, at chance, decide nothing
    p.remedy.steps, p.remedy.data, p.gate.requires = 0, {}, {}
    # Held-out text is read in this shape: the same for all.
    shape(p, condition.rate if condition else RATE)
    if condition is None:
        p.steps, p.data = 0, {}
        return
    learnt = korean(data, 1.0 - condition.english, "next_token" if condition.retention else "")
    held = english(data, condition.english, condition.loss) if condition.english else {}
    p.data = learnt | held
    p.steps, p.retention.weight, p.retention.at = STEPS, condition.retention, condition.at
    if condition.embeddings:
        p.language.kind = "vector"
    else:
        p.trees = ("lora",)
    if condition.remedy:
        p.steps = STEPS - REMEDY_STEPS  # as many in all
        p.gate.on_failure, p.gate.rounds = "retain", 1
        p.gate.requires = {"english-loss": dict(held_out="english-medical", rise_nats=RISE)}
        p.remedy.steps, p.remedy.data = REMEDY_STEPS, english(data, 1.0, "")
        shape(p.remedy, condition.remedy)


def shape(stage, rate):
    stage.batch_size, stage.seq_len, stage.warmup_steps, stage.save_every = ROWS, LENGTH, 4, 20
    stage.rules.lora.learning_rate, stage.rules.lang.learning_rate = rate, 5 * rate


def korean(data, share, loss):
    """One chat (96 tokens, a mean of 400) to two questions of the exam (174): `share` of the tokens with `english`'s."""
    chats = common.text(
        f"{data}/korean_text/genmedgpt-5k-ko.csv",
        "ko",
        "none stated",
        fields=("input", "output"),
        held_share=0.02,
        part="train",
        weight=share,
        loss=loss,
    )
    exam = common.text(
        f"{data}/kormedmcqa/doctor/train.csv",
        "ko",
        NON_COMMERCIAL,
        fields=EXAM_TEXT,
        weight=2 * share,
        loss=loss,
    )
    return {"genmedgpt-ko": chats, "doctor-train-text": exam}


def english(data, share, loss):
    share *= (96 + 2 * 174) / 166  # tokens of `korean` at weight 1, and of a document here
    path = f"{data}/english_text/medquad-5k.jsonl.gz"
    return {"medquad": common.text(path, "en", "CC BY 4.0", weight=share, loss=loss)}


def exams(data):
    korean, english = (
        dict(language=code, licence=NON_COMMERCIAL, limit=20) for code in ("ko", "en")
    )
    return {
        "english": common.exam(f"{data}/kormedmcqa_en/doctor-valid.jsonl", english, batch_size=8),
        "korean": common.exam(f"{data}/kormedmcqa/doctor/valid.csv", korean, batch_size=8),
    }


def held_out(data):
    """What nothing here trains on."""
    part = dict(held_share=0.02, part="held_out")
    chats = dict(fields=("input", "output"), **part)
    return {
        "korean-exam": common.text(
            f"{data}/kormedmcqa/doctor/test.csv", "ko", NON_COMMERCIAL, fields=EXAM_TEXT
        ),
        "korean-chat": common.text(
            f"{data}/korean_text/genmedgpt-5k-ko.csv", "ko", "none stated", **chats
        ),
        "korean-wiki": common.text(
            f"{data}/korean_text/korquad-dev-paragraphs.jsonl",
            "ko",
            "CC BY-ND 2.0 KR",
            fields=("text",),
        ),
        "english-medical": common.text(
            f"{data}/english_exam/medqa-5-options-dev.jsonl", "en", "MIT", fields=("question",)
        ),
        "english-news": common.text(NEWS, "en", "CC BY-SA 3.0"),
    }
