"""What a stage saved comes back bit for bit; what was damaged is stepped over, or named."""

import functools
import shutil

import jax
import jax.numpy as jnp
import pytest

from medkor_jax.adapt.expansion import make_expansion
from medkor_jax.io import stage_checkpoints
from medkor_jax.io.checkpoint import DamagedCheckpoint, abstract_like, digest_tree
from medkor_jax.io.stage_checkpoints import StageCheckpoints
from medkor_jax.model.config import preset
from medkor_jax.train.step import make_state
from medkor_jax.train.trainable import OptimizerRule, Schedule, make_optimizer


def state_at(step):
    return {"w": jnp.full((2,), float(step)), "step": jnp.array(step, jnp.int32)}


def test_the_last_checkpoints_and_the_best_are_kept_with_their_cursors(tmp_path):
    with StageCheckpoints(tmp_path / "c", keep_last=2) as checkpoints:
        assert checkpoints.restore(abstract_like(state_at(0))) is None
        assert checkpoints.latest_step is checkpoints.best_step is None
        for step, nats in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None)):
            checkpoints.save(step, state_at(step), {"next": step * 10}, nats)
    with StageCheckpoints(tmp_path / "c", keep_last=2) as checkpoints:
        assert sorted(int(p.name) for p in (tmp_path / "c").iterdir()) == [2, 4, 5]
        state, cursor = checkpoints.restore(abstract_like(state_at(0)))
        assert digest_tree(state) == digest_tree(state_at(5)) and cursor == {"next": 50}
        assert (checkpoints.latest_step, checkpoints.best_step) == (5, 2)
        best = checkpoints.restore_best(abstract_like(state_at(0)))
        assert digest_tree(best) == digest_tree(state_at(2))


def test_an_unfinished_checkpoint_is_not_taken(tmp_path):
    with StageCheckpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state_at(1), {"next": 1})
    (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
    with StageCheckpoints(tmp_path / "c") as checkpoints:
        state, cursor = checkpoints.restore(abstract_like(state_at(0)))
    assert int(state["step"]) == 1 and cursor == {"next": 1}


def test_added_layers_and_their_moments_are_resumed_bit_for_bit(tmp_path, make_base):
    trainable = {"expand": make_expansion(make_base(preset("tiny")), front=2, back=1)}
    optimizer = make_optimizer(
        (OptimizerRule("expand", r"expand/.*", 1e-4, weight_decay=0.1),),
        Schedule(10, 0, 0.1, 1.0),
        trainable,
    )
    state = make_state(optimizer, trainable)
    noise = iter(range(1000))
    state = jax.tree.map(lambda x: x + jnp.asarray(next(noise) / 7, x.dtype), state)
    with StageCheckpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, state, {"next": 24})
        checkpoints.wait()
        back, cursor = checkpoints.restore(abstract_like(make_state(optimizer, trainable)))
    assert digest_tree(back) == digest_tree(state) != digest_tree(make_state(optimizer, trainable))
    assert len(jax.tree.leaves(back.opt_state)) == 2 * 26 + 2 and cursor == {"next": 24}


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "deleted": lambda path: path.unlink(),
    "with a bit flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
}


def flipped(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] if data else data


def saved(directory, steps):
    with StageCheckpoints(directory, keep_last=2) as checkpoints:
        for step, nats in steps:
            checkpoints.save(step, state_at(step), {"next": step}, nats)
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole") / "c", [(1, 1.0), (2, 3.0), (3, 2.0)])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_never_gives_another_state(damage, whole, tmp_path, capsys):
    """Of the latest checkpoint: it is whole all the same, or the one before is taken, and the other moved aside."""
    abstract, n_stepped_back = abstract_like(state_at(0)), 0
    files = [path.relative_to(whole) for path in (whole / "3").rglob("*") if path.is_file()]
    for number, file in enumerate(files):
        place = tmp_path / str(number) / "c"
        shutil.copytree(whole, place)
        DAMAGES[damage](place / file)
        with StageCheckpoints(place, keep_last=2) as checkpoints:
            state, cursor = checkpoints.restore(abstract)
            step = int(state["step"])
            assert digest_tree(state) == digest_tree(state_at(step)) and cursor == {"next": step}
            assert (
                checkpoints.best_step == 1 and int(checkpoints.restore_best(abstract)["step"]) == 1
            )
            if step == 2:
                n_stepped_back += 1
                assert (
                    f"{place / '3'} " in capsys.readouterr().out
                    and (place.parent / "c.damaged-3").is_dir()
                )
                checkpoints.save(3, state_at(3), {"next": 3}, 2.0)  # made again
            else:
                assert step == 3
    assert n_stepped_back >= 3


def test_where_no_checkpoint_is_whole_a_sentence_says_what_to_do(tmp_path):
    place = saved(tmp_path / "c", [(1, None), (2, None)])
    for file in place.rglob("cursor/metadata"):
        DAMAGES["cut"](file)
    with StageCheckpoints(place) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match=r"c/1 cannot be read .*--restart"):
            checkpoints.restore(abstract_like(state_at(0)))
    assert (tmp_path / "c.damaged-2").is_dir() and (place / "1").is_dir()


@pytest.mark.parametrize("damage", ["gone", "spoilt"])
def test_a_best_checkpoint_that_is_lost_is_never_another(damage, tmp_path):
    place = saved(tmp_path / "c", [(1, 1.0), (2, 3.0), (3, 2.0)])
    shutil.rmtree(place / "1") if damage == "gone" else DAMAGES["cut"](place / "1/cursor/metadata")
    with StageCheckpoints(place, keep_last=2) as checkpoints:
        assert int(checkpoints.restore(abstract_like(state_at(0)))[0]["step"]) == 3
        with pytest.raises(DamagedCheckpoint, match=r"c/1.*--restart"):
            checkpoints.restore_best(abstract_like(state_at(0)))


def test_a_checkpoint_of_before_knows_its_best(tmp_path, monkeypatch):
    """Then the losses were files of orbax, and the digest was of the state and the cursor."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(best_fn=lambda said: -said["validation_nats"])
    with ocp.CheckpointManager(tmp_path / "c", options=options) as manager:
        for step, nats in ((1, 1.0), (2, 3.0)):
            digest = stage_checkpoints._digest(state_at(step), {"next": step})
            written = {"cursor": {"next": step}, "digest": digest}
            args = dict(
                state=ocp.args.StandardSave(state_at(step)), cursor=ocp.args.JsonSave(written)
            )
            manager.save(step, args=ocp.args.Composite(**args), metrics={"validation_nats": nats})
    with StageCheckpoints(tmp_path / "c", keep_last=1) as checkpoints:
        assert checkpoints.restore(abstract_like(state_at(0)))[1] == {"next": 2}
        checkpoints.save(3, state_at(3), {"next": 3}, 2.0)
        checkpoints.wait()
        assert int(checkpoints.restore_best(abstract_like(state_at(0)))["step"]) == 1


@pytest.mark.parametrize("when", ["waited for", "at the end"])
def test_a_disk_that_is_full_is_said_and_what_was_saved_stays(when, tmp_path, monkeypatch):
    place = saved(tmp_path / "c", [(1, None)])
    with pytest.raises(OSError, match=r"c could not be written \(.*No space.*same command goes on"):
        with StageCheckpoints(place) as checkpoints:
            full = functools.partial(throw, OSError(28, "No space left on device"))
            monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
            if when == "waited for":
                checkpoints.wait()
    monkeypatch.undo()
    with StageCheckpoints(place) as checkpoints:
        assert int(checkpoints.restore(abstract_like(state_at(0)))[0]["step"]) == 1


def throw(error):
    raise error
