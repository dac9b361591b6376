"""Trees on disk, through orbax: a stage's running state, a phase's adapters, a merged base.

    with StageCheckpoints(directory, keep_last=2) as checkpoints:
        found = checkpoints.restore(abstract_state)               # (state, cursor) or None
        checkpoints.save(step, state, cursor, validation_nats=1.9)

Saves are asynchronous and atomic: a killed process leaves the last whole checkpoint. Only what trains is
stored, with its optimizer state, the data cursor and a digest of both: what comes back is what was written, or
an error. Nothing here decides when to save.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from medkor_jax.data.contents import checksum, sha256_of
from medkor_jax.model.params import Tree, leaf_paths
from medkor_jax.parallel import hosts
from medkor_jax.parallel.gather import pieces


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be read, or is not what was written."""


def save_tree(directory: pathlib.Path, tree: Any) -> None:
    """Writes a tree of arrays as one orbax checkpoint, replacing what is there; returns when it is on disk."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), tree, force=True)


def restore_tree(directory: pathlib.Path, abstract: Any) -> Any:
    """Returns the tree stored at `directory`, each leaf on the sharding of its ShapeDtypeStruct.

    Raises: ValueError, naming the leaves, if what is stored has other names or shapes; DamagedCheckpoint.
    """
    import orbax.checkpoint as ocp

    _check_same(leaf_paths(stored_shapes(directory)), leaf_paths(abstract), directory)
    with (
        ocp.StandardCheckpointer() as checkpointer,
        _readable(directory, "put it back, or run its phase again"),
    ):
        return checkpointer.restore(directory.absolute(), abstract)


def restore_leaf(directory: pathlib.Path, path: str, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns the one leaf at `path` ("layers/q") of the tree stored at `directory`; the others are not read.

    Raises: ValueError if what is stored has no such leaf, or one of another shape; DamagedCheckpoint.
    """
    import orbax.checkpoint as ocp

    found = leaf_paths(stored_shapes(directory))
    there = {name: leaf for name, leaf in found.items() if name == path}
    _check_same(there, {path: abstract}, directory)
    wanted: Any = abstract
    for name in reversed(path.split("/")):
        wanted = {name: wanted}
    arguments = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    with (
        ocp.PyTreeCheckpointer() as checkpointer,
        _readable(directory, "put it back, or run its phase again"),
    ):
        tree = checkpointer.restore(directory.absolute(), args=arguments)
    return leaf_paths(tree)[path]


def stored_shapes(directory: pathlib.Path) -> Any:
    """Returns the stored tree as ShapeDtypeStructs, without reading the arrays. Raises: DamagedCheckpoint."""
    import orbax.checkpoint as ocp

    with (
        ocp.StandardCheckpointer() as checkpointer,
        _readable(directory, "put it back, or run its phase again"),
    ):
        tree = checkpointer.metadata(directory.absolute()).item_metadata.tree
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def digest_tree(tree: Any) -> str:
    """Returns the SHA-256, in hex, over names, shapes, dtypes and bytes of all leaves. For small trees.

    Leaves spread over several processes are gathered: all of them must call this together.
    """
    leaves = {
        path: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        for path, leaf in sorted(leaf_paths(tree).items())
    }

    def parts() -> Iterator[str | bytes]:
        for (path, leaf), rows in zip(leaves.items(), pieces(list(leaves.values())), strict=True):
            yield f"{path} {leaf.shape} {leaf.dtype}\n"
            yield from (np.ascontiguousarray(part).tobytes() for part in rows)

    return sha256_of(parts())


def abstract_like(tree: Any, shardings: Tree | None = None) -> Any:
    """Returns `tree` as ShapeDtypeStructs on `shardings` (none: where its arrays lie)."""
    if shardings is None:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


class StageCheckpoints:
    """The numbered checkpoints of one stage: the last few, and the best by validation loss if it is measured."""

    def __init__(self, directory: pathlib.Path, *, keep_last: int = 1, keep_best: int = 1) -> None:
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        self._ocp = ocp
        kept = [policy.LatestN(keep_last)]
        if keep_best:
            by_loss = lambda metrics: -metrics["validation_nats"]
            kept.append(
                policy.BestN(
                    get_metric_fn=by_loss, n=keep_best, keep_checkpoints_without_metrics=False
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(kept),
            best_fn=lambda metrics: metrics[
                "validation_nats"
            ],  # without it orbax does not store the metrics
            best_mode="min",
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(
        self, step: int, state: Any, cursor: dict[str, Any], validation_nats: float | None = None
    ) -> None:
        """Starts writing; blocks only while an earlier save is unfinished or the arrays are being copied."""
        if step in self._manager.all_steps():
            return
        written = {"cursor": cursor, "digest": _digest(state, cursor)}
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(state), cursor=self._ocp.args.JsonSave(written)
        )
        metrics = None if validation_nats is None else {"validation_nats": validation_nats}
        self._manager.save(step, args=args, metrics=metrics)

    def wait(self) -> None:
        self._manager.wait_until_finished()

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of lowest validation loss among those kept; None if none was measured."""
        measured = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        losses = {step: metrics["validation_nats"] for step, metrics in measured.items() if metrics}
        return hosts.first("the best step", lambda: min(losses, key=losses.get) if losses else None)

    def restore(
        self, abstract_state: Any, step: int | None = None
    ) -> tuple[Any, dict[str, Any]] | None:
        """Returns (state, cursor) of `step`, by default the latest; None if nothing was saved.

        Raises: DamagedCheckpoint if it cannot be read or is not what `save` wrote.
        """
        step = hosts.first("the latest step", self._manager.latest_step) if step is None else step
        if step is None:
            return None
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(abstract_state),
            cursor=self._ocp.args.JsonRestore(),
        )
        place = pathlib.Path(self._manager.directory) / str(step)
        others = [other for other in self._manager.all_steps() if other != step]
        further = f"from step {max(others)}" if others else "from the start of the stage"
        advice = f"put it back, or remove this directory to resume {further}"
        with _readable(place, advice):
            restored = self._manager.restore(step, args=args)
            state, cursor, digest = (
                restored.state,
                restored.cursor["cursor"],
                restored.cursor["digest"],
            )
        if _digest(state, cursor) != digest:
            raise DamagedCheckpoint(
                f"{place} is not what was written there (its digest does not hold); {advice}"
            )
        return state, cursor


def _digest(state: Any, cursor: dict[str, Any]) -> str:
    return checksum([digest_tree(state), cursor])


@contextlib.contextmanager
def _readable(directory: pathlib.Path, advice: str) -> Iterator[None]:
    """Turns whatever orbax and its formats raise on damaged files into one sentence."""
    try:
        yield
    except Exception as error:  # damaged bytes come out as dozens of kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DamagedCheckpoint(
            f"{directory} cannot be read ({type(error).__name__}: {first}); {advice}"
        ) from error


def _check_same(stored: dict[str, Any], wanted: dict[str, Any], directory: pathlib.Path) -> None:
    missing, unused = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or unused:
        raise ValueError(
            f"{directory} lacks {missing[:8] or 'nothing'} and has unknown {unused[:8] or 'nothing'}"
        )
    for path, leaf in wanted.items():
        if tuple(stored[path].shape) != tuple(leaf.shape):
            raise ValueError(
                f"{directory}: {path} is {tuple(stored[path].shape)}, expected {tuple(leaf.shape)}"
            )
