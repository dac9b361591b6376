"""What configs are made of. Every key and its default is in the recipe's dataclasses:
docs/CONFIG.md, `medkor config --explain`.

    config = common.get_config()                            # a run without phases
    p = common.phase("Korean text", after="phase2")         # trains nothing yet; p.steps = 4000, ...

What `medkor run` reads may leave out any key: it is put in, with its default, before overrides are
read.
"""

from ml_collections import ConfigDict

from medkor_jax.run.defaults import defaults_of
from medkor_jax.run.phases import Phase, Recipe


def get_config():
    """Returns a run without phases; `configs/pipeline.py` adds them. A key that does not exist
    cannot be set."""
    config = ConfigDict(defaults_of(Recipe))
    config.run_dir, config.weights, config.run = "runs/medkor", "google/medgemma-4b-it", ()
    config.exams = {}
    return config.lock()


def phase(title, after="", exam="english"):
    """Returns a phase that trains nothing yet, judged by the mean probability of the right option:
    why is in docs/GATES.md."""
    p = empty_phase()
    p.title, p.after, p.exam = title, after, exam
    p.gate.metric = "probability"
    return p


def empty_phase():
    """Returns a phase with every key at its default."""
    return ConfigDict(defaults_of(Phase)).lock()


def exam(path, source=None, **asked):
    """Returns an exam that judges: its source, and how it is asked."""
    return dict(source=dict(path=path, split="valid") | (source or {}), **asked)


def text(path, language, licence, **rest):
    return dict(kind="text", path=path, language=language, licence=licence, **rest)


def korean(threshold=0.92, rise_nats=0.05):
    """What a phase that trains on Korean asks of Korean itself: exam and held-out loss not worse
    than at its start."""
    return {
        "korean-kept": dict(exam="korean", metric="probability", threshold=threshold),
        "korean-loss": korean_loss(rise_nats),
    }


def korean_loss(rise_nats):
    """The loss on held-out Korean text may rise by so much over the phase's start."""
    return dict(held_out="korean", rise_nats=rise_nats)


def form(threshold=0.9):
    """What a phase that teaches to reason asks of it: the tags and one valid letter in this share
    of all answers, surely."""
    return dict(exam="korean-reasoned", metric="form", reading="absolute", threshold=threshold)


def hold_english(p, data, steps=500):
    """While the gate of phase `p` is closed, "each layer" training on English text follows, of the
    trees that `p` trains."""
    p.gate.on_failure = "retain"
    p.remedy.trees, p.remedy.data, p.remedy.steps = p.trees, data, steps
    p.remedy.next_token_weight, p.remedy.retention.weight = 0.0, 1.0
