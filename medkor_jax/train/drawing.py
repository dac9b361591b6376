"""Where the batches of a stage come from: its documents or, with a reward, the model's own answers
to its questions.

    batches = make_batches(plan, style, language_unit)                  # refuses data that does not fit
    draw = drawing(plan, batches, loaded, frozen, mesh)
    batch, drawn = draw(state)              # drawn: what is logged of how it was made

It places nothing on devices and updates nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import jax
from jax.sharding import Mesh

from medkor_jax.data.batches import Batches
from medkor_jax.data.packing import Batch
from medkor_jax.data.style import Style
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.model.params import Params
from medkor_jax.train.actor import Actor
from medkor_jax.train.rollout import Rollouts
from medkor_jax.train.stage_plan import StagePlan
from medkor_jax.train.step import State
from medkor_jax.train.trainable import join

Draw = Callable[[State], tuple[Batch, dict[str, Any]]]


def make_batches(plan: StagePlan, style: Style, language_unit: str) -> Batches | Rollouts:
    """Returns where the stage's batches come from, once its data was found to fit."""
    stage, train = plan.stage, cast("Any", plan.train)  # questions or documents, as the reward says
    common: dict[str, Any] = dict(
        batch_size=stage.batch_size,
        seq_len=stage.seq_len,
        seed=plan.seed,
        language_unit=language_unit,
        drop_bad=plan.drop_bad,
    )
    if stage.reward.is_on:
        return Rollouts(
            train,
            style,
            stage.reward,
            loss_positions=stage.loss_positions,
            form=plan.form,
            **common,
        )
    return Batches(train, style, loss_positions=stage.loss_positions or None, **common)


def drawing(
    plan: StagePlan, batches: Batches | Rollouts, loaded: LoadedModel, frozen: Params, mesh: Mesh
) -> Draw:
    """Returns draw(state): the next batch, and what is to be logged of how it was made. loaded: as
    the stage began.
    """
    reward, source = plan.stage.reward, cast("Any", batches)  # of the kind that the reward says
    if not reward.is_on:
        return lambda state: (next(source), {})
    actor = Actor(
        loaded,
        plan.spec,
        mesh,
        temperature=reward.rollout.temperature,
        max_new_tokens=reward.rollout.max_new_tokens,
        with_reference=reward.has_policy_loss and reward.policy.kl_weight > 0,
    )

    def draw(state: State) -> tuple[Batch, dict[str, Any]]:
        jax.block_until_ready(state)  # or the last update's time would be taken for the sampling's
        began = time.perf_counter()
        batch, drawn = source.next(join(state.trainable, frozen), actor)
        return batch, drawn | {"rollout/seconds": time.perf_counter() - began}

    return draw
