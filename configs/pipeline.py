"""All phases in order, on MedGemma: `medkor run --config configs/pipeline.py`.

Bring, under data/: english_text.jsonl and korean_text.jsonl ({"text": ...} a line), english_held_out.jsonl and
korean_held_out.jsonl (the same, never trained on), english_exam_train.jsonl and english_exam_valid.jsonl (the exam in
English, the KorMedMCQA columns; `medkor data translate` makes them), pairs_train.jsonl and pairs_valid.jsonl
({"en": ..., "ko": ...}), korean_solutions.jsonl (questions with their reasoning). The Korean exam and MedQA come from the hub.

The exam in English chooses the model in phase 1; MedQA, whose 1,273 questions can tell 3 points, holds it from then on. The
test split is put to the finished model once. What each gate asks, and why: docs/GATES.md.
"""

from configs import common, phase0, phase1, phase2, phase3, phase4, phase5

ALL = (
    "phase0", "phase1", "phase2", "phase3", "phase4a_text", "phase4b_translation",
    "phase5a_text", "phase5b_translation", "phase5c_reasoning", "phase5d_exam",
)  # fmt: skip

REASONING = ("phase5c_reasoning", "phase5d_exam")


def get_config(run=ALL):
    config = common.get_config()
    config.run = run
    with config.unlocked():
        korean = dict(subset="doctor", split="dev", language="ko", licence="CC BY-NC 2.0")
        config.exams = {
            "english-choice": common.exam("data/english_exam_valid.jsonl", source=dict(language="en"), phases=ALL[:2]),
            "english": common.exam(
                "GBaker/MedQA-USMLE-4-options", source=dict(split="test", language="en", licence="CC BY 4.0"), phases=ALL[1:]
            ),
            "korean": common.exam("sean0042/KorMedMCQA", source=korean),
            "korean-reasoned": common.exam("sean0042/KorMedMCQA", source=korean, mode="reason", phases=REASONING),
        }
        config.watch = {
            "korean": dict(kind="text", path="data/korean_held_out.jsonl", language="ko", licence="set me"),
            "english": dict(kind="text", path="data/english_held_out.jsonl", language="en", licence="set me"),
        }
        if run[-1] == ALL[-1]:
            test = korean | dict(split="test")
            shots = dict(name="korean-shots", kind="exam", path="sean0042/KorMedMCQA", **(korean | dict(split="fewshot")))
            config.final = {
                "korean-final": common.exam("sean0042/KorMedMCQA", source=test),
                "korean-final-harness": common.exam("sean0042/KorMedMCQA", source=test, mode="harness", shots=5, fewshot=shots),
            }
        phases = dict(
            phase0=phase0.phase(), phase1=phase1.phase(), phase2=phase2.phase(), phase3=phase3.phase(),
            phase4a_text=phase4.text(), phase4b_translation=phase4.translation(), phase5a_text=phase5.text(),
            phase5b_translation=phase5.translation(), phase5c_reasoning=phase5.reasoning(), phase5d_exam=phase5.exam(),
        )  # fmt: skip
        # what comes after the last phase to run needs no data yet
        config.update({name: phases[name] for name in ALL[: ALL.index(run[-1]) + 1]})
    return config


def on_machine(topology, weights, *, mesh, rows, remat="gate_up", chunk=256, last=ALL[-1]):
    """Returns the config of all phases up to `last` for one machine: its choices laid over every phase.

    What a phase learns from is its own file's business; what is set here changes no result beyond rounding. `medkor plan
    --config FILE` says what each stage then needs of the machine.

    topology: as `medkor plan` names it. rows: of the training batch that one device holds at once; the rest of its share
    comes in further microbatches. Only this model is a candidate: another would be another machine's.
    """
    config = get_config(ALL[: ALL.index(last) + 1])
    config.topology, config.weights, config.remat, config.chunk = topology, weights, remat, chunk
    config.mesh.update(mesh)
    ways = config.mesh.data * config.mesh.fsdp
    for name in config.run:
        for stage in (config[name], config[name].remedy):
            if stage.steps:
                stage.microbatches = max(1, stage.batch_size // (ways * rows))
    if "phase1" in config:
        config.phase1.candidates = ("phase0",)
    return config
