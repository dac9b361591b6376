"""Reads a Gemma 3 text decoder from a Hugging Face directory of safetensors.

    source = HfSource.open("checkpoints/medgemma-4b-it")        # or HfSource.open(download("google/gemma-3-1b-it"))
    source.make_tokenizer()

One file or shards under an index; text checkpoints (`model.*`) and the text tower of multimodal ones,
whose vision keys are known and left alone. Every key the config asks for must be there and every text
key must be used. The header is checked against the file before anything is computed.

Never opens pickle (`.bin`, `.pt`), and does not read adapters or quantised checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.io.streaming import CHUNK_BYTES, LeafKey, WeightsError, check_coverage, check_shape, needed_keys
from medkor_jax.io.tokenizer_files import read_tokenizer
from medkor_jax.model.config import ModelConfig

EXPORT_RECORD = "medkor_export.json"  # what an export of ours says of itself, beside its weights

_NAMES = {
    "embed": "embed_tokens",
    "final_norm": "norm",
    "layers/pre_attn_norm": "input_layernorm",
    "layers/post_attn_norm": "post_attention_layernorm",
    "layers/pre_ffw_norm": "pre_feedforward_layernorm",
    "layers/post_ffw_norm": "post_feedforward_layernorm",
    "layers/q_norm": "self_attn.q_norm",
    "layers/k_norm": "self_attn.k_norm",
    "layers/q": "self_attn.q_proj",
    "layers/k": "self_attn.k_proj",
    "layers/v": "self_attn.v_proj",
    "layers/o": "self_attn.o_proj",
    "layers/gate": "mlp.gate_proj",
    "layers/up": "mlp.up_proj",
    "layers/down": "mlp.down_proj",
}
LAYER_NAMES = {path.removeprefix("layers/"): name for path, name in _NAMES.items() if path.startswith("layers/")}
"""Leaf of a block -> its module in a checkpoint, under `model.layers.N.`"""
# Text checkpoints; multimodal ones as first published; multimodal ones as transformers >= 4.52 writes them.
_TEXT_PREFIXES = ("model.", "language_model.model.", "model.language_model.")
_VISION_PREFIXES = tuple(
    f"{outer}{inner}."
    for outer in ("", "model.")
    for inner in ("vision_tower", "vision_model", "multi_modal_projector")
)
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DOWNLOADED = ["*.json", "*.jinja", "tokenizer.model", "model*.safetensors"]


@dataclasses.dataclass(frozen=True)
class SafeTensor:
    """Where one tensor lies; offset is in bytes from the file's start. dtype as safetensors calls it."""

    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


class HfSource:
    """One opened directory: config, names and shapes already checked. A `streaming.TensorSource`."""

    def __init__(self, directory: pathlib.Path, config: ModelConfig, tensors: dict[str, SafeTensor]) -> None:
        self.directory = directory
        self.config = config
        self.tensors = self._tensors = tensors
        self._prefix = _text_prefix(tensors, directory)
        shapes = needed_keys(config)
        spare_heads = _HEADS if config.tied_head else ()
        text = [name for name in tensors if not is_vision(name) and name not in spare_heads]
        check_coverage(map(self._name, shapes), text, str(directory))
        for key, shape in shapes.items():
            tensor = tensors[self._name(key)]
            check_shape(self._name(key), tensor.shape, shape, str(tensor.path))
            if tensor.dtype not in _DTYPES:
                raise WeightsError(
                    f"{tensor.path}: {self._name(key)} is stored as {tensor.dtype}; expected {', '.join(_DTYPES)}"
                )

    @classmethod
    def open(cls, directory: str | pathlib.Path) -> HfSource:
        """Raises: WeightsError if a file is missing, broken or inconsistent, or a key is missing or unused."""
        directory = pathlib.Path(directory)
        if not (directory / "config.json").is_file():
            raise WeightsError(_what_is_there(directory, "config.json"))
        raw = _read_json(directory / "config.json")
        try:
            config = ModelConfig.from_hf(raw)
        except ValueError as error:
            raise WeightsError(f"{directory / 'config.json'}: {str(error).removeprefix('config.json: ')}") from error
        return cls(directory, config, _find_tensors(directory))

    @property
    def files(self) -> set[pathlib.Path]:
        return {tensor.path for tensor in self._tensors.values()}

    @property
    def stored_dtype(self) -> str:
        """bfloat16 if all that is read is stored so, else float32, which holds every stored number."""
        read = {self._tensors[self._name(key)].dtype for key in needed_keys(self.config)}
        return "bfloat16" if read == {"BF16"} else "float32"

    def make_tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.directory)

    def describe(self, key: LeafKey) -> str:
        return f"{self._tensors[self._name(key)].path}: {self._name(key)}"

    def read_rows(self, key: LeafKey, start: int, stop: int) -> np.ndarray:
        return _read_rows(self._tensors[self._name(key)], start, stop)

    def check_before_load(self) -> None:
        """Raises: WeightsError if a checkpoint that says its head is tied carries one that is not its embedding."""
        for name in _HEADS if self.config.tied_head else ():
            if name in self._tensors and not _is_equal(self._tensors[name], self._tensors[self._name(("embed", 0))]):
                raise WeightsError(
                    f"{self._tensors[name].path}: {name} differs from the embedding, but config.json does not say "
                    '"tie_word_embeddings": false; say so if this head is meant'
                )

    def _name(self, key: LeafKey) -> str:
        path, layer = key
        if path == "head":
            return _HEADS[self._prefix == "language_model.model."]
        layers = f"layers.{layer}." if path.startswith("layers/") else ""
        return f"{self._prefix}{layers}{_NAMES[path]}.weight"


def download(repository: str) -> pathlib.Path:
    """Returns the local directory of a hub checkpoint, fetching config, tokenizer and safetensors only.

    Raises: WeightsError saying whether the name, the licence or the network was in the way.
    """
    import huggingface_hub

    with asking_the_hub(repository):
        return pathlib.Path(huggingface_hub.snapshot_download(repository, allow_patterns=_DOWNLOADED))


def check_access(repository: str, kind: str = "model") -> None:
    """Raises: WeightsError, as `download`, if the hub would not give the "model" or "dataset" and it is not cached; fetches nothing."""
    import huggingface_hub

    if not is_cached(repository, kind):
        with asking_the_hub(repository, kind):
            huggingface_hub.HfApi().auth_check(repository, repo_type=kind)


def is_cached(repository: str, kind: str = "model") -> bool:
    from huggingface_hub import constants

    snapshots = pathlib.Path(constants.HF_HUB_CACHE) / f"{kind}s--{repository.replace('/', '--')}" / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


@contextlib.contextmanager
def asking_the_hub(repository: str, kind: str = "model") -> Iterator[None]:
    """Turns what the hub's library raises into a WeightsError: what was in the way, and what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"
        hint = f"accept its licence at {page}, then run `hf auth login`"
        raise WeightsError(f"the hub refused {repository}: its licence gate is closed to you; {hint}") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the spelling; if it is private, run `hf auth login`"
        raise WeightsError(f"the hub has no {repository}, or does not show it to you; {hint}") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        hint = "check the network (and HF_HUB_OFFLINE), or fetch it elsewhere and name the directory"
        raise WeightsError(
            f"the hub could not be reached for {repository} ({_first_line(error)}), and no whole copy is "
            f"cached; {hint}"
        ) from error


def read_safetensors_header(path: pathlib.Path) -> dict[str, SafeTensor]:
    """Returns the tensors of one file, their places checked against each other and the file's size.

    Raises: WeightsError, one sentence, on a truncated or inconsistent file.
    Source: the safetensors format (8 bytes length, JSON header, data without holes).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise WeightsError(
                f"{path} ({size} bytes) is not a whole safetensors file: its header would be {length} bytes"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        spans = {
            name: (entry["dtype"], tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is not a safetensors file: its header cannot be read ({error})") from error
    data, expected = 8 + length, 0
    for name, (dtype, shape, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        n_bytes = int(np.prod(shape, dtype=np.int64)) * _DTYPES[dtype].itemsize if dtype in _DTYPES else stop - start
        if start != expected or stop - start != n_bytes:
            raise WeightsError(
                f"{path} is inconsistent: {name} ({dtype} {list(shape)}) takes bytes {start} to {stop}, "
                f"expected {expected} to {expected + n_bytes}"
            )
        expected = stop
    if data + expected != size:
        what = "cut short" if data + expected > size else "longer than its header says"
        raise WeightsError(f"{path} is {what}: {size} bytes, its header promises {data + expected}; get it anew")
    return {name: SafeTensor(path, dtype, shape, data + a, b - a) for name, (dtype, shape, a, b) in spans.items()}


def is_vision(name: str) -> bool:
    """Whether a tensor is of the vision tower of a multimodal checkpoint, or of what joins it to the text decoder."""
    return name.startswith(_VISION_PREFIXES)


def read_bytes(tensor: SafeTensor) -> np.ndarray:
    """Returns a tensor's bytes as they are stored, uint8 [n_bytes]."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        raw = np.fromfile(file, np.uint8, tensor.n_bytes)
    if raw.size != tensor.n_bytes:
        raise WeightsError(f"{tensor.path} ends early; it changed while it was read")
    return raw


def _find_tensors(directory: pathlib.Path) -> dict[str, SafeTensor]:
    """Returns every tensor of the checkpoint by name, one file or as the index lists them."""
    if (directory / _SINGLE).is_file():
        return read_safetensors_header(directory / _SINGLE)
    if not (directory / _INDEX).is_file():
        raise WeightsError(_what_is_there(directory, f"{_SINGLE} or {_INDEX}"))
    listed = _read_json(directory / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise WeightsError(f"{directory / _INDEX} has no weight_map from tensor names to files")
    tensors: dict[str, SafeTensor] = {}
    for file in sorted(set(listed.values())):
        if pathlib.PurePath(file).name != file or not file.endswith(".safetensors"):
            raise WeightsError(
                f"{directory / _INDEX} names {file!r}; expected the name of a .safetensors file beside it"
            )
        if not (directory / file).is_file():
            raise WeightsError(f"{directory / _INDEX} names {file}, which is not there; fetch the missing shard")
        header = read_safetensors_header(directory / file)
        check_coverage([name for name, where in listed.items() if where == file], header, f"{file} against {_INDEX}")
        tensors |= header
    return tensors


def _what_is_there(directory: pathlib.Path, wanted: str) -> str:
    expected = f"{directory} has no {wanted}"
    if (directory / "adapter_config.json").is_file():
        return f"{expected}; it is a PEFT adapter: merge it into its base model first"
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        listed = ", ".join(pickles[:3])
        return f"{expected}, but pickle files ({listed}), which are never opened; convert them to safetensors"
    return f"{expected}; found {', '.join(sorted(p.name for p in directory.iterdir())[:8]) or 'nothing'}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise WeightsError(f"{path} holds a {type(raw).__name__}; expected an object")
    return raw


def _text_prefix(tensors: dict[str, SafeTensor], directory: pathlib.Path) -> str:
    for prefix in _TEXT_PREFIXES:
        if any(name.startswith(f"{prefix}layers.") for name in tensors):
            return prefix
    raise WeightsError(
        f"{directory} holds no text decoder: no tensor begins {' or '.join(f'{p}layers.' for p in _TEXT_PREFIXES)}; "
        f"found {', '.join(sorted(tensors)[:4]) or 'no tensors'}"
    )


def _read_rows(tensor: SafeTensor, start: int, stop: int) -> np.ndarray:
    """Returns rows start to stop in the stored dtype. Not memory mapped: the pages would count as ours."""
    rows = np.empty((stop - start, *tensor.shape[1:]), _DTYPES[tensor.dtype])
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset + start * (rows.nbytes // len(rows)))
        if file.readinto(rows.view(np.uint8).data) != rows.nbytes:
            raise WeightsError(f"{tensor.path} ends early; it changed while it was read")
    return rows


def _is_equal(one: SafeTensor, other: SafeTensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    n_rows, n_columns = one.shape
    step = max(1, CHUNK_BYTES // (n_columns * _DTYPES[one.dtype].itemsize))
    spans = [(row, min(row + step, n_rows)) for row in range(0, n_rows, step)]
    return all(np.array_equal(_read_rows(one, *span), _read_rows(other, *span)) for span in spans)
