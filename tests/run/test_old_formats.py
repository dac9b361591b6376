"""What the program wrote in format 1 says, once upgraded, what today's program says of the same
config: field by field.

The files are those of the run that `test_kept_run` takes whole.
"""

import dataclasses
import json
import pathlib
import tarfile

import pytest

from medkor_jax.data.style import Plain
from medkor_jax.io.models import open_model
from medkor_jax.io.old_formats import (
    RECORD_FORMAT,
    upgraded_cursor,
    upgraded_record,
    upgraded_stage,
)
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.facts import changes, facts_of
from medkor_jax.run.stage_plans import stage_plan
from medkor_jax.train.drawing import make_batches
from medkor_jax.train.reward_settings import RewardSettings, RolloutSettings
from medkor_jax.train.rewards import RewardPart, make_parts
from medkor_jax.train.stage_plan import said_of

HERE = pathlib.Path(__file__).parent

# of phase5d's checkpoint, as the program that made the kept run wrote it
CURSOR = json.loads("""{"rollout": 2, "next": 4, "update": 0, "in_hand": null, "settings": {
    "sources": ["exam (8 questions, weight 1.0)"], "rollouts": {"algorithm": "grpo", "group_size": 4, "temperature": 1.0,
    "max_new_tokens": 12, "reward": {"answer": 1.0, "letter": 0.1, "format": 0.2, "length_penalty": 0.0,
    "max_reasoning_tokens": 0}, "form": {"opening": "<R>", "closing": "<R/>"}, "std_normalised": true,
    "updates_per_batch": 1, "max_refills": 4, "patience": 3, "importance_cap": 2.0}, "batch_size": 8, "seq_len": 256,
    "loss_positions": 12, "seed": 1632824097, "route": "token",
    "tokenizer": "432e50116e9cc788358af50a84d9ddc515e60844b7c18822b99b77b1702a2390",
    "content": ["adb02b40094cb110926704636d98476a15566ee92fb7d2b0fc9fe0032fcc3222"]}}""")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kept")
    with tarfile.open(HERE / "kept_run_format1.tar.xz") as archive:
        archive.extractall(
            directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    return directory


@pytest.fixture(scope="module")
def recipe(kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTS", str(kept / "base"))
        patch.setenv("RUN_DIR", str(kept / "run"))
        return load_recipe(str(HERE.parent / "parallel" / "tiny_phases.py"))


@pytest.fixture(scope="module")
def corpora(recipe):
    return Corpora(recipe.drop_bad, recipe.reasoning)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def plan_of(recipe, corpora, name, which):
    phase = next(phase for phase in recipe.phases if phase.name == name)
    return stage_plan(
        recipe, corpora, phase, phase.train if which == "train" else phase.remedy, which
    )


def stages_in(kept):
    return [
        (path.parent.parent.name, path.parent.name)
        for path in sorted((kept / "run").glob("phase*/*/stage.json"))
    ]


def test_every_stage_says_of_itself_what_it_says_now(kept, recipe, corpora):
    found = stages_in(kept)
    assert {("phase0", "train"), ("phase5d", "train")} <= set(found) and len(found) >= 7
    for name, which in found:
        stored = read(kept / "run" / name / which / "stage.json")
        assert "format" not in stored
        plan = dataclasses.replace(
            plan_of(recipe, corpora, name, which), upstream=stored["upstream"]
        )
        now = json.loads(json.dumps(said_of(plan, recipe.language_unit, {})))
        said = upgraded_stage(stored)
        wanted = now | {"trainable": stored["trainable"]}
        # what a later version added, and is switched off, is None
        assert {key: said.get(key) for key in wanted} == wanted and set(said) <= set(wanted), (
            name,
            which,
        )
        assert upgraded_stage(now) == now


def test_every_record_holds_the_facts_of_now(kept, recipe, corpora):
    for phase in recipe.phases:
        stored = read(kept / "run" / phase.name / "record.json")
        record, facts = upgraded_record(stored), facts_of(recipe, corpora, phase)
        assert (
            stored["format"] == 1
            and record["format"] == RECORD_FORMAT
            and upgraded_record(record) == record
        )
        assert changes(record, facts, rounds=1) == []
        assert json.loads(json.dumps(facts.judged)) == record["judged"]
        assert changes(
            stored | {"format": 2}, facts, rounds=1
        )  # without it, all of them would be stale


def test_a_cursor_of_rollouts_is_found_again(kept, recipe, corpora):
    cursor = CURSOR
    batches = make_batches(
        plan_of(recipe, corpora, "phase5d", "train"),
        Plain(open_model(recipe.weights).tokenizer),
        recipe.language_unit,
    )
    batches.set_state(cursor)
    assert (
        batches.get_state() == upgraded_cursor(cursor)
        and batches.get_state()["rollout"] == cursor["rollout"] > 0
    )
    other = cursor | {
        "settings": cursor["settings"]
        | {"rollouts": cursor["settings"]["rollouts"] | {"group_size": 2}}
    }
    with pytest.raises(ValueError, match="rollouts was"):
        batches.set_state(other)


def test_what_one_reward_said_flat_is_what_it_says_in_parts():
    """Every key of a format-1 reward, none at its default, where a penalty was a positive number
    and its bound a key beside it.
    """
    flat = dict(
        algorithm="grpo",
        group_size=4,
        temperature=0.9,
        max_new_tokens=9,
        answer=2.0,
        letter=0.0,
        format=0.3,
        length_penalty=0.25,
        max_reasoning_tokens=50,
        clip_low=0.1,
        clip_high=0.3,
        kl_weight=0.5,
        std_normalised=False,
        updates_per_batch=2,
        max_refills=1,
        patience=2,
        importance_cap=3.0,
    )
    rule = dict(name="lora", pattern="lora/.*", learning_rate=0.1, weight_decay=0.2)
    trained = {f"train.reward.{key}": value for key, value in flat.items()} | {
        "train.groups.lora": rule
    }
    off = {
        "lora.rank": 0,
        "language.kind": "",
        "expand.front": 0,
        "expand.back": 0,
        "expand.init": "identity",
    }
    off |= {
        "remedy_lora.rank": 0,
        "train.retention.weight": 0.0,
        "remedy.reward.algorithm": "",
        "remedy.steps": 0,
    }
    record = upgraded_record(
        {
            "format": 1,
            "trained": trained | off,
            "accepted": {"train.groups.lora": rule | {"weight_decay": 0.3}},
        }
    )
    now = RewardSettings(
        "grpo",
        (*make_parts(answer=2.0, letter=0.0, format=0.3), RewardPart("length", -0.25, bound=50.0)),
        RolloutSettings(4, 0.9, 9, False, 2, 1, 2, 3.0),
    )
    expected = {"train.reward.algorithm": "grpo", "remedy.steps": 0}
    expected |= {
        f"train.reward.rollout.{name}": value for name, value in now.rollout.facts().items()
    }
    expected |= {
        "train.reward.policy.clip_low": 0.1,
        "train.reward.policy.clip_high": 0.3,
        "train.reward.policy.kl_weight": 0.5,
    }
    expected |= {
        f"train.reward.parts.{part.name}.{k}": v
        for part in now.parts
        if part.is_on
        for k, v in part.facts().items()
    }
    upgraded_rule = rule | dict(optimizer="adamw", b1=0.9, b2=0.98, momentum=0.0)
    assert record["trained"] == expected | {"train.rules.lora": upgraded_rule}
    assert record["accepted"] == {"train.rules.lora": upgraded_rule | {"weight_decay": 0.3}}
