"""Trees on disk, through orbax: a phase's adapters, a merged base. (What a stage of training saves: `stage_checkpoints`.)

    save_tree(directory, tree)
    restore_tree(directory, abstract_like(tree))        # the same bits, or a sentence
    digest_tree(tree)

Saves are atomic: a killed process leaves the last whole tree. What cannot be read or written is said in one sentence, whatever
orbax and its formats call it. It does not know what a tree is for: whoever opens one compares its digest.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from medkor_jax.data.contents import sha256_of
from medkor_jax.model.params import Tree, leaf_paths
from medkor_jax.parallel.gather import pieces


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be read, or is not what was written. found: that, without the advice."""

    def __init__(self, found: str, advice: str = "") -> None:
        super().__init__(f"{found}; {advice}" if advice else found)
        self.found = found


def save_tree(directory: pathlib.Path, tree: Any) -> None:
    """Writes a tree of arrays as one orbax checkpoint, replacing what is there; returns when it is on disk."""
    import orbax.checkpoint as ocp

    with writable(directory), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), tree, force=True)


def restore_tree(directory: pathlib.Path, abstract: Any) -> Any:
    """Returns the tree stored at `directory`, each leaf on the sharding of its ShapeDtypeStruct.

    Raises: ValueError, naming the leaves, if what is stored has other names or shapes; DamagedCheckpoint.
    """
    import orbax.checkpoint as ocp

    _check_same(leaf_paths(stored_shapes(directory)), leaf_paths(abstract), directory)
    with (
        ocp.StandardCheckpointer() as checkpointer,
        readable(directory, "put it back, or run its phase again"),
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
        readable(directory, "put it back, or run its phase again"),
    ):
        tree = checkpointer.restore(directory.absolute(), args=arguments)
    return leaf_paths(tree)[path]


def stored_shapes(directory: pathlib.Path) -> Any:
    """Returns the stored tree as ShapeDtypeStructs, without reading the arrays. Raises: DamagedCheckpoint."""
    import orbax.checkpoint as ocp

    with (
        ocp.StandardCheckpointer() as checkpointer,
        readable(directory, "put it back, or run its phase again"),
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


@contextlib.contextmanager
def readable(directory: pathlib.Path, advice: str) -> Iterator[None]:
    """Turns whatever orbax and its formats raise on damaged files into one sentence. Raises: DamagedCheckpoint."""
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_without_abandoned_reads, hook)
    try:
        yield
    except Exception as error:  # damaged bytes come out as dozens of kinds
        raise DamagedCheckpoint(
            f"{directory} cannot be read ({_first_line(error)})", advice
        ) from error
    sys.unraisablehook = hook


def _without_abandoned_reads(hook: Callable[[Any], Any], what: Any) -> None:
    """Says what a thread could not raise, but for reads that orbax gave up at the first damaged file: those end later, each
    with a complaint that nobody waits for it."""
    if "Event loop is closed" not in str(what.exc_value):
        hook(what)


@contextlib.contextmanager
def writable(what: pathlib.Path | str) -> Iterator[None]:
    """Turns whatever orbax raises where a disk is full, or may not be written, into one sentence. Raises: OSError."""
    try:
        yield
    except Exception as error:  # tensorstore says ValueError, its threads RuntimeError
        is_full = "No space left on device" in str(error)
        raise OSError(
            f"{what} could not be written ({'No space left on device' if is_full else _first_line(error)}). Free space, or let "
            "this user write there; what was saved before is kept, and the same command goes on"
        ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, LookupError | TypeError | AttributeError):
        line = f"{type(error).__name__}: {line}"  # says little without
    return line.split(" See full TensorStore details")[0][:200]


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
