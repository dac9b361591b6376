"""One stage of training, for every phase: restore, then draw, step, log, validate, save; stop
cleanly.

    loaded = run_stage(plan, loaded, reference, mesh)

A stage directory holds `stage.json` (what was asked for), `checkpoints/` and `metrics.jsonl`. Asked
for again, the stage resumes at its last checkpoint and gives the same bits as if it had never
stopped; asked for with other settings, it is refused. SIGTERM and Ctrl-C save and end it.

It decides nothing about phases or gates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medkor_jax.data.batches import Batches
from medkor_jax.io.checkpoint import abstract_like
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.stage_checkpoints import StageCheckpoints
from medkor_jax.model.params import Params, Tree
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import check_batch, place_batch, shard_tree
from medkor_jax.train import trainable as trainables
from medkor_jax.train.drawing import Draw, drawing, make_batches
from medkor_jax.train.groups import NothingToLearn
from medkor_jax.train.progress import Progress
from medkor_jax.train.rollout import Rollouts
from medkor_jax.train.spikes import Spike, leave_out, left_out
from medkor_jax.train.stage_plan import StagePlan, claim
from medkor_jax.train.step import State, make_state, make_step
from medkor_jax.train.text_loss import text_loss


class StoppedEarly(hosts.Stopped):
    """A signal ended the stage after its state was saved; the same command goes on from there."""


def run_stage(
    plan: StagePlan, loaded: LoadedModel, reference: Params | None, mesh: Mesh
) -> LoadedModel:
    """Returns the model with the trees of the stage trained. reference: the model that retention
    holds to.

    Raises: ValueError before any compilation if the settings contradict each other, the data or an
    earlier start of the stage; StoppedEarly after a signal; Spike if a loss cannot be trusted
    (`spikes`); NothingToLearn if the model's own answers cannot teach it anything.
    """
    stage = plan.stage
    check_batch(stage.batch_size, stage.microbatches, mesh)
    trained, frozen = trainables.split(loaded.params, stage.trees)
    optimizer = trainables.make_optimizer(stage.rules_in_force, stage.schedule, trained)
    batches = make_batches(plan, loaded.style, loaded.language_unit)
    claim(plan, loaded, trained)
    shardings = shard_tree(jax.eval_shape(lambda t: make_state(optimizer, t), trained), mesh)
    with (
        StageCheckpoints(plan.directory / "checkpoints", keep_last=stage.keep_last) as checkpoints,
        hosts.stops(1, plan.name) as may_begin,
    ):
        # the step donates its state: copy, so that the caller's arrays stay alive
        fresh = jax.jit(
            lambda t: make_state(optimizer, jax.tree.map(jnp.copy, t)), out_shardings=shardings
        )
        first_cursor = batches.get_state()

        def begin() -> State:
            state = fresh(trained)
            found = checkpoints.restore(abstract_like(state))
            state, cursor = found or (state, first_cursor)
            batches.set_state(cursor)
            return state

        state = begin()
        if (start := int(state.step)) < stage.steps:
            step: Any = make_step(loaded.config, plan.spec, optimizer, shardings)
            draw = drawing(plan, batches, loaded, frozen, mesh)

            def update(state: State, batch):
                return step(state, frozen, reference, place_batch(batch, mesh))

            def validate(state: State) -> float:
                now = dataclasses.replace(loaded, params=trainables.join(state.trainable, frozen))
                shape: Any = dict(batch_size=stage.batch_size, seq_len=stage.seq_len, max_tokens=0)
                loss = text_loss(now, mesh, plan.validation, plan.compute, **shape)
                return loss["nats"]

            steps = functools.partial(_steps, plan, batches, draw, update, validate, checkpoints)
            state = _without_spikes(plan, lambda state: steps(may_begin, state), begin, state)
            _say_how_it_went(plan, stage.steps - start, batches, step)
        if stage.take == "best" and checkpoints.best_step is not None:
            checkpoints.wait()
            state = checkpoints.restore_best(abstract_like(state))
    _say_if_unchanged(plan, trained, state)
    return dataclasses.replace(loaded, params=trainables.join(state.trainable, frozen))


def _say_how_it_went(plan: StagePlan, n_steps: int, batches: Batches | Rollouts, step: Any) -> None:
    if step._cache_size() > 1:
        say(
            f"ALARM: {plan.name} compiled its step {step._cache_size()} times; batch "
            "shapes or shardings changed"
        )
    say(
        f"{plan.name}: {n_steps} steps, {batches.packing_efficiency:.0%} of "
        "the tokens were text, not padding"
    )


def _say_if_unchanged(plan: StagePlan, before: dict[str, Tree], state: State) -> None:
    if not trainables.has_changed(before, state.trainable):
        say(
            f"ALARM: {plan.name} ended and not one trained weight has changed: what follows is "
            "measured on the model as it was. "
            "Likely cause: learning rates of 0, or gradients that are all zero (no loss reaches "
            "these trees)"
        )


def _without_spikes(
    plan: StagePlan, steps: Callable[[State], State], begin: Callable[[], State], state: State
) -> State:
    """Returns steps(state); where a loss spikes and the stage may step back, those from the last checkpoint on."""
    while True:
        try:
            return steps(state)
        except Spike as spike:
            leave_out(plan, spike)
        state = begin()


def _steps(
    plan: StagePlan,
    batches: Batches | Rollouts,
    draw: Draw,
    update: Callable,
    validate: Callable[[State], float],
    checkpoints: StageCheckpoints,
    may_begin: Callable[[int], bool],
    state: State,
) -> State:
    """Returns the state after the last step: the loop itself. Raises: Spike."""
    stage, start, total = plan.stage, int(state.step), plan.stage.steps
    others = left_out(plan.directory)
    with Progress(plan, start, saved=lambda: checkpoints.latest_step or 0) as progress:
        for number in range(start + 1, total + 1):
            try:
                for _ in range(1 + others.get(number, 0)):
                    batch, drawn = draw(state)
            except NothingToLearn as error:
                progress.flush()
                checkpoints.save(number - 1, state, batches.get_state())
                checkpoints.wait()
                raise NothingToLearn(
                    f"{plan.name} stopped before step {number} of {total}, its state saved: {error}"
                ) from None
            state, metrics = update(state, batch)
            progress.stepped(number, batch, drawn, metrics)
            is_last = number == total
            asked_to_stop = not is_last and not may_begin(number + 1)
            if number % plan.log_every == 0 or is_last or asked_to_stop:
                progress.flush()
            nats = None
            if stage.validate_every and (number % stage.validate_every == 0 or is_last):
                progress.flush()
                nats = validate(state)
                progress.validated(number, nats)
            if nats is not None or number % stage.save_every == 0 or is_last or asked_to_stop:
                progress.flush()
                hosts.at(f"{plan.name}, saving step {number}")
                checkpoints.save(number, state, batches.get_state(), nats)
            if asked_to_stop:
                checkpoints.wait()
                raise StoppedEarly(
                    f"{plan.name} stopped at step {number} of {total}, saved; the same command "
                    "goes on"
                )
    return state
