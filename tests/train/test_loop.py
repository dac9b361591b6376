"""A stage that stops and goes on is the stage that never stopped; what it must not touch, it does not touch."""

import contextlib
import dataclasses
import math
import os
import signal

import jax
import jax.numpy as jnp
import pytest

from medkor_jax.adapt.lora import make_lora
from medkor_jax.data.batches import Batches
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_examples
from medkor_jax.io.checkpoint import digest_tree
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.models import open_model
from medkor_jax.parallel import hosts
from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.train import loop
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.metrics import read_metrics
from medkor_jax.train.stage import Stage
from medkor_jax.train.stage_plan import StagePlan
from medkor_jax.train.text_loss import text_loss
from medkor_jax.train.trainable import OptimizerRule

STEPS = 6
PLAIN = ComputeSettings("float32", "none")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape())


@pytest.fixture(scope="module")
def model(tiny_base_dir):
    return open_model(tiny_base_dir)


@pytest.fixture(scope="module")
def params(model, mesh):
    params = model.load(jnp.float32, mesh)
    return params.replace(
        lora=make_lora(params.base, jax.random.key(0), rank=2, targets=("q", "down")),
        lora_scale=2.0,
    )


@pytest.fixture(scope="module")
def corpus():
    source = Source("text", "text", "embedded", subset="train", language="en", limit=40)
    return [(source, load_examples(source, drop_bad=False).rows)]


@pytest.fixture
def plan(corpus, tmp_path):
    return make_plan(corpus, tmp_path)


def make_plan(corpus, directory):
    stage = Stage(
        steps=STEPS, trees=("lora",), data=tuple(source for source, _ in corpus), batch_size=4, seq_len=64, dropout=0.1,
        rules=(OptimizerRule("lora", "lora/.*", 0.01),), warmup_steps=2, save_every=2,
    )  # fmt: skip
    return StagePlan(
        name="stage", directory=directory / "stage", stage=stage, compute=PLAIN, seed=3, train=corpus,
        validation=[], upstream="model", log_every=3,
    )  # fmt: skip


def staged(plan, **changes):
    """`plan` with another stage."""
    return dataclasses.replace(plan, stage=dataclasses.replace(plan.stage, **changes))


@pytest.fixture(scope="module")
def run(params, model, mesh):
    def run(plan, params=params):
        with jax.set_mesh(mesh):
            return loop.run_stage(
                plan, LoadedModel(params, model.base, model.config, model.tokenizer), None, mesh
            ).params

    return run


@pytest.fixture(scope="module")
def uninterrupted(run, corpus, tmp_path_factory):
    plan = make_plan(corpus, tmp_path_factory.mktemp("uninterrupted"))
    steps, made = [], loop.make_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", lambda *a, **k: steps.append(made(*a, **k)) or steps[-1])
        return run(plan), read_metrics(plan.directory), steps, plan


def losses(rows):
    return [(row["step"], row["loss"], row["tokens"]) for row in rows]


@pytest.fixture
def disturb(monkeypatch):
    """disturb(n, deed): `deed()` happens when the n-th batch from now is asked for."""
    whole = Batches.__next__

    def disturb(n, deed):
        asked = []

        def disturbed(self):
            asked.append(1)
            if len(asked) == n:
                deed()
            return whole(self)

        monkeypatch.setattr(Batches, "__next__", disturbed)

    yield disturb
    monkeypatch.setattr(Batches, "__next__", whole)


def power_cut():
    raise OSError("power cut")


@pytest.mark.parametrize(
    "n, deed, error, stands_at",
    [
        (3, lambda: os.kill(os.getpid(), signal.SIGTERM), loop.StoppedEarly, 3),
        (STEPS, lambda: os.kill(os.getpid(), signal.SIGTERM), hosts.Stopped, STEPS),
        (6, power_cut, OSError, 4),
    ],
    ids=["SIGTERM during step 3", "SIGTERM during the last step", "killed at step 6, saved at 4"],
)
def test_an_interrupted_stage_gives_the_bits_of_one_that_never_stopped(
    n, deed, error, stands_at, run, plan, disturb, uninterrupted, monkeypatch
):
    disturb(n, deed)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        run(plan)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert sorted(int(p.name) for p in (plan.directory / "checkpoints").iterdir()) == [stands_at]
    asked = []
    disturb(1, lambda: asked.append(1))
    resumed = run(plan)
    expected, rows, *_ = uninterrupted
    assert digest_tree(resumed.lora) == digest_tree(expected.lora)
    assert losses(read_metrics(plan.directory)) == losses(rows)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


def test_training_changes_what_trains_and_no_byte_of_the_base(uninterrupted, params, model, mesh):
    trained, rows, *_ = uninterrupted
    assert digest_tree(trained.base) == digest_tree(model.load(jnp.float32, mesh).base)
    assert all(digest_tree(trained.lora[m]) != digest_tree(params.lora[m]) for m in ("q", "down"))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1


def test_a_stage_compiles_its_step_once(uninterrupted):
    _, _, steps, _ = uninterrupted
    assert [step._cache_size() for step in steps] == [1]


def test_a_finished_stage_trains_nothing_more(run, monkeypatch, uninterrupted):
    first, _, _, plan = uninterrupted
    written = (plan.directory / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(Batches, "__next__", lambda self: pytest.fail("a batch was asked for"))
    assert digest_tree(run(plan).lora) == digest_tree(first.lora)
    assert (plan.directory / "metrics.jsonl").read_bytes() == written


def test_other_settings_on_the_same_directory_are_refused(run, plan, disturb):
    disturb(1, power_cut)
    with contextlib.suppress(OSError):
        run(plan)
    rules = (OptimizerRule("lora", "lora/.*", 0.02),)
    others = {
        name: dataclasses.replace(plan, **{name: value})
        for name, value in (("upstream", "another"), ("seed", 4))
    }
    others |= {
        name: staged(plan, **{name: value})
        for name, value in (("seq_len", 32), ("steps", STEPS + 1), ("rules", rules))
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"other settings.*{name}.*--restart"):
            run(other)
    with pytest.raises(ValueError, match="batch_size"):
        run(dataclasses.replace(staged(plan, batch_size=6), directory=plan.directory / "new"))


def test_best_takes_the_checkpoint_of_lowest_validation_loss(run, plan, corpus, monkeypatch):
    nats = iter([3.0, 1.0, 2.0])
    seen = []

    def measured(loaded, *_, **__):
        seen.append(digest_tree(loaded.params.lora))
        return {"nats": next(nats), "tokens": 1.0}

    monkeypatch.setattr(loop, "text_loss", measured)
    best = run(
        dataclasses.replace(
            staged(plan, validation=plan.stage.data, validate_every=2, save_every=100, take="best"),
            validation=corpus,
        )
    )
    assert len(set(seen)) == 3
    assert digest_tree(best.lora) == seen[1]
    assert [
        r["validation_nats"] for r in read_metrics(plan.directory) if "validation_nats" in r
    ] == [3.0, 1.0, 2.0]


def test_text_loss_is_a_mean_over_predicted_tokens_and_stops_at_its_bound(
    params, model, mesh, corpus
):
    def measure(limit, shift=0.0):
        shifted = params.replace(base=params.base | {"embed": params.base["embed"] * (1 + shift)})
        loaded = LoadedModel(shifted, model.base, model.config, model.tokenizer)
        return text_loss(loaded, mesh, corpus, PLAIN, batch_size=4, seq_len=64, max_tokens=limit)

    with jax.set_mesh(mesh):
        some, whole = measure(64), measure(0)
        blank = measure(0, shift=-1.0)  # no embedding, no logits: every token is equally likely
    assert 64 <= some["tokens"] <= 4 * 64 < whole["tokens"]
    lengths = sum(
        len(ids) for ids in model.tokenizer.encode_batch([e.parts[0][0] for e in corpus[0][1]])
    )
    assert lengths <= whole["tokens"] <= lengths + 2 * len(corpus[0][1])
    assert blank["nats"] == pytest.approx(math.log(model.config.vocab_size), rel=1e-5)
    for loss in (some, whole, blank):
        nats, tokens = zip(*loss["pieces"])
        assert sum(tokens) == loss["tokens"]
        assert sum(nats) / sum(tokens) == pytest.approx(loss["nats"], rel=1e-5)
    assert some["pieces"] == whole["pieces"][: len(some["pieces"])]
    assert len(whole["pieces"]) >= len(corpus[0][1])  # a document that a row cannot hold is several
    for nats, tokens in blank["pieces"]:
        assert nats == pytest.approx(tokens * math.log(model.config.vocab_size), rel=1e-3)


def test_text_loss_against_a_reference_is_its_divergence(params, model, mesh, corpus):
    """KL(reference || model), over the pieces of the loss."""
    shape = dict(batch_size=4, seq_len=64, max_tokens=0)
    other = params.replace(base=params.base | {"final_norm": params.base["final_norm"] + 0.5})
    with jax.set_mesh(mesh):
        loaded = LoadedModel(params, model.base, model.config, model.tokenizer)
        itself = text_loss(loaded, mesh, corpus, PLAIN, reference=params, **shape)
        moved = text_loss(loaded, mesh, corpus, PLAIN, reference=other, **shape)
        plain = text_loss(loaded, mesh, corpus, PLAIN, **shape)
    assert itself["nats"] == pytest.approx(0.0, abs=1e-5)
    assert moved["nats"] > 1e-3 and min(nats for nats, _ in moved["pieces"]) > 0
    assert [n for _, n in moved["pieces"]] == [n for _, n in plain["pieces"]]


def test_a_stage_that_changed_nothing_ends_in_an_alarm(run, plan, capsys):
    still = staged(plan, rules=(OptimizerRule("lora", "lora/.*", 0.0),))
    run(still)
    assert "ALARM: stage ended and not one trained weight has changed" in capsys.readouterr().out


def test_a_stage_that_learnt_ends_in_none(uninterrupted, run, capsys):
    *_, plan = uninterrupted
    run(plan)
    assert "ALARM" not in capsys.readouterr().out


def test_how_memory_is_saved_may_change_under_a_stage(run, plan, disturb):
    disturb(6, power_cut)
    with contextlib.suppress(OSError):
        run(plan)
    run(
        dataclasses.replace(
            plan, compute=dataclasses.replace(plan.compute, remat="full", chunk=128)
        )
    )


def test_a_damaged_checkpoint_is_never_trained_on(run, plan, disturb, uninterrupted):
    """Random bytes of a stage's checkpoint changed: the stage resumes to the same bits, or it says what is damaged."""
    import random
    import shutil

    disturb(6, power_cut)
    with contextlib.suppress(OSError):
        run(plan)
    stage, whole = plan.directory, plan.directory.with_name("whole")
    shutil.copytree(stage, whole)
    expected, rng, found = digest_tree(uninterrupted[0].lora), random.Random(0), set()
    files = sorted(
        p.relative_to(whole)
        for p in (whole / "checkpoints").rglob("*")
        if p.is_file() and p.stat().st_size
    )
    # the arrays, and the cursor beside them, are what training would go on from
    payload = [
        f
        for f in files
        if "/d/" in f.as_posix() or ("cursor" in f.as_posix() and f.name == "metadata")
    ]
    assert len(payload) >= 2
    for trial in range(6):
        shutil.rmtree(stage)
        shutil.copytree(whole, stage)
        path = stage / payload[trial % len(payload)]
        raw = bytearray(path.read_bytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(raw))
        try:
            resumed = run(plan)
        except ValueError as error:
            assert "checkpoints/4" in str(error) and ("put it back" in str(error)), error
            found.add("refused")
        else:
            assert digest_tree(resumed.lora) == expected
    assert found == {"refused"}
