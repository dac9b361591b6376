"""All phases in order, on MedGemma: `medkor run --config configs/pipeline.py`.

All data is public and named in `configs/public.py`, with its licences: `medkor data fetch --config
configs/pipeline.py` brings it. To take your own data, set a phase's `data` in a config of your own
(`config.phase3.data = {...}`).

The exam's English version, which chooses the model in phase 1, is not published: the run translates KorMedMCQA's
dev, and its train for phase 1's remedy, before anything is trained. MedQA's test, whose 1,273 questions can tell
3 points, holds the chosen model from then on. KorMedMCQA's test is put to the finished model once. What each gate
asks, and why: docs/GATES.md.
"""

from configs import common, phases, public
from configs.public import held_out

ALL = tuple(make.__name__ for make in phases.ORDER)
REASONING = ("phase5c_reasoning", "phase5d_exam")
KOREAN = public.KORMEDMCQA | dict(split="dev")


def get_config(run=ALL):
    """Returns the config of the phases `run`, and of those before them. run: also the name of the last one, as in
    `--config configs/pipeline.py:phase3`."""
    run = up_to(run) if isinstance(run, str) else run
    config = common.get_config()
    config.phases = ALL
    with config.unlocked():
        for make in phases.ORDER:
            config[make.__name__] = make()
    config.exams = {
        # The questions of "korean" in English: they choose, and what is held later is measured by others (MedQA).
        "english-choice": dict(
            source=public.KORMEDMCQA_ENGLISH | dict(split="dev"), phases=ALL[:2]
        ),
        "english": dict(source=public.MEDQA | dict(split="test"), phases=ALL[1:]),
        "korean": dict(source=KOREAN),
        "korean-reasoned": dict(source=KOREAN, mode="reason", phases=REASONING),
    }
    config.held_out = {
        "korean": held_out(public.MEDICAL_O1),
        "english": held_out(public.GUIDELINES),
    }
    config.final = final_exams()
    return running(config, run)


def running(config, run):
    """Returns `config` with the phases `run` to run; what comes after the last of them needs no
    data yet, and is left out."""
    if run[-1] not in ALL:
        raise ValueError(f"{run[-1]!r} is no phase to run up to; the phases are {', '.join(ALL)}")
    config.run, config.phases = run, up_to(run[-1])
    with config.unlocked():
        for name in ALL[len(config.phases) :]:
            del config[name]
    if run[-1] != ALL[-1]:
        config.final = {}
    return config


def up_to(last):
    """Returns the phases from the first up to `last`; `last` alone, for `running` to refuse, if it
    is none."""
    return ALL[: ALL.index(last) + 1] if last in ALL else (last,)


def final_exams():
    """The test split, put to the finished model once: letter by letter, and as the harness that
    everyone quotes asks it."""
    test, fewshot = KOREAN | dict(split="test"), KOREAN | dict(split="fewshot")
    shots = dict(name="korean-shots", kind="exam", **fewshot)
    return {
        "korean-final": dict(source=test),
        "korean-final-harness": dict(source=test, mode="harness", shots=5, fewshot=shots),
    }


def on_machine(topology, weights, *, mesh, rows, remat="gate_up", chunk=256, last=ALL[-1]):
    """Returns the config of all phases up to `last` for one machine: its choices laid over every
    phase.

    What a phase learns from is its own business; what is set here changes no result beyond
    rounding. `medkor plan --config FILE` says what each stage then needs of the machine.

    topology: as `medkor plan` names it. rows: of the training batch that one device holds at once;
    the rest of its share comes in further microbatches. Only this model is a candidate: another
    would be another machine's.
    """
    config = get_config(up_to(last))
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
