"""One name for weights, everywhere alike, and one object for what it names.

    weights = open_weights("embedded")              # or a directory, a .gguf file, a hub id, random:gemma3-4b
    base = weights.load(jnp.bfloat16, shardings)

Opening reads headers only: a checkpoint that does not fit its config is refused before anything is
compiled. Weights, tokenizer and digest are read when first asked for.

Does not hold the loaded tree, and does not save.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from medkor_jax.data.contents import checksum, file_digest, remembered, sha256_of
from medkor_jax.data.reading import Reading, read_json
from medkor_jax.data.style import PLAIN
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.carried import Carried, read_carried
from medkor_jax.io.download import download
from medkor_jax.io.embedded_model import EMBEDDED_MODEL, embedded_gguf
from medkor_jax.io.gguf import GgufSource
from medkor_jax.io.hf import EXPORT_RECORD, HfSource
from medkor_jax.io.streaming import TensorSource, WeightsError, digest_source, load_base
from medkor_jax.model.config import ModelConfig, preset
from medkor_jax.model.dtypes import check_param_dtype, float_of
from medkor_jax.model.params import Tree, abstract_base, matrix_paths
from medkor_jax.model.quantized import Quantized, stack_quantizer
from medkor_jax.nearest import nearest
from medkor_jax.parallel import hosts

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_RANDOM_SEED = 0
_RANDOM_STD = 0.02  # Gemma3Config.initializer_range


@dataclasses.dataclass(frozen=True)
class Weights:
    """A base model by name: its config now; its tokenizer, digest and tensors on demand.

    load(dtype, shardings) returns the base tree; dtype bfloat16, float32 or int8; shardings a tree like it, or None.
    make_digest() returns a digest of the tensors, however they are stored.
    make_carried() returns what stands beside them, for an export to carry on.
    read: what is known to have been trained on, of weights that come from a run of this program.
    stored_dtype: the narrower of the two that loses nothing of what is stored. style: the form in which a run of this program
    taught them, "" where none did; PLAIN of those that were made before there was a choice.
    """

    name: str
    config: ModelConfig
    load: Callable[[Any, Tree | None], Tree]
    make_digest: Callable[[], str]
    make_tokenizer: Callable[[], Tokenizer] | None = None
    make_carried: Callable[[], Carried] = Carried
    stored_dtype: str = "float32"
    read: tuple[Reading, ...] = ()
    style: str = ""

    @functools.cached_property
    def carried(self) -> Carried:
        return self.make_carried()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, that changes with any tensor, any number of the config and any piece of the tokenizer."""
        try:
            tokenizer = "" if self.tokenizer is None else self.tokenizer.digest
        except (
            FileNotFoundError
        ):  # weights that read no text need none; whoever asks for it is told
            tokenizer = ""
        return checksum([self.make_digest(), self.config.to_json(), tokenizer])

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """None if the weights come without one (random ones do).

        Raises: WeightsError if a text can reach a piece that the embedding has no row for.
        """
        if self.make_tokenizer is None:
            return None
        try:
            return self.make_tokenizer().within(self.config.vocab_size)
        except ValueError as error:
            raise (
                error if isinstance(error, WeightsError) else WeightsError(f"{self.name}: {error}")
            ) from error


def open_weights(name: str) -> Weights:
    """Returns what `name` names; the first opener that recognises it decides.

    Raises: WeightsError if none does, or if what it names is missing, broken or not a Gemma 3.
    """
    for opener in OPENERS:
        if weights := opener(name):
            return weights
    raise WeightsError(
        f"no weights are called {name!r}. Tried: a directory or .gguf file (nothing at {pathlib.Path(name).absolute()}) "
        "and a hub id (org/name). Give 'embedded', a directory with config.json and safetensors or one .gguf file, a .gguf "
        "file, a hub id such as google/medgemma-4b-it, or random:PRESET such as random:gemma3-4b"
    )


def _open_embedded(name: str) -> Weights | None:
    if name != EMBEDDED_MODEL:
        return None
    path, sha256 = embedded_gguf()
    return dataclasses.replace(_from_gguf(name, path), make_digest=lambda: sha256)


def _open_random(name: str) -> Weights | None:
    if not name.startswith("random:"):
        return None
    try:
        config = preset(name.removeprefix("random:"))
    except ValueError as error:
        raise WeightsError(f"{name}: {error}") from error
    spelling = f"{name} seed {_RANDOM_SEED} std {_RANDOM_STD}"
    return Weights(
        name,
        config,
        load=functools.partial(_random_base, config),
        make_digest=lambda: sha256_of([spelling]),
    )


def _open_path(name: str) -> Weights | None:
    if not name:
        return None
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise WeightsError(
                f"{path} is a file but not .gguf; name the directory that holds config.json and safetensors"
            )
        return _from_gguf(name, path)
    if not path.is_dir():
        return None
    found = sorted(path.glob("*.gguf"))
    if not found or any(path.glob("*.safetensors")):
        return _from_hf(name, path)
    if len(found) > 1:
        listed = ", ".join(p.name for p in found[:8])
        raise WeightsError(f"{path} holds {len(found)} .gguf files ({listed}); name one of them")
    return _from_gguf(name, found[0])


def _open_hub(name: str) -> Weights | None:
    if not is_hub_id(name):
        return None
    from huggingface_hub import errors

    try:
        directory = download(name)
    except WeightsError as error:
        is_known = isinstance(error.__cause__, errors.GatedRepoError)
        here = "" if is_known else _said_of_a_path(name)
        raise type(error)(f"{here}{error}") from error
    return _from_hf(name, directory)


def _said_of_a_path(name: str) -> str:
    """Returns what is said of "runs/quickstrat" in case a directory was meant."""
    parent = pathlib.Path(name).parent
    beside = [str(path) for path in parent.iterdir()] if parent.is_dir() else []
    near = nearest(name, beside, least=0.6)
    return f"there is no {name} here{f' (nearest: {near})' if near else ''}; as a hub id: "


def is_hub_id(name: str) -> bool:
    """Whether `name` could be "org/name" on the hub; a path that exists comes first everywhere."""
    return _HUB_ID.fullmatch(name) is not None


OPENERS: list[Callable[[str], Weights | None]] = [
    _open_embedded,
    _open_random,
    _open_path,
    _open_hub,
]
"""Tried in order; each returns None for a name that is not its kind, and raises for one it cannot open."""


def _from_gguf(name: str, path: pathlib.Path) -> Weights:
    source = GgufSource.open(path)
    return Weights(
        name,
        source.config,
        _loader(source),
        lambda: hosts.first(f"digest of {name}", lambda: file_digest(path)),
        source.make_tokenizer,
        source.make_carried,
    )


def _from_hf(name: str, directory: pathlib.Path) -> Weights:
    source = HfSource.open(directory)

    def digest() -> str:
        return hosts.first(
            f"digest of {name}",
            lambda: remembered(sorted(source.files), "tensors", lambda: digest_source(source)),
        )

    carried = lambda: read_carried(directory, source.tensors)
    return Weights(
        name,
        source.config,
        _loader(source),
        digest,
        source.make_tokenizer,
        carried,
        source.stored_dtype,
        *_said_by_export(directory),
    )


def _said_by_export(directory: pathlib.Path) -> tuple[tuple[Reading, ...], str]:
    """Returns what the weights of an export of ours have read, and in which form; nothing of other weights, of which it is not known."""
    path = directory / EXPORT_RECORD
    if not path.is_file():
        return (), ""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return read_json(said.get("read", ())), said.get("style", PLAIN)
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from error


def _loader(source: TensorSource) -> Callable[[Any, Tree | None], Tree]:
    def load(dtype: Any, shardings: Tree | None = None) -> Tree:
        return load_base(source, dtype=dtype, shardings=shardings)

    return load


def _random_base(config: ModelConfig, dtype: Any, shardings: Tree | None = None) -> Tree:
    """Returns matrices from N(0, 0.02) and zero norms, made on the devices that hold them.

    Values depend on the leaf's name alone, not on the mesh (jax's default random numbers are partitionable).
    """
    check_param_dtype(jnp.dtype(dtype), "dtype")
    abstract = abstract_base(config, dtype)
    placed = {} if shardings is None else matrix_paths(shardings)

    def make(path: str, leaf: jax.ShapeDtypeStruct | Quantized) -> jax.Array | Quantized:
        seed = int.from_bytes(bytes.fromhex(sha256_of([f"{_RANDOM_SEED} {path}"]))[:4], "little")
        std = 0.0 if path.endswith("norm") else _RANDOM_STD
        held, place = jnp.dtype(float_of(dtype)), placed.get(path)
        lies = place.values if isinstance(place, Quantized) else place
        values = _normal_maker(leaf.shape, held, lies)(jnp.uint32(seed), jnp.asarray(std, held))
        return stack_quantizer(place)(values) if isinstance(leaf, Quantized) else values

    leaves = [make(path, leaf) for path, leaf in matrix_paths(abstract).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(leaves))


@functools.lru_cache(maxsize=64)
def _normal_maker(
    shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding | None
) -> Any:
    """Returns make(seed, std) -> array; leaves of one shape share a program."""

    def make(seed: jax.Array, std: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), shape, dtype) * std

    return jax.jit(make, out_shardings=sharding)
