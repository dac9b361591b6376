"""Every phase, rollouts included, on a tiny model: the config that the tests beside this give to `medkor run`.

RUN_DIR and WEIGHTS (environment) name the run and the model. STRIKE = "WHERE=SIGNAL", such as "phase0/train, step 2=SIGKILL",
sends the process that signal (RAISE: a ValueError) as soon as it is there (what `hosts.at` was told), STRIKE_AFTER seconds later.
With OWN_PROCESS set, the program is changed so that a tiny random model can be rewarded, goes in pieces, and can be struck: what
reads this file beside other tests must not set it.
"""

import os
import signal
import threading

from ml_collections import ConfigDict

from medkor_jax.parallel import gather, hosts
from medkor_jax.train.rewards import Earned, Reward

PHASES = ("phase0", "phase1", "phase2", "phase3", "phase4b", "phase5c", "phase5d")


def get_config():
    if os.environ.get("OWN_PROCESS"):
        _change_this_process()
    text = {code: {"text": dict(kind="text", path="embedded", language=code, subset="train", limit=40)} for code in ("en", "ko")}
    # Rates at which rounding does not grow: Adam turns a gradient of nearly 0 into a whole step of either sign.
    rules = {tree: dict(pattern=f"{tree}/.*", learning_rate=rate) for tree, rate in dict(lora=1e-3, lang=1e-3, expand=1e-4).items()}
    stage = dict(steps=3, batch_size=4, seq_len=64, warmup_steps=0, save_every=2, rules=rules)
    gate = dict(reading="absolute", threshold=1.0, on_failure="continue", rounds=1, allow_chance=True)
    common, lora, trees = dict(exam="english", gate=gate), dict(rank=2, alpha=4.0, targets=("q", "down")), ("lora", "lang", "expand")
    held = dict(gate=gate, remedy=dict(data=text["en"], trees=("lora", "lang"), next_token_weight=0.0, retention=dict(weight=1.0, layers=2, positions=4), **stage))
    pairs = dict(kind="translation", path="embedded")
    return ConfigDict(dict(
        mesh=dict(data=-1, fsdp=1, tensor=1), run_dir=os.environ["RUN_DIR"], weights=os.environ["WEIGHTS"], run=PHASES, phases=PHASES, dtype="float32", param_dtype="float32", seed=int(os.environ.get("SEED", "0")), log_every=1,
        exams=dict(english=dict(source=dict(path="embedded", language="en", split="valid", limit=20), batch_size=8)),
        held_out=dict(korean=dict(kind="text", path="embedded", language="ko", subset="test", limit=4)), held_out_tokens=64, max_translation_tokens=4,
        phase0=dict(lora=lora, trees=("lora",), merge=True, data=text["en"], **common, **stage),
        phase1=dict(after="phase0", lora=lora, trees=("lora",), is_reference=True, data=text["en"], **common, **stage),
        phase2=dict(after="phase1", language=dict(kind="vector"), trees=("lang",), data=text["ko"], **common, **stage),
        phase3=dict(after="phase2", trees=("lora", "lang"), data=text["ko"], **common | held, **stage),
        phase4b=dict(
            after="phase3", expand=dict(front=1, back=1), trees=trees, data=dict(pairs=dict(subset="train", limit=20, **pairs)),
            translations=dict(held=dict(subset="test", limit=2, **pairs)), **common, **stage | dict(seq_len=128),
        ),
        phase5c=dict(
            after="phase4b", trees=trees, data=dict(s=dict(kind="reasoning", path="embedded", language="en", limit=20)), **common,
            **stage | dict(seq_len=384),
        ),
        phase5d=dict(
            after="phase5c", trees=trees, data=dict(exam=dict(kind="exam", path="embedded", language="en", limit=8)), **common,
            reward=dict(algorithm="grpo", rollout=dict(group_size=4, max_new_tokens=12)), **stage | dict(seq_len=256, batch_size=8, steps=2),
        ),
    ))  # fmt: skip


def _change_this_process():
    _strike()
    gather.GATHER_BYTES = 4096  # so that leaves of this model go in pieces, as those of a large one do
    Reward.score = _by_length


def _by_length(self, text, question, **_):
    """A random model earns nothing by its letters: it is paid by the length of what it wrote."""
    return Earned({"answer": float(len(text) % 3), "letter": 0.0, "format": 0.0, "length": 0.0}, False, False, False)


def _strike():
    where, _, name = os.environ.get("STRIKE", "").rpartition("=")
    told = hosts.at

    def at(place):
        told(place)
        if place == where and name == "RAISE":
            raise ValueError("struck down")
        if place == where:
            threading.Timer(float(os.environ.get("STRIKE_AFTER", "0")), os.kill, (os.getpid(), signal.Signals[name])).start()

    hosts.at = at
