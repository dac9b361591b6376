"""A config that cannot run is refused before anything starts, with the key and what to write."""

import copy
import dataclasses
import re
import typing

import pytest

from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.phases import ConfigError, Exam, Phase, Recipe
from medkor_jax.run.readiness import checks

from .test_pipeline import make_config

TEXT = {"kind": "text", "path": "embedded", "language": "en"}
STAGE = {
    "steps": 3,
    "trees": ("lora",),
    "data": {"text": TEXT},
    "rules": {"lora": {"pattern": "lora/.*", "learning_rate": 1}},
}
CONFIG = {
    "run_dir": "runs/x", "weights": "embedded", "run": ("phase0", "phase1"),
    "phases": ("phase0", "phase1", "phase9"),
    "exams": {"english": {"source": {"path": "embedded", "split": "valid"}}},
    "phase1": {"after": "phase0", "exam": "english", "gate": {"reading": "absolute"}},
    "phase0": {"exam": "english", "lora": {"rank": 4, "alpha": 8.0}, **STAGE},
    "phase9": None,
}  # fmt: skip


def with_key(path, value):
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return config


def test_a_config_becomes_phases_in_order_with_their_stages():
    recipe = make_recipe(CONFIG)
    assert (
        [phase.name for phase in recipe.phases]
        == ["phase0", "phase1"]
        == [phase.name for phase in recipe.in_force]
    )
    first, second = recipe.phases
    assert (first.train.steps, first.train.trees, first.lora.scale) == (3, ("lora",), 2.0)
    assert second.train.steps == 0 and second.lora.rank == 0
    assert [(source.name, source.kind) for source in first.train.data] == [("text", "text")]
    assert first.train.rules[0].learning_rate == 1.0 and isinstance(
        first.train.rules[0].learning_rate, float
    )
    assert recipe.exam("english").source.name == "english" and isinstance(
        recipe.exam("english"), Exam
    )


def test_only_rules_of_trees_that_train_are_in_force():
    rules = STAGE["rules"] | {"lang": {"pattern": "lang/.*", "learning_rate": 0.1}}
    phase = make_recipe(with_key("phase0.rules", rules)).phases[0]
    assert [rule.name for rule in phase.train.rules_in_force] == ["lora"]


def test_the_order_is_the_one_that_phases_states_and_not_that_of_names():
    """`phase10` sorts before `phase9`; a reference is looked for among the phases before."""
    config = {key: value for key, value in CONFIG.items() if not key.startswith("phase")}
    config |= {
        name: CONFIG["phase1"] | {"after": ""} for name in ("phase10", "phase2", "last", "phase9")
    }
    order = ("phase2", "phase9", "phase10", "last")
    config["phase9"] = config["phase9"] | {"is_reference": True}
    recipe = make_recipe(config | {"phases": order, "run": ("phase9", "phase10")})
    assert tuple(phase.name for phase in recipe.phases) == order
    assert [phase.name for phase in recipe.in_force] == ["phase9", "phase10"]
    assert recipe.reference_of(recipe.phases[0]) is None
    assert recipe.reference_of(recipe.phases[2]).name == "phase9"
    assert tuple(phase.name for phase in make_recipe(config | {"run": order}).phases) == order
    with pytest.raises(
        ConfigError,
        match="config.last is no key, nor a phase that `phases` names .phase2, phase9, phase10.",
    ):
        make_recipe(config | {"phases": order[:-1], "run": ("phase2",)})


def test_an_entry_of_none_is_left_out():
    recipe = make_recipe(with_key("phase0.data", {"text": TEXT, "off": None}))
    assert [source.name for source in recipe.phases[0].train.data] == ["text"]


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("weigths", "x", r"config\.weigths .* nearest: 'weights'"),
        ("phase0.batchsize", 4, r"phase0.*batchsize .* nearest: 'batch_size'"),
        ("phase0.stepps", 4, r"config\.phase0\.stepps .*nearest: 'steps'"),
        ("exams.english.shots", 2, r"asks for 2 shots and names no fewshot"),
        (
            "exams.english",
            {
                "mode": "reason",
                "shots": 2,
                "fewshot": TEXT | {"name": "f"},
                "source": {"path": "embedded"},
            },
            "asked without any: set shots to 0",
        ),
        ("exams.english.max_new_tokens", 0, "max_new_tokens is 0; it must be >= 1"),
        ("phase0.gate.treshold", 0.9, r"phase0\.gate\.treshold .* nearest: 'threshold'"),
        ("phase0.data.text.licens", "x", r"data\.text\.licens .* nearest: 'licence'"),
        ("phase0.steps", "many", r"steps is 'many'; expected int"),
        ("phase0.steps", 2.5, r"steps is 2.5; expected int"),
        ("phase0.steps", True, r"steps is True; expected int"),
        ("phase0.merge", 1, r"merge is 1; expected bool"),
        ("phase0.steps", -1, r"steps is -1; it must be >= 0"),
        ("phase0.trees", (), r"names nothing to train"),
        ("phase0.trees", ("base",), r"'base'; choose from lora"),
        ("phase0.data", {}, r"no source to train on"),
        ("phase0.dropout", 1.0, r"dropout is 1.0"),
        ("phase0.data", {"text": TEXT | {"loss": "kl"}}, r"loss is 'kl', expected 'next_token'"),
        (
            "phase0.data",
            {"text": TEXT | {"loss": "each_layer"}},
            r"loss 'each_layer' and retention.weight is 0",
        ),
        ("phase0.retention", {"at": "first"}, r"retention.at is 'first'"),
        ("phase0.take", "first", r"expected 'last' or 'best'"),
        ("phase0.take", "best", r"needs validation"),
        ("phase0.lora.targets", ("query",), r"query"),
        ("phase0.language", {"kind": "vektor"}, r"'vektor'; expected"),
        ("phase0.gate.on_failure", "retain", r"remedy.steps is 0"),
        ("phase0.gate.on_failure", "train", r"remedy.steps is 0"),
        ("phase0.gate.threshold", 97.0, r"0\.97, not 97"),
        ("phase1.merge", True, r"lora.rank is 0"),
        ("phase1.exam", "englisch", r"'englisch'; exams of this phase: english"),
        ("exams.english.mode", "letters", r"'letters'; expected"),
        ("exams.english.shots", 5, r"no fewshot"),
        ("exams.english.source.kind", "text", r"expected 'exam'"),
        ("dtype", "float16", r"float16 overflows"),
        ("language_unit", "word", r"language_unit is 'word'"),
        ("route", "token", r"config.route is not a key of Recipe; route is language_unit now"),
        ("watch", {"text": TEXT}, r"config.watch is not a key of Recipe; watch is held_out now"),
        ("run", (), r"run is empty"),
        ("run", ("phase00",), r"'phase00', which is not defined; nearest: 'phase0'"),
        ("run", ("phase1", "phase0"), r"in the order phase0, phase1"),
        ("run", ("phase0", "phase0"), r"each phase once"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(key, value, words):
    with pytest.raises(ConfigError, match=words):
        make_recipe(with_key(key, value))


def test_retaining_needs_a_retention_weight():
    remedy = STAGE | {"retention": {"weight": 0.0}}
    config = with_key("phase0.remedy", remedy)
    config["phase0"]["gate"] = {"on_failure": "retain"}
    with pytest.raises(ConfigError, match="retention.weight is 0"):
        make_recipe(config)
    config["phase0"]["remedy"]["retention"]["weight"] = 1
    assert make_recipe(config).phases[0].remedy.retention.weight == 1.0


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match="config lacks weights"):
        make_recipe({key: value for key, value in CONFIG.items() if key != "weights"})


ROLLOUT = {"group_size": 4, "max_new_tokens": 32}
GRPO = {
    "algorithm": "grpo",
    "rollout": ROLLOUT,
    "policy": {"kl_weight": 0.1},
    "parts": {"answer": {"weight": 2}, "letter": {"weight": 1}},
}
EXAM = {"exam": {"kind": "exam", "path": "embedded", "language": "ko"}}


def with_reward(**changes):
    stage = STAGE | {"data": EXAM, "batch_size": 8, "seq_len": 64, "reward": GRPO}
    config = with_key("phase0", {"exam": "english", **stage})
    config["phase0"] |= changes
    return config


def test_a_reward_becomes_rollouts_and_a_policy():
    reward = make_recipe(with_reward()).phases[0].train.reward
    assert (reward.algorithm, reward.rollout.group_size, reward.rollout.max_new_tokens) == (
        "grpo",
        4,
        32,
    )
    assert {part.name: part.weight for part in reward.parts} == {"answer": 2.0, "letter": 1.0}
    assert (reward.policy.kl_weight, reward.policy.clip_low, reward.policy.clip_high) == (
        0.1,
        0.2,
        0.28,
    )
    assert reward.is_on and reward.has_policy_loss
    rft = make_recipe(with_reward(reward=GRPO | {"algorithm": "rft"})).phases[0].train.reward
    assert rft.is_on and not rft.has_policy_loss
    documents = make_recipe(CONFIG).phases[0].train.reward
    assert not documents.is_on and not documents.has_policy_loss


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            dict(reward=GRPO | {"algorithm": "ppo"}),
            r"config.phase0.reward.*'ppo'; expected grpo or rft",
        ),
        (
            dict(reward=GRPO | {"parts": {"answer": {"weight": 0.3}, "letter": {"weight": 0.3}}}),
            r"Raise answer",
        ),
        (dict(reward=GRPO | {"rollout": {"groupsize": 3}}), r"nearest: 'group_size'"),
        (
            dict(reward=GRPO | {"group_size": 3}),
            r"reward.group_size is not a key .*; reward.group_size is reward.rollout.group_size now",
        ),
        (
            dict(reward=GRPO | {"length_penalty": 0.1}),
            r"reward.length_penalty is reward.parts.length.weight .below 0. now",
        ),
        (dict(groups={}), r"config.phase0.groups is not a key .*; groups is rules now"),
        (dict(reward=GRPO | {"policy": {"clip_low": 2.0}}), r"clip_low"),
        (dict(batch_size=6), r"6 is not a multiple of group_size 4"),
        (dict(seq_len=32), r"seq_len 32 has no room"),
        (dict(loss_positions=8), r"below max_new_tokens 32"),
        (dict(data={"text": TEXT}), r"'text' of kind 'text'; only questions"),
        (dict(dropout=0.1), r"dropout is 0.1"),
        (
            dict(data={"exam": EXAM["exam"] | {"loss": "next_token"}}),
            r"has loss 'next_token' and its stage has a reward",
        ),
        (dict(data={"exam": EXAM["exam"] | {"orders": 3}}), r"has orders 3, and with a reward"),
        (
            dict(data={"exam": EXAM["exam"] | {"answered_by": "text"}}),
            r"is answered_by 'text', and a reward reads a letter",
        ),
    ],
)
def test_a_reward_that_does_not_fit_its_stage_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        make_recipe(with_reward(**changes))


def test_a_phase_alone_has_working_defaults():
    phase = Phase("phase0", exam="english")
    assert (phase.train.steps, phase.remedy.steps, phase.lora.rank, phase.language.kind) == (
        0,
        0,
        0,
        "",
    )


def numbers(kind, path=()):
    """Yields (path of a dataclass from the recipe, field, type, rules) of every number that a config may hold."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, rules = hints[field.name], ()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *rules = typing.get_args(hint)
        inner = next(
            (a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)), None
        )
        if inner is not None:
            yield from numbers(inner, (*path, field.name))
        elif hint in (int, float):
            yield (*path, field.name), hint, tuple(rules)


NUMBERS = list(numbers(Recipe))


@pytest.mark.parametrize("path, kind, rules", NUMBERS, ids=[".".join(n[0]) for n in NUMBERS])
def test_every_number_has_a_range_that_is_checked_when_the_config_is_read(path, kind, rules):
    assert rules, f"{'.'.join(path)} has no range: say what it may be beside its type"
    for rule in rules:
        sign, bound = rule.split()
        wrong = kind(float(bound)) + {">": 0, ">=": -1, "<": 0, "<=": 1, "!=": 0}[sign]
        with pytest.raises(ConfigError, match=re.escape(f"{path[-1]} is {wrong!r}; it must be")):
            make_recipe(config_with(path, wrong))
    for wrong in (float("nan"), float("inf"), "3", True, None):
        with pytest.raises(ConfigError, match=f"{path[-1]} is .*; (expected|it must be)"):
            make_recipe(config_with(path, wrong))


ENTRY = {
    "exams": "english",
    "final": "last",
    "requires": "korean",
    "held_out": "text",
    "rules": "lora",
    "data": "text",
    "validation": "text",
    "translations": "text",
    "parts": "answer",
}


def config_with(path, value):
    """A config that holds `value` at `path`, a path through the recipe's dataclasses."""
    rule = dict(pattern="lora/.*", learning_rate=1e-3)
    steps = []
    for key in path:
        steps += [{"phases": "phase0"}.get(key, key)] if key != "train" else []
        steps += [ENTRY[key]] if key in ENTRY and key != path[-1] else []
    config = copy.deepcopy(CONFIG | {"phase1": None, "run": ("phase0",)})
    place = config
    for key in steps[:-1]:
        fresh = {
            "last": {"source": dict(path="embedded")},
            "korean": {"exam": "english"},
            "text": TEXT,
            "lora": rule if "rules" in steps else {},
            "fewshot": dict(TEXT, kind="exam", name="few"),
            "answer": {"weight": 1.0},
        }
        place = place.setdefault(key, dict(fresh.get(key, {})))
    place[steps[-1]] = value
    return config


@pytest.mark.parametrize(
    "wrong, words",
    [
        (True, 'use "full"'),
        (False, 'use "none"'),
        ("some", "expected one of none, "),
        (None, "is None; expected"),
        (3, "is 3; exp"),
    ],
)
def test_remat_is_one_of_its_names(wrong, words):
    with pytest.raises(ConfigError, match=f"^config: remat .*{words}"):
        make_recipe(config_with(("remat",), wrong))


@pytest.mark.parametrize("wrong", ["flash", True, None, 3])
def test_attention_is_one_of_its_names(wrong):
    with pytest.raises(
        ConfigError,
        match=f"^config: attention is {wrong!r}; expected one of auto, plain, blocked, splash; nearest: ",
    ):
        make_recipe(config_with(("attention",), wrong))


@pytest.mark.parametrize(
    "path, value",
    [
        ("run", "phase0"),
        ("phase0.trees", "lora"),
        ("phase0.data", "x.jsonl"),
        ("phase0.gate", 3),
        ("exams", ["x"]),
        ("phase0", 1),
    ],
)
def test_what_is_no_list_or_mapping_is_refused_by_name(path, value):
    with pytest.raises(ConfigError, match=f"{path.split('.')[-1]} is .*; expected"):
        make_recipe(config_with(path.split("."), value))


def test_an_exam_that_has_no_room_for_the_harness_is_refused_before_training(
    tiny_base_dir, tmp_path
):
    config = make_config(tmp_path / "run", tiny_base_dir)
    config["exams"]["english"]["mode"] = "harness"
    with pytest.raises(
        ValueError, match="harness mode writes up to 1024 tokens, .* 1024 positions"
    ):
        checks(make_recipe(config), Corpora(False))["lengths"]()
