"""Learning from one's own answers, end to end: a model of two layers, eight tokens and two options."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.data.style import Plain
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.parallel.mesh import MeshShape, make_mesh, shard_tree
from medkor_jax.train import loop
from medkor_jax.train.actor import Actor
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.groups import NothingToLearn
from medkor_jax.train.metrics import read_metrics
from medkor_jax.train.policy import PolicyLoss
from medkor_jax.train.reward_settings import RewardSettings, RolloutSettings
from medkor_jax.train.rewards import make_parts
from medkor_jax.train.rollout import Rollouts
from medkor_jax.train.stage import Stage
from medkor_jax.train.stage_plan import StagePlan
from medkor_jax.train.step import make_state, make_step, step_spec
from medkor_jax.train.trainable import OptimizerRule, Schedule, join, make_optimizer, split

RULES = (OptimizerRule("lora", "lora/.*", 0.02), OptimizerRule("lang", "lang/.*", 0.02))
# no refills: they would compile the decoder for fewer rows, and an empty batch is tried again anyway
ROLLOUT = RolloutSettings(group_size=8, max_new_tokens=3, max_refills=0, patience=20)
SETTINGS = RewardSettings("grpo", make_parts(answer=1.0, letter=0.4, format=0.2), ROLLOUT)
RFT = dataclasses.replace(
    SETTINGS, algorithm="rft", parts=make_parts(answer=1.0, letter=0.4, format=0.0)
)
PLAIN = ComputeSettings("float32", "none")
STEPS = 24


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(MeshShape(), jax.devices()[:1])


@pytest.fixture(scope="module")
def learn(letter_config, letter_params, letters, quiz, one_device):
    """learn(settings, seed) -> the reward of each step. One compilation for all seeds of an algorithm."""
    trainable, frozen = split(letter_params, ("lora", "lang"))
    optimizer = make_optimizer(RULES, Schedule(STEPS, 0, 0.1, 1.0), trainable)
    steps = {}

    def learn(settings, seed):
        spec = step_spec(Stage(reward=settings), PLAIN)
        step = steps.setdefault(spec, make_step(letter_config, spec, optimizer))
        rollouts = Rollouts(quiz, Plain(letters), settings, batch_size=32, seq_len=32, seed=seed)
        rewards = []
        with jax.set_mesh(one_device):
            loaded = LoadedModel(letter_params, None, letter_config, letters)
            actor = Actor(loaded, spec, one_device, temperature=1.0, max_new_tokens=3)
            state = make_state(optimizer, jax.tree.map(jnp.array, trainable))
            for _ in range(STEPS):
                batch, watched = rollouts.next(join(state.trainable, frozen), actor)
                state, metrics = step(state, frozen, None, batch)
                rewards.append(watched["rollout/reward"])
                if spec.policy:
                    assert metrics["policy/highest_ratio"] == pytest.approx(1.0, abs=1e-5)
        return rewards

    return learn


@pytest.mark.parametrize("settings", [SETTINGS, RFT], ids=["grpo", "rft"])
def test_the_reward_rises_whatever_the_seed(learn, settings):
    for seed in range(3):
        rewards = learn(settings, seed)
        start, end = np.mean(rewards[:3]), np.mean(rewards[-5:])
        assert start < 0.25 and end > start + 0.3, (seed, rewards)


@pytest.fixture(scope="module")
def run(letter_config, letter_params, letters, one_device):
    def run(plan, mesh=one_device, params=letter_params):
        with jax.set_mesh(mesh):
            params = jax.device_put(params, shard_tree(params, mesh))
            return loop.run_stage(
                plan, LoadedModel(params, None, letter_config, letters), None, mesh
            ).params

    return run


def make_plan(quiz, directory):
    reward = dataclasses.replace(
        SETTINGS,
        policy=PolicyLoss(kl_weight=0.1),
        rollout=dataclasses.replace(ROLLOUT, updates_per_batch=2),
    )
    stage = Stage(
        steps=5, trees=("lora", "lang"), data=tuple(source for source, _ in quiz), rules=RULES, warmup_steps=0,
        batch_size=32, seq_len=32, save_every=2, reward=reward,
    )  # fmt: skip
    return StagePlan(
        name="stage", directory=directory / "stage", stage=stage, compute=PLAIN, seed=3, train=quiz,
        validation=[], upstream="model", log_every=2,
    )  # fmt: skip


def with_reward(plan, **changed):
    reward = dataclasses.replace(plan.stage.reward, **changed)
    return dataclasses.replace(plan, stage=dataclasses.replace(plan.stage, reward=reward))


@pytest.fixture(scope="module")
def uninterrupted(run, quiz, tmp_path_factory):
    plan = make_plan(quiz, tmp_path_factory.mktemp("uninterrupted"))
    return run(plan), read_metrics(plan.directory)


TIMES = ("tokens_per_second", "step_seconds", "rollout/seconds")


def untimed(rows):
    return [
        {name: value for name, value in row.items() if name not in TIMES and "rate" not in name}
        for row in rows
    ]


def test_the_loop_logs_what_is_to_be_watched(uninterrupted):
    _, rows = uninterrupted
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for name in (
        "reward",
        "reward_answer",
        "reward_letter",
        "reward_format",
        "dead_groups",
        "refills",
        "new_tokens",
        "unparsed",
    ):
        assert all(f"rollout/{name}" in row for row in rows)
    first, second = rows[:2]  # two updates on the same samples
    assert first["rollout/reward"] == second["rollout/reward"]
    assert (
        first["policy/highest_ratio"] == pytest.approx(1, abs=1e-5)
        and second["policy/highest_ratio"] > 1.001
    )
    assert (
        abs(first["policy/kl_reference"]) < 1e-9 < second["policy/kl_reference"]
    )  # the reference is the start
    assert rows[2]["policy/kl_behaviour"] < 1e-9 < rows[2]["policy/kl_reference"]


def power_cut():
    raise OSError("power cut")


@pytest.mark.parametrize(
    "n, deed, error, stands_at",
    [
        (3, lambda: os.kill(os.getpid(), signal.SIGTERM), loop.StoppedEarly, 3),
        (4, power_cut, OSError, 2),
    ],
    ids=["SIGTERM between two updates of a batch", "killed at step 4, saved at 2"],
)
def test_interrupted_and_resumed_gives_the_bits_of_one_that_never_stopped(
    n, deed, error, stands_at, run, quiz, uninterrupted, tmp_path, monkeypatch
):
    plan, whole, asked = make_plan(quiz, tmp_path), Rollouts.next, []

    def disturbed(self, *args):
        asked.append(1)
        if len(asked) == n:
            deed()
        return whole(self, *args)

    monkeypatch.setattr(Rollouts, "next", disturbed)
    with pytest.raises(error):
        run(plan)
    assert [int(p.name) for p in (plan.directory / "checkpoints").iterdir()] == [stands_at]
    resumed = run(plan)
    expected, rows = uninterrupted
    for tree in ("lora", "lang"):
        assert digest_tree(getattr(resumed, tree)) == digest_tree(getattr(expected, tree))
    assert untimed(read_metrics(plan.directory)) == untimed(rows)


def test_four_devices_do_as_one(run, quiz, uninterrupted, tmp_path):
    plan = make_plan(quiz, tmp_path)
    trained = run(plan, make_mesh(MeshShape(data=2, fsdp=2), jax.devices()))
    expected, rows = uninterrupted
    for one, other in zip(untimed(read_metrics(plan.directory)), untimed(rows), strict=True):
        told = [
            {k: v for k, v in row.items() if "rollout" in k and k not in TIMES}
            for row in (one, other)
        ]
        assert told[0] == pytest.approx(told[1], rel=1e-5)
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=2e-5), name
    for x, y in zip(jax.tree.leaves(trained.lora), jax.tree.leaves(expected.lora), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3)


def test_a_reward_made_constant_stops_readably_with_its_state_saved(run, quiz, tmp_path, capsys):
    """Only the format earns, and this model never writes it."""
    plan = make_plan(quiz, tmp_path)
    rollout = dataclasses.replace(plan.stage.reward.rollout, patience=3)
    plan = with_reward(plan, rollout=rollout, parts=make_parts(answer=0.0, letter=0.0, format=0.2))
    with pytest.raises(
        NothingToLearn, match="stopped before step 1 of 5, its state saved: .*mean 0; .*supervised"
    ):
        run(plan)
    assert capsys.readouterr().out.count("ALARM") == 3
    assert [int(p.name) for p in (plan.directory / "checkpoints").iterdir()] == [0]


def test_learning_that_ends_half_way_keeps_what_was_learnt(run, quiz, tmp_path, monkeypatch):
    plan, whole, asked = make_plan(quiz, tmp_path), Rollouts.next, []

    def exhausted(self, *args):
        asked.append(1)
        if len(asked) == 4:
            raise NothingToLearn("all the same")
        return whole(self, *args)

    monkeypatch.setattr(Rollouts, "next", exhausted)
    with pytest.raises(NothingToLearn, match="before step 4 of 5.*all the same"):
        run(plan)
    assert [int(p.name) for p in (plan.directory / "checkpoints").iterdir()] == [3]
    assert [row["step"] for row in read_metrics(plan.directory)] == [1, 2, 3]


def test_other_rewards_on_the_same_directory_are_refused(run, quiz, tmp_path, monkeypatch):
    plan = make_plan(quiz, tmp_path)
    monkeypatch.setattr(Rollouts, "next", lambda *_: power_cut())
    with pytest.raises(OSError):
        run(plan)
    with pytest.raises(ValueError, match="other settings.*reward"):
        run(with_reward(plan, parts=RewardSettings().parts))
