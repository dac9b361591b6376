"""Losses that cannot be trusted: the step is named, its batch kept, and the stage stops or steps back."""

import contextlib
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.train import loop
from medkor_jax.train.metrics import read_metrics

from .test_loop import STEPS, make_plan, staged
from .test_loop import corpus as corpus
from .test_loop import mesh as mesh
from .test_loop import model as model
from .test_loop import params as params
from .test_loop import plan as plan
from .test_loop import run as run


def test_a_loss_that_is_not_finite_ends_the_stage_unsaved(run, plan, params):
    broken = params.replace(base=params.base | {"final_norm": params.base["final_norm"] * jnp.nan})
    with pytest.raises(FloatingPointError, match="step 1"):
        run(staged(plan, steps=1, warmup_steps=0, save_every=1), broken)
    assert not [p for p in (plan.directory / "checkpoints").iterdir() if p.name.isdigit()]


@pytest.fixture
def poison(monkeypatch):
    """poison(losses): the loss that a step is said to have, by the batch that was drawn as the N-th; returns all drawn."""

    def make(losses):
        drawn, whole = [], loop.make_step

        def poisoned(*arguments, **how):
            step = whole(*arguments, **how)

            class Step:
                _cache_size = staticmethod(lambda: 1)

                def __call__(self, state, frozen, reference, batch):
                    state, metrics = step(state, frozen, reference, batch)
                    tokens = np.asarray(batch["tokens"])
                    if not any(np.array_equal(tokens, one["tokens"]) for one in drawn):
                        drawn.append({name: np.asarray(value) for name, value in batch.items()})
                    number = 1 + next(
                        i for i, one in enumerate(drawn) if np.array_equal(tokens, one["tokens"])
                    )
                    return state, metrics | {"loss": losses.get(number, metrics["loss"])}

            return Step()

        monkeypatch.setattr(loop, "make_step", poisoned)
        return drawn

    return make


def test_the_batch_of_a_loss_that_is_not_finite_is_kept(run, plan, poison):
    """Also where it is noticed some steps later, as it is written."""
    at = 3
    drawn = poison({at: jnp.nan})
    with pytest.raises(FloatingPointError, match=f"at step {at}.*bad-batch-{at}.npz.*step_back"):
        run(dataclasses.replace(plan, log_every=5))
    with np.load(plan.directory / f"bad-batch-{at}.npz", allow_pickle=False) as kept:
        assert set(kept) == set(drawn[at - 1])
        assert all(np.array_equal(kept[name], drawn[at - 1][name]) for name in kept)


@pytest.mark.parametrize("stopped_at", [None, 5])
def test_a_stage_steps_back_and_goes_on_without_the_batch(
    run, plan, corpus, poison, tmp_path, capsys, monkeypatch, stopped_at
):
    """As a stage that never drew it, also where it is stopped after it went back."""
    without = make_plan(corpus, tmp_path / "without")
    without.directory.mkdir(parents=True)
    (without.directory / "left-out.json").write_text('{"3": 1}')
    wanted = run(without)
    plan = staged(plan, on_spike="step_back", save_every=2)
    with monkeypatch.context():
        poison({3: jnp.inf})
        if stopped_at:
            stop_at(stopped_at, monkeypatch)
            with pytest.raises(loop.StoppedEarly):
                run(plan)
        else:
            assert digest_tree(run(plan).lora) == digest_tree(wanted.lora)
    said = capsys.readouterr().out
    assert "loss is inf at step 3" in said and "at step 2. The stage goes back there" in said
    monkeypatch.undo()
    assert digest_tree(run(plan).lora) == digest_tree(wanted.lora)
    assert [row["step"] for row in read_metrics(plan.directory)] == [*range(1, STEPS + 1)]


def stop_at(step, monkeypatch):
    """Stops the stage after the step, as a signal does."""
    told = loop.hosts.stops

    @contextlib.contextmanager
    def stops(first, name):
        with told(first, name) as may_begin:
            yield lambda number: number <= step and may_begin(number)

    monkeypatch.setattr(loop.hosts, "stops", stops)


def test_a_stage_that_spikes_again_and_again_stops(run, plan, poison):
    poison(dict.fromkeys(range(2, 20), jnp.nan))
    with pytest.raises(FloatingPointError, match="at step 2.*3 batches were left out before"):
        run(staged(plan, on_spike="step_back"))
    assert json.loads((plan.directory / "left-out.json").read_text()) == {"2": 3}


@pytest.mark.parametrize("usual", [2, 0])  # a reward's loss is often exactly 0
def test_a_spike_is_measured_from_the_losses_before_also_those_of_an_earlier_start(
    run, plan, poison, monkeypatch, usual
):
    losses = [9, usual, usual, usual, usual, usual + 2.5, usual]
    poison({number: jnp.float32(loss) for number, loss in enumerate(losses, 1)})
    plan = staged(plan, spike_nats=2.0)
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(loop.StoppedEarly):
            run(plan)
    with pytest.raises(
        FloatingPointError, match=f"loss is {usual + 2.5} at step 6, the 5 before it had {usual}"
    ):
        run(plan)
    run(staged(plan, spike_nats=2.6))
