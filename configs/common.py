"""Every key a config has, with its default. A config file writes only what differs.

Values are plain data; what they mean is documented on the dataclasses of `medkor_jax.run.phases`, which a
config becomes. Keys are locked: a misspelt one fails with the nearest name.
"""

from ml_collections import ConfigDict

LORA = {"rank": 16, "alpha": 32.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")}
NO_LORA = LORA | {"rank": 0}
REWARD = dict(
    algorithm="",
    parts={name: dict(weight=weight, bound=0.0) for name, weight in (("answer", 1.0), ("letter", 0.1), ("format", 0.2), ("length", 0.0))},
    rollout=dict(
        group_size=8, temperature=1.0, max_new_tokens=128, std_normalised=True, updates_per_batch=1, max_refills=4, patience=3,
        importance_cap=2.0,
    ),
    policy=dict(clip_low=0.2, clip_high=0.28, kl_weight=0.0),
)  # fmt: skip


def rule(tree, learning_rate):
    return dict(
        pattern=f"{tree}/.*", learning_rate=learning_rate, optimizer="adamw", b1=0.9, b2=0.98, weight_decay=0.0, momentum=0.0
    )


def stage(**changes):
    """One stretch of training; steps=0 trains nothing."""
    defaults = dict(
        steps=0, trees=(), data={}, batch_size=16, seq_len=1024, microbatches=1, loss_positions=0,
        rules={"lora": rule("lora", 2e-4), "lang": rule("lang", 1e-3), "expand": rule("expand", 1e-4)},
        warmup_steps=20, final_share=0.1, clip_norm=1.0, dropout=0.0, next_token_weight=1.0,
        retention=dict(weight=0.0, layers=4, positions=32, temperature=1.0),
        save_every=200, keep_last=1, validation={}, validate_every=0, take="last", reward=REWARD,
    )  # fmt: skip
    return changed(defaults, changes)


def retention(**changes):
    """The remedy stage of the phases that must not forget: "each layer" training on English medical text."""
    base = dict(next_token_weight=0.0, retention=dict(weight=1.0, layers=4, positions=32, temperature=1.0))
    return stage(**changed(base, changes, new_keys=True))


def gate(**changes):
    """What must hold: why by mean probability, within 3 points, is in docs/GATES.md."""
    defaults = dict(
        metric="probability", threshold=0.97, reading="non_inferior", confidence=0.95, on_failure="stop", rounds=3,
        allow_chance=False, requires={},
    )  # fmt: skip
    return changed(defaults, changes)


def korean(threshold=0.92, rise_nats=0.05):
    """What a phase that trains on Korean asks of Korean itself: exam and held-out loss not worse than at its start."""
    return {
        "korean-kept": dict(exam="korean", metric="probability", reading="non_inferior", threshold=threshold, against="start"),
        "korean-loss": dict(watch="korean", rise_nats=rise_nats, against="start"),
    }


def form(threshold=0.9):
    """What a phase that teaches to reason asks of it: the tags and one valid letter in this share of all answers, surely."""
    return {"form": dict(exam="korean-reasoned", metric="form", reading="absolute", threshold=threshold)}


def exam(path, **changes):
    """An exam that judges: kind of source, how it is asked."""
    source = dict(path=path, split="valid", subset="", language="", licence="", fields=(), limit=0, skip=0, answers_from=None)
    defaults = dict(source=source, mode="letter", shots=0, fewshot=None, batch_size=16, max_new_tokens=512, phases=())
    return changed(defaults, changes)


def phase(title, **changes):
    """A phase: its own keys, and those of its training stage beside them."""
    own = dict(
        title=title, after="", candidates=(), lora=NO_LORA, remedy_lora=NO_LORA, language=dict(kind=""),
        expand=dict(front=0, back=0, init="identity"), merge=False, is_reference=False, exam="english", gate=gate(),
        remedy=stage(), translations={},
    )  # fmt: skip
    return changed(own | stage(), changes)


def get_config():
    """A run without phases: `configs/pipeline.py` adds them."""
    return ConfigDict(dict(
        run_dir="runs/medkor", weights="google/medgemma-4b-it", run=(), exams={}, final={}, watch={}, watch_tokens=65536,
        topology="", max_translation_tokens=256,
        dtype="bfloat16", param_dtype="bfloat16", remat="gate_up", attention="auto", chunk=256, route="token",
        mesh=dict(data=-1, fsdp=1, tensor=1), reasoning=dict(opening="<R>", closing="<R/>"), seed=0, allow_leaks=(), drop_bad=False, log_every=10,
    ))  # fmt: skip


def changed(defaults, changes, new_keys=False):
    """Returns `defaults` with `changes` put in, key by key at every depth; what maps names to sources is replaced whole."""
    result = dict(defaults)
    for key, value in changes.items():
        if key not in defaults and not new_keys:
            raise ValueError(f"{key!r} is not a key here; there are {', '.join(defaults)}")
        inner = defaults.get(key)
        whole = key in ("data", "validation", "translations", "requires")
        deeper = isinstance(inner, dict) and isinstance(value, dict) and not whole
        result[key] = changed(inner, value, new_keys) if deeper else value
    return result
