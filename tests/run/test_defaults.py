"""Defaults are written once, in the dataclasses: config and dataclass give each other back."""

import dataclasses

import pytest

from medkor_jax.run.building import build
from medkor_jax.run.config_keys import REQUIRED, keys_of
from medkor_jax.run.defaults import complete, defaults_of, plain
from medkor_jax.run.phases import Exam, Phase, Recipe

# What cannot be left out, for a class that has such keys.
NEEDED = {
    "Recipe": dict(run_dir="runs/x", weights="embedded", run=("phase0",), exams={}),
    "Phase": dict(name="phase0"),
    "Source": dict(name="s", kind="exam", path="embedded"),
    "Exam": dict(source=dict(name="s", kind="exam", path="embedded")),
    "Condition": dict(name="c", exam="english"),
    "OptimizerRule": dict(name="g", pattern="lora/.*", learning_rate=1e-3),
    "RewardPart": dict(name="answer", weight=1.0),
}


def classes(kind, seen=None):
    """Every dataclass that a config describes, from the recipe down."""
    seen = {} if seen is None else seen
    if kind not in seen:
        seen[kind] = None
        for key in keys_of(kind).values():
            classes(key.owner, seen)
            if key.holds:
                classes(key.holds, seen)
    return list(seen)


CLASSES = [*classes(Recipe), *(kind for kind in classes(Phase) if kind not in classes(Recipe))]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_defaults_and_dataclass_invert_each_other(kind):
    defaults, needed = defaults_of(kind), NEEDED.get(kind.__name__, {})
    assert set(defaults) == {
        name for name, key in keys_of(kind).items() if key.default is not REQUIRED
    }
    assert not set(defaults) & set(needed) - {"exam"}
    if kind is Recipe:
        return  # none without phases: test_config_file has those that ship
    made = build(kind, defaults | needed)
    assert made == build(kind, needed)
    given_back = plain(made)
    assert {name: given_back[name] for name in defaults if name not in needed} == {
        name: value for name, value in defaults.items() if name not in needed
    }
    assert given_back.keys() == defaults.keys() | needed.keys() and build(kind, given_back) == made


def test_every_field_of_every_class_is_a_key_of_one_config():
    for kind in CLASSES:
        fields = {field.name for field in dataclasses.fields(kind)}
        assert fields - {"train"} <= set(keys_of(kind))
    assert {"steps", "gate", "remedy"} <= set(keys_of(Phase)) and "train" not in keys_of(Phase)


def test_what_a_config_leaves_out_is_put_in_at_every_depth():
    config = dict(
        NEEDED["Recipe"], run=("phase0",), exams=dict(english=dict(source=dict(path="embedded"), shots=2)),
        phase0=dict(steps=3, data=dict(text=dict(kind="text", path="x"), off=None)),
    )  # fmt: skip
    complete(config)
    assert (
        config["phase0"]["steps"] == 3
        and config["phase0"]["batch_size"] == defaults_of(Phase)["batch_size"]
    )
    assert config["phase0"]["data"] == dict(
        text=defaults_of(_source()) | dict(kind="text", path="x"), off=None
    )
    exam = defaults_of(Exam) | dict(source=defaults_of(_source()) | dict(path="embedded"), shots=2)
    assert config["exams"]["english"] == exam


def _source():
    return keys_of(Exam)["source"].holds
