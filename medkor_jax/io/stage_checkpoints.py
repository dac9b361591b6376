"""What a stage of training saves: its running state, the last few times and at the lowest loss on held-out text.

    with StageCheckpoints(directory, keep_last=2) as checkpoints:
        found = checkpoints.restore(abstract_state)               # (state, cursor) or None
        checkpoints.save(step, state, cursor, validation_nats=1.9)

Saves are asynchronous and atomic: a killed process leaves the last whole checkpoint. Only what trains is stored, with its
optimizer state, the data cursor, which step was best so far, and a digest of all that: what comes back is what was written. A
damaged checkpoint is moved aside (DIRECTORY.damaged-STEP) where an earlier whole one is there to go on from: the steps between
are made again, bit for bit. Where none is, one sentence says so. Nothing here decides when to save.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.contents import checksum
from medkor_jax.io.checkpoint import DamagedCheckpoint, digest_tree, readable, writable
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say

ASIDE = ".damaged-"
"""Stands between the name of the directory and the step, in the name of a damaged checkpoint."""


class StageCheckpoints:
    """The numbered checkpoints of one stage: the last few, and the best by validation loss if it is measured."""

    def __init__(self, directory: pathlib.Path, *, keep_last: int = 1) -> None:
        """Raises: DamagedCheckpoint if what is there cannot be looked through."""
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        self._ocp, self._directory = ocp, directory.absolute()
        self._best: dict[str, Any] | None = None  # {"step", "nats"} of those saved so far
        kept = policy.AnyPreservationPolicy([policy.LatestN(keep_last), _Best(self)])
        with readable(self._directory, _AGAIN):
            self._manager = ocp.CheckpointManager(
                self._directory, options=ocp.CheckpointManagerOptions(preservation_policy=kept)
            )

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with writable(self._directory):
                self._manager.close()  # waits for what is being saved
        except OSError:
            if kind is None:  # else what is on its way says why the run ends
                raise

    def save(
        self, step: int, state: Any, cursor: dict[str, Any], validation_nats: float | None = None
    ) -> None:
        """Starts writing; blocks only while an earlier save is unfinished or the arrays are being copied.

        Raises: OSError, of this save or the one before, where a disk is full or may not be written.
        """
        if step in self._manager.all_steps():
            return
        if validation_nats is not None and (
            self._best is None or validation_nats < self._best["nats"]
        ):
            self._best = {"step": step, "nats": validation_nats}
        written = {
            "cursor": cursor,
            "best": self._best,
            "digest": _digest(state, cursor, self._best),
        }
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(state), cursor=self._ocp.args.JsonSave(written)
        )
        with writable(self._place(step)):
            self._manager.save(step, args=args)

    def wait(self) -> None:
        """Returns when what was saved is on disk. Raises: OSError, as `save`."""
        with writable(self._directory):
            self._manager.wait_until_finished()

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of lowest validation loss of all that were saved; None if none was measured."""
        return self._best["step"] if self._best else None

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns (state, cursor) of the latest whole checkpoint; None if nothing was saved.

        Raises: DamagedCheckpoint if all there are are damaged, or one is and several processes run.
        """
        steps = hosts.first(
            "the steps saved", lambda: sorted(self._manager.all_steps(), reverse=True)
        )
        for step, further in zip(steps, [*steps[1:], None], strict=False):
            try:
                state, cursor, self._best = self._read(step, abstract_state, _advice(further))
                return state, cursor
            except DamagedCheckpoint as damage:
                if further is None or hosts.n_processes() > 1:
                    raise
                self._set_aside(step, further, damage)
        return None

    def restore_best(self, abstract_state: Any) -> Any:
        """Returns the state at `best_step`. Raises: DamagedCheckpoint if it is not there or not whole."""
        step = self._best["step"] if self._best else 0
        if step not in self._manager.all_steps():
            raise DamagedCheckpoint(
                f"{self._place(step)}, the best checkpoint, is not there", _AGAIN
            )
        return self._read(step, abstract_state, _AGAIN)[0]

    def _read(self, step: int, abstract_state: Any, advice: str) -> tuple[Any, Any, Any]:
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(abstract_state),
            cursor=self._ocp.args.JsonRestore(),
        )
        place = self._place(step)
        with readable(place, advice):
            restored = self._manager.restore(step, args=args)
            state, written = restored.state, restored.cursor
            cursor, digest = written["cursor"], written["digest"]
            is_old = (
                "best" not in written
            )  # of before: orbax was given the losses, in files without a seal
            best = self._best_of_old() if is_old else written["best"]
        made_of = _digest(state, cursor) if is_old else _digest(state, cursor, best)
        if made_of != digest:
            raise DamagedCheckpoint(
                f"{place} is not what was written there (its digest does not hold)", advice
            )
        return state, cursor, best

    def _best_of_old(self) -> dict[str, Any] | None:
        said = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        losses = [
            {"step": step, "nats": metrics["validation_nats"]}
            for step, metrics in said.items()
            if metrics
        ]
        return min(losses, key=lambda one: one["nats"], default=None)

    def _set_aside(self, step: int, further: int, damage: DamagedCheckpoint) -> None:
        aside = self._directory.with_name(f"{self._directory.name}{ASIDE}{step}")
        number = 1
        while aside.exists():
            number += 1
            aside = self._directory.with_name(f"{self._directory.name}{ASIDE}{step}-{number}")
        os.replace(self._place(step), aside)
        self._manager.reload()
        say(f"{damage.found}. It is moved to {aside}, and the stage goes on from step {further}")

    def _place(self, step: int) -> pathlib.Path:
        return self._directory / str(step)


class _Best:
    """Keeps the best checkpoint while others go; orbax asks it after every save."""

    def __init__(self, checkpoints: StageCheckpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [one.step == self._checkpoints.best_step for one in checkpoints]


_AGAIN = "put it back, or start the phase again with --restart"


def _advice(further: int | None) -> str:
    """Returns what to do where the checkpoint before is of step `further`."""
    return _AGAIN if further is None else f"put it back, or remove it to go on from step {further}"


def _digest(state: Any, *beside: Any) -> str:
    return checksum([digest_tree(state), *beside])
