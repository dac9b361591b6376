"""A base that a run made by merging adapters into another, kept on disk: written once, never changed.

    base = save_base(directory, merged, config, tokenizer, lineage)      # Weights, as `open_base(directory)` gives them

`lineage.json` says what it was made from and holds a digest of every part beside it: a base without it is not whole, and
one whose parts are not the recorded ones is refused.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax

from medkor_jax.data.contents import checksum, files_digest
from medkor_jax.data.reading import read_json
from medkor_jax.data.style import PLAIN
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.carried import Carried, open_carried, save_carried
from medkor_jax.io.checkpoint import (
    abstract_like,
    digest_tree,
    restore_leaf,
    restore_tree,
    save_tree,
)
from medkor_jax.io.files import read_json_file, read_sealed, write_json, write_sealed
from medkor_jax.io.streaming import WeightsError
from medkor_jax.io.weights import Weights
from medkor_jax.model.config import ModelConfig
from medkor_jax.model.dtypes import QUANTIZED, float_of
from medkor_jax.model.params import Tree, abstract_base, matrix_paths
from medkor_jax.model.quantized import Quantized, stack_quantizer
from medkor_jax.parallel import hosts


def save_base(
    directory: pathlib.Path,
    base: Tree,
    config: ModelConfig,
    tokenizer: Tokenizer,
    lineage: dict[str, Any],
    carried: Carried = Carried(),
) -> Weights:
    """Writes a merged base with orbax, its config, tokenizer, lineage and what it carries on beside it; returns it as weights.

    The lineage is written last and holds a digest of everything else: a base without it is not whole.
    """
    save_tree(directory / "tree", base)
    leaves = digest_tree(base)

    def write_the_rest() -> None:
        tokenizer.save(directory)
        write_json(directory / "model_config.json", config.to_json())
        write_sealed(
            directory / "lineage.json",
            lineage
            | {
                "dtype": str(base["embed"].dtype),
                "leaves_digest": leaves,
                "files_digest": _tree_files_digest(directory),
                "config_digest": checksum(config.to_json()),
                "tokenizer_digest": tokenizer.digest,
                "carried_digest": save_carried(directory / "carried", carried),
            },
        )

    hosts.first(directory, write_the_rest)
    return open_base(directory)


def open_base(directory: pathlib.Path) -> Weights:
    """Returns a merged base on disk as weights.

    Raises: WeightsError if a part of it is missing or is not what was written.
    """
    _check_whole(directory)
    said = read_whole_sealed(directory / "lineage.json")
    raw = read_whole_json(directory / "model_config.json")
    if checksum(raw) != said.get("config_digest"):
        raise WeightsError(
            f"{directory}/model_config.json is not what was written with this base; put it back, or run its phase again"
        )
    config = ModelConfig.from_json(raw)

    def read(dtype: Any, shardings: Tree | None = None) -> Tree:
        return _restore(directory / "tree", _abstract(config, dtype, shardings))

    def make_digest() -> str:
        # The files are those that were written, or else (saved once more) they hold the same tensors.
        files = hosts.first(f"files of {directory.name}", lambda: _tree_files_digest(directory))
        if (
            files != said["files_digest"]
            and digest_tree(read(said["dtype"])) != said["leaves_digest"]
        ):
            raise WeightsError(
                f"{directory}: its weights were replaced or damaged since they were written. Put them back, or run the phases again"
            )
        return said["leaves_digest"]

    def load(dtype: Any, shardings: Tree | None = None) -> Tree:
        make_digest()
        return read(dtype, shardings)

    def make_tokenizer() -> Tokenizer:
        tokenizer = Tokenizer.load(directory)
        if tokenizer.digest != said["tokenizer_digest"]:
            raise WeightsError(
                f"{directory}: its tokenizer is not the one written with this base; put it back, or run its phase again"
            )
        return tokenizer

    def make_carried() -> Carried:
        return open_carried(directory / "carried", said.get("carried_digest", ""))

    return Weights(
        str(directory),
        config,
        load,
        make_digest,
        make_tokenizer,
        make_carried,
        stored_dtype=said["dtype"],
        read=read_json(said.get("read", ())),
        style=said.get("style", PLAIN),
    )


def _check_whole(directory: pathlib.Path) -> None:
    for part in ("tree", "model_config.json", "lineage.json"):
        if not (directory / part).exists():
            raise WeightsError(
                f"{directory} has no {part}: it is not a whole merged base; run its phase again"
            )


def _abstract(config: ModelConfig, dtype: Any, shardings: Tree | None) -> Tree:
    abstract = abstract_base(config, dtype)
    if shardings is None:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: place, abstract)
    return abstract_like(abstract, shardings)


def _restore(directory: pathlib.Path, abstract: Tree) -> Tree:
    """Returns the stored base; one with matrices in int8 is read and quantised a stacked matrix at a time."""
    if not any(isinstance(leaf, Quantized) for leaf in matrix_paths(abstract).values()):
        return restore_tree(directory, abstract)
    restored = []
    for path, leaf in sorted(
        matrix_paths(abstract).items(), key=lambda one: -math.prod(one[1].shape)
    ):
        if isinstance(leaf, Quantized):
            place = leaf.values.sharding
            held = jax.ShapeDtypeStruct(leaf.shape, float_of(QUANTIZED), sharding=place)
            places = Quantized(place, leaf.scale.sharding)
            one = stack_quantizer(places)(restore_leaf(directory, path, held))
        else:
            one = restore_leaf(directory, path, leaf)
        restored.append((path, jax.block_until_ready(one)))
    leaves = dict(restored)
    order = [leaves[path] for path in matrix_paths(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(order))


def _tree_files_digest(directory: pathlib.Path) -> str:
    return files_digest(
        (path for path in (directory / "tree").rglob("*") if path.is_file()), directory
    )


def read_whole_sealed(path: pathlib.Path) -> dict[str, Any]:
    """Returns a sealed file of a run. Raises: WeightsError if it is damaged or was changed."""
    try:
        return read_sealed(path)
    except ValueError as error:
        raise WeightsError(f"{error}. Put it back, or run its phase again") from error


def read_whole_json(path: pathlib.Path, kind: type = dict) -> Any:
    """Returns a JSON file of a run that holds an object, or what is asked for. Raises: WeightsError if it is damaged."""
    try:
        return read_json_file(path, kind=kind)
    except ValueError as error:
        raise WeightsError(f"{error}; put it back, or run its phase again") from error
