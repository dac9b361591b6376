"""A stage of the recipe with everything it needs resolved: its data loaded, its numbers and its seed.

    plan = stage_plan(recipe, corpora, phase, phase.train, "train")        # what `train.loop` runs
"""

from __future__ import annotations

import pathlib

from medkor_jax.run.corpora import Corpora
from medkor_jax.run.phases import Phase, Recipe, Stage
from medkor_jax.train.loop import StagePlan, seed_of
from medkor_jax.train.step import StepSpec
from medkor_jax.train.trainable import Schedule


def stage_plan(recipe: Recipe, corpora: Corpora, phase: Phase, stage: Stage, name: str, *, upstream: str = "") -> StagePlan:
    """upstream: digest of the model the stage starts from."""
    rollout = stage.reward.rollout(recipe.reasoning)
    train = corpora.examples(stage.data) if rollout is None else [(s, corpora.questions(s)) for s in stage.data]
    return StagePlan(
        name=f"{phase.name}/{name}",
        directory=pathlib.Path(recipe.run_dir) / phase.name / name,
        trees=stage.trees,
        spec=step_spec(recipe, stage, seed_of(recipe.seed, phase.name, name)),
        schedule=Schedule(stage.steps, stage.warmup_steps, stage.final_share, stage.clip_norm),
        groups=stage.groups_in_force(),
        train=train,
        validation=corpora.examples(stage.validation),
        batch_size=stage.batch_size,
        seq_len=stage.seq_len,
        loss_positions=stage.loss_positions,
        route=recipe.route,
        save_every=stage.save_every,
        keep_last=stage.keep_last,
        validate_every=stage.validate_every,
        take=stage.take,
        log_every=recipe.log_every,
        drop_bad=recipe.drop_bad,
        upstream=upstream,
        rollout=rollout,
    )


def step_spec(recipe: Recipe, stage: Stage, seed: int) -> StepSpec:
    """Returns what a step of the stage computes."""
    policy = stage.reward.policy()
    return StepSpec(
        dtype=recipe.dtype, next_token_weight=stage.next_token_weight if policy is None else 0.0, policy=policy,
        retention=stage.retention,
        microbatches=stage.microbatches, remat=recipe.remat, attention=recipe.attention, dropout=stage.dropout, chunk=recipe.chunk, seed=seed,
    )  # fmt: skip
