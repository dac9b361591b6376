"""All phases on one sheet, in the order they run: ORDER, at the end.

Each function makes the phase of its name, for MedGemma; what it does not set has its default
(docs/CONFIG.md). Other configs take them all (`pipeline.get_config()`) and set what differs:
`config.phase3.steps = 16`. To add a phase, write its function here and put it where it runs in
ORDER.
"""

from configs import public
from configs.common import form, hold_english, korean, phase
from configs.public import trained

ENGLISH = {"english-text": trained(public.GUIDELINES)}
KOREAN_TEXT = {"korean-text": trained(public.MEDICAL_O1)}
KOREAN_EXAM = {"korean-exam-train": trained(public.KORMEDMCQA, kind="exam")}
KOREAN = KOREAN_TEXT | KOREAN_EXAM
ENGLISH_EXAM = {
    "english-exam-train": trained(public.KORMEDMCQA_ENGLISH, kind="exam", split="train"),
    "medqa-train": trained(public.MEDQA, kind="exam", split="train"),
}
PAIRS = {
    "medical-pairs": trained(public.PUBMED_PAIRS),
    "general-pairs": trained(public.GENERAL_PAIRS),
}
HELD_OUT_PAIRS = {"held-out-pairs": public.HELD_OUT_PAIRS}
SOLUTIONS = {"korean-solutions": trained(public.SOLUTIONS)}
ALL_TREES = ("lora", "lang", "expand")
LARGE = "google/medgemma-27b-text-it"  # fetched only if the smaller model does not pass phase 1


def phase0():
    p = phase("English medical text trains LoRA_0; merged into the base", exam="english-choice")
    p.lora.rank = 16
    p.trees, p.data, p.steps = ("lora",), ENGLISH, 2000
    p.merge = True
    p.gate.on_failure = "continue"
    return p


def phase1():
    p = phase("choose the model by the English exam; LoRA_1 in English if none passes")
    p.candidates, p.is_reference = ("phase0", f"phase0 on {LARGE}"), True
    # by other questions than the later gates, which compare with the model chosen here
    p.exam = "english-choice"
    p.gate.reading, p.gate.threshold, p.gate.on_failure = "absolute", 0.4, "train"
    p.remedy_lora.rank = 16
    p.remedy.trees, p.remedy.steps = ("lora",), 1000
    p.remedy.data = ENGLISH_EXAM | ENGLISH
    return p


def phase2():
    p = phase("two language embeddings, trained alone", after="phase1")
    p.language.kind = "vector"
    p.trees, p.steps = ("lang",), 500
    p.data = KOREAN_TEXT | {"english-text": trained(public.GUIDELINES, weight=0.25)}
    p.gate.requires = korean()
    hold_english(p, ENGLISH, steps=200)
    return p


def phase3():
    title = "Korean text trains the embeddings and LoRA_1; English held by each-layer training"
    p = phase(title, after="phase2")
    p.lora.rank = 16
    p.trees, p.data, p.steps = ("lora", "lang"), KOREAN, 4000
    p.gate.requires = korean()
    hold_english(p, ENGLISH)
    return p


def phase4a_text():
    p = phase("Korean text, exam format included", after="phase3")
    p.trees, p.data, p.steps = ("lora", "lang"), KOREAN, 2000
    p.gate.requires = korean()
    hold_english(p, ENGLISH)
    return p


def phase4b_translation():
    title = "a layer added at each end; Korean translation, both ways"
    p = phase(title, after="phase4a_text")
    p.expand.front = p.expand.back = 1
    p.trees, p.data, p.steps = ALL_TREES, PAIRS, 4000
    p.translations = HELD_OUT_PAIRS
    p.gate.requires = korean()
    hold_english(p, ENGLISH)
    return p


def phase5a_text():
    title = "Korean text once more trains the embeddings and LoRA_1, not the added layers"
    p = phase(title, after="phase4b_translation")
    p.trees, p.data, p.steps = ("lora", "lang"), KOREAN, 1000
    p.gate.requires = korean()
    hold_english(p, ENGLISH)
    return p


def phase5b_translation():
    p = phase("Korean translation once more", after="phase5a_text")
    p.trees, p.data, p.steps = ALL_TREES, PAIRS, 1000
    p.translations = HELD_OUT_PAIRS
    p.gate.requires = korean()
    hold_english(p, ENGLISH)
    return p


def phase5c_reasoning():
    title = "solutions to the exam teach the form of reasoning"
    p = phase(title, after="phase5b_translation")
    p.trees, p.data, p.steps = ALL_TREES, SOLUTIONS, 2000
    p.gate.requires = korean() | {"form": form()}
    hold_english(p, ENGLISH)
    return p


def phase5d_exam():
    title = "the exam itself, with a reward: form, one letter, the right letter"
    p = phase(title, after="phase5c_reasoning")
    p.trees, p.data, p.steps, p.batch_size = ALL_TREES, KOREAN_EXAM, 1000, 64
    p.reward.algorithm, p.reward.rollout.max_new_tokens = "grpo", 512
    for rule in p.rules.values():
        rule.learning_rate = 2e-5
    p.gate.requires = korean() | {"form": form()}
    hold_english(p, ENGLISH)
    return p


ORDER = (
    phase0,
    phase1,
    phase2,
    phase3,
    phase4a_text,
    phase4b_translation,
    phase5a_text,
    phase5b_translation,
    phase5c_reasoning,
    phase5d_exam,
)
