"""One stage of training, for every phase: restore, step, log, save, stop cleanly.

    params = run_stage(stage, params, reference, context)

A stage directory holds `stage.json` (what was asked for), `checkpoints/` and `metrics.jsonl`. Asked for
again, the stage goes on where its last checkpoint stands and gives the same bits as if it had never
stopped; asked for with other settings, it is refused. SIGTERM and Ctrl-C save and end it. Batches come from
documents or, with a reward, from the model's own answers to questions.

It decides nothing about phases or gates.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from typing import Any, Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medkor_jax.data.batches import Batches, one_pass
from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import Example, Source
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.checkpoint import StageCheckpoints, abstract_like
from medkor_jax.io.files import write_json
from medkor_jax.io.old_formats import STAGE_FORMAT, upgraded_stage
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.params import Params
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.parallel.mesh import check_batch, place_batch, shard_tree
from medkor_jax.train import trainable as trainables
from medkor_jax.train.actor import Actor
from medkor_jax.train.groups import NothingToLearn
from medkor_jax.train.metrics import MetricsLog
from medkor_jax.train.rollout import Rollouts
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import ComputeSettings, State, StepSpec, make_evaluation, make_state, make_step, step_spec

Corpus = Sequence[tuple[Source, Sequence[Example] | Sequence[Question]]]


class StoppedEarly(hosts.Stopped):
    """A signal ended the stage after its state was saved; the same command goes on from there."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage and what was resolved for it: what the loop runs.

    train, validation: the data that was read, documents or, with a reward, questions. form: how reasoning is written.
    upstream: digest of the model that the stage starts from. route: how tokens are told their language.
    """

    name: str
    directory: pathlib.Path
    stage: Stage
    compute: ComputeSettings
    seed: int
    train: Corpus
    validation: Corpus
    upstream: str
    route: str
    form: ReasoningFormat = ReasoningFormat()
    drop_bad: bool = False
    log_every: int = 10

    @property
    def spec(self) -> StepSpec:
        return step_spec(self.stage, self.compute, self.seed)


def run_stage(
    plan: StagePlan, params: Params, reference: Params | None, config: ModelConfig, tokenizer: Tokenizer, mesh: Mesh
) -> Params:
    """Returns `params` with the trees of the stage trained.

    Raises: ValueError before any compilation if the settings contradict each other, the data or an earlier
    start of the stage; StoppedEarly after a signal; FloatingPointError if the loss is not finite; NothingToLearn if
    the model's own answers cannot teach it anything.
    """
    stage = plan.stage
    check_batch(stage.batch_size, stage.microbatches, mesh)
    trained, frozen = trainables.split(params, stage.trees)
    optimizer = trainables.make_optimizer(stage.rules_in_force, stage.schedule, trained)
    batches = make_batches(plan, tokenizer)
    _claim(plan, trained)
    shardings = shard_tree(jax.eval_shape(lambda t: make_state(optimizer, t), trained), mesh)
    with (
        StageCheckpoints(plan.directory / "checkpoints", keep_last=stage.keep_last) as checkpoints,
        hosts.stops(1, plan.name) as may_begin,
    ):
        # the step donates its state: copy, so that the caller's arrays stay alive
        state = jax.jit(lambda t: make_state(optimizer, jax.tree.map(jnp.copy, t)), out_shardings=shardings)(trained)
        if found := checkpoints.restore(abstract_like(state)):
            state, cursor = found
            batches.set_state(cursor)
        start = int(state.step)
        if start < stage.steps:
            step = make_step(config, plan.spec, optimizer, shardings)
            draw = drawing(plan, batches, params, frozen, config, tokenizer, mesh)
            state = _steps(plan, step, state, frozen, reference, batches, draw, checkpoints, config, tokenizer, mesh, may_begin)
        if stage.take == "best" and (best := checkpoints.best_step) is not None:
            checkpoints.wait()
            state, _ = checkpoints.restore(abstract_like(state), best)
    if not trainables.has_changed(trained, state.trainable):
        say(
            f"ALARM: {plan.name} ended and not one trained weight has changed: what follows is measured on the model as it was. "
            "Likely cause: learning rates of 0, or gradients that are all zero (no loss reaches these trees)"
        )
    return trainables.join(state.trainable, frozen)


def make_batches(plan: StagePlan, tokenizer: Tokenizer) -> Batches | Rollouts:
    """Returns where the stage's batches come from, once its data was found to fit."""
    stage = plan.stage
    common = dict(batch_size=stage.batch_size, seq_len=stage.seq_len, seed=plan.seed, route=plan.route, drop_bad=plan.drop_bad)
    if stage.reward.is_on:
        return Rollouts(plan.train, tokenizer, stage.reward, loss_positions=stage.loss_positions, form=plan.form, **common)
    return Batches(plan.train, tokenizer, loss_positions=stage.loss_positions or None, **common)


def drawing(plan, batches, params: Params, frozen: Params, config, tokenizer, mesh) -> Callable[[State], Any]:
    """Returns draw(state): the next batch, and what is to be logged of how it was made. params: as the stage began."""
    reward = plan.stage.reward
    if not reward.is_on:
        return lambda state: (next(batches), {})
    needs_reference = reward.has_policy_loss and reward.policy.kl_weight > 0
    actor = Actor(
        config, plan.spec, tokenizer, mesh, temperature=reward.rollout.temperature, route=plan.route,
        max_new_tokens=reward.rollout.max_new_tokens, reference=params if needs_reference else None,
    )  # fmt: skip

    def draw(state: State):
        jax.block_until_ready(state)  # or the last update's time would be taken for the sampling's
        began = time.perf_counter()
        batch, watched = batches.next(trainables.join(state.trainable, frozen), actor)
        return batch, watched | {"rollout/seconds": time.perf_counter() - began}

    return draw


def text_loss(
    params: Params, config: ModelConfig, tokenizer: Tokenizer, mesh: Mesh, corpus: Corpus, spec: StepSpec, *,
    route: str, batch_size: int, seq_len: int, max_tokens: int,
) -> dict[str, float]:
    """Returns {"nats": mean cross entropy a predicted token, "tokens": how many}, over the head of `corpus`.

    Reads whole batches until `max_tokens` tokens were predicted (0: all of it).
    """
    evaluate = make_evaluation(config, spec)
    loss = tokens = 0.0
    for batch in one_pass(corpus, tokenizer, batch_size=batch_size, seq_len=seq_len, route=route, drop_bad=True):
        sums = evaluate(params, place_batch(batch, mesh))
        loss, tokens = loss + float(sums.loss), tokens + float(sums.weight)
        if max_tokens and tokens >= max_tokens:
            break
    return {"nats": loss / max(tokens, 1.0), "tokens": tokens}


def _steps(plan, step, state, frozen, reference, batches, draw, checkpoints, config, tokenizer, mesh, may_begin) -> State:
    from tqdm import tqdm

    stage, total, start = plan.stage, plan.stage.steps, int(state.step)
    rates = {rule.name: trainables.learning_rate(rule, stage.schedule) for rule in stage.rules_in_force}
    log = MetricsLog(plan.directory, start)
    bar = tqdm(total=total, initial=start, desc=plan.name, unit="step", dynamic_ncols=True, mininterval=1.0,
               disable=not hosts.is_first())  # fmt: skip
    waiting: list[tuple[int, float, dict[str, float], Any]] = []
    clock = time.perf_counter()

    def flush() -> None:
        nonlocal clock
        if not waiting:
            return
        jax.block_until_ready(waiting[-1][3])
        now = time.perf_counter()
        seconds = (now - clock) / len(waiting)
        clock = now
        for number, filled, watched, metrics in waiting:
            row = {name: np.asarray(value) for name, value in metrics.items()} | watched
            row |= {"tokens_per_second": filled / seconds, "step_seconds": seconds, "tokens": filled}
            row |= {f"learning_rate/{name}": float(rate(number - 1)) for name, rate in rates.items()}
            log.write(number, row)
            _require_finite(plan, number, row["loss"], checkpoints)
        shown = {"reward": f"{row['rollout/reward']:.3f}"} if "rollout/reward" in row else {}
        bar.set_postfix(loss=f"{float(row['loss']):.3f}", tokens_s=f"{row['tokens_per_second']:.0f}", **shown, refresh=False)
        bar.update(waiting[-1][0] - bar.n)
        waiting.clear()

    try:
        for number in range(start + 1, total + 1):
            try:
                batch, watched = draw(state)
            except NothingToLearn as error:
                flush()
                checkpoints.save(number - 1, state, batches.get_state())
                checkpoints.wait()
                raise NothingToLearn(f"{plan.name} stopped before step {number} of {total}, its state saved: {error}") from None
            filled = int((batch["segment_ids"] > 0).sum())
            state, metrics = step(state, frozen, reference, place_batch(batch, mesh))
            waiting.append((number, filled, watched, metrics))
            if number == start + 1:
                jax.block_until_ready(metrics)
                log.note({"compiled_and_first_step_seconds": time.perf_counter() - clock, "at_step": number})
                waiting.clear()
                clock = time.perf_counter()
                row = {name: np.asarray(value) for name, value in metrics.items()}
                log.write(number, row | watched | {"tokens": filled})
                _require_finite(plan, number, metrics["loss"], checkpoints)
            is_last = number == total
            asked_to_stop = not is_last and not may_begin(number + 1)
            if number % plan.log_every == 0 or is_last or asked_to_stop:
                flush()
            nats = None
            if stage.validate_every and (number % stage.validate_every == 0 or is_last):
                flush()
                trained = trainables.join(state.trainable, frozen)
                nats = text_loss(trained, config, tokenizer, mesh, plan.validation, plan.spec, route=plan.route,
                                 batch_size=stage.batch_size, seq_len=stage.seq_len, max_tokens=0)["nats"]  # fmt: skip
                log.write(number, {"validation_nats": nats})
                clock = time.perf_counter()
            if nats is not None or number % stage.save_every == 0 or is_last or asked_to_stop:
                flush()
                hosts.at(f"{plan.name}, saving step {number}")
                checkpoints.save(number, state, batches.get_state(), nats)
            if asked_to_stop:
                checkpoints.wait()
                raise StoppedEarly(f"{plan.name} stopped at step {number} of {total}, saved; the same command goes on")
    finally:
        bar.close()
        log.close()
    if step._cache_size() > 1:
        say(f"ALARM: {plan.name} compiled its step {step._cache_size()} times; batch shapes or shardings changed")
    say(f"{plan.name}: {total - start} steps, {batches.packing_efficiency:.0%} of the tokens were text, not padding")
    return state


def _require_finite(plan: StagePlan, number: int, loss: Any, checkpoints: StageCheckpoints) -> None:
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"{plan.name}: the loss is {loss} at step {number}. Lower the learning rate, or look at the "
            f"data of that step; the last checkpoint is at step {checkpoints.latest_step or 0}"
        )


_MAY_CHANGE = ("save_every", "keep_last", "validation", "validate_every", "take")  # under a stage that has begun


def _claim(plan: StagePlan, trained: Any) -> None:
    """Writes what this stage is, or checks that an earlier start of it was the same."""
    said = json.loads(json.dumps(_said(plan, trained)))
    path = plan.directory / "stage.json"
    before = hosts.first(path, lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)
    if before is not None:
        before = upgraded_stage(before)
        differing = [f"{k}: was {before.get(k)!r}, is {v!r}" for k, v in said.items() if before.get(k) != v]
        if differing:
            raise ValueError(
                f"{plan.directory} was started with other settings ({'; '.join(differing)[:600]}). Give back those "
                "settings, use another run_dir, or start the phase anew with --restart"
            )
    else:
        write_json(path, said)
    say(f"{plan.name}: training {', '.join(plan.stage.trees)} ({said['trainable']}), {plan.stage.steps} steps")


def _said(plan: StagePlan, trained: Any) -> dict[str, Any]:
    """Returns all that decides what the stage learns, as plain data; what is switched off is None."""
    stage = plan.stage
    settings = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage) if field.name not in _MAY_CHANGE}
    of_documents = not stage.reward.has_policy_loss
    settings |= {
        "trees": sorted(stage.trees), "rules": stage.rules_in_force, "data": tuple(source for source, _ in plan.train),
        "next_token_weight": stage.next_token_weight if of_documents else 0.0, "reward": stage.reward.in_force(plan.form),
        "policy": None if of_documents else stage.reward.policy,
    }  # fmt: skip
    resolved = {
        "format": STAGE_FORMAT, "dtype": plan.compute.dtype, "seed": plan.seed, "route": plan.route, "upstream": plan.upstream,
        "trainable": trainables.count(trained),
    }  # fmt: skip
    return {name: _plain(value) for name, value in settings.items()} | resolved


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if not dataclasses.is_dataclass(value):
        return value
    return dataclasses.asdict(value) if getattr(value, "is_on", True) else None


def seed_of(*parts: Any) -> int:
    """Returns a 31-bit seed that depends on all parts and on nothing else."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:4], "little") >> 1
