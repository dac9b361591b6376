"""What a checkpoint holds beside its text decoder and its vocabulary, and what an export of it therefore carries on.

    carried = read_carried(directory, tensors)         # or model.base.carried, for any weights
    carried.chat_templates["default"]; carried.generation; carried.tower

Chat templates, defaults of generation, names of special tokens, the files of a processor, the base's own tokenizer.model;
of a multimodal model also its config and the tensors of its vision tower, by where they lie. Nothing is interpreted but what
transformers reads from it. A merged base keeps a copy (`save_carried`), so that a run stands by itself.

Does not load the tower: its bytes are copied (`io.export_carried`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from medkor_jax.data.contents import files_digest
from medkor_jax.io.files import write_json
from medkor_jax.io.hf import is_vision
from medkor_jax.io.safetensors_file import SafeTensor, read_bytes, read_safetensors_header
from medkor_jax.io.shards import Planned, write_safetensors
from medkor_jax.io.streaming import WeightsError
from medkor_jax.model.fields import Fields

TEMPLATE, TEMPLATE_DIRECTORY = "chat_template.jinja", "additional_chat_templates"
GENERATION, CONFIG = "generation_config.json", "config.json"
TOKENIZER_CONFIG, SENTENCEPIECE = "tokenizer_config.json", "tokenizer.model"
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "chat_template.json")
"""Files of a multimodal model's processor; the last is the template of older ones."""
_FILES = (TEMPLATE, GENERATION, TOKENIZER_CONFIG, SENTENCEPIECE, *PROCESSOR)
_TOWER = "tower.safetensors"


@dataclasses.dataclass(frozen=True)
class Carried:
    """files: content by name, as they stood in `where`; tower: tensors of a vision tower and its projector, by name."""

    where: str = "these weights"
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    tower: Mapping[str, SafeTensor] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def chat_templates(self) -> dict[str, str]:
        """Name -> text, as transformers reads them: files go before what tokenizer_config.json says. {} if there are none.

        Raises: WeightsError on a template that is no text.
        """
        if self.template_files:
            called = {
                "default" if name == TEMPLATE else pathlib.PurePath(name).stem: name
                for name in self.template_files
            }
            return {
                name: _decoded(f"{self.where}/{file}", self.files[file])
                for name, file in called.items()
            }
        config = self.object(TOKENIZER_CONFIG)
        stated = config.values.get("chat_template")
        if stated is None:
            return {}
        if isinstance(stated, str):
            return {"default": stated}
        is_list = isinstance(stated, list) and all(isinstance(one, dict) for one in stated)
        named = {one.get("name"): one.get("template") for one in stated} if is_list else stated
        if (
            not isinstance(named, dict)
            or not named
            or not all(isinstance(text, str) for pair in named.items() for text in pair)
        ):
            raise WeightsError(
                _refused(config, "chat_template", "a text, or a list of templates with a name each")
            )
        return dict(named)

    @property
    def template_files(self) -> list[str]:
        return [
            name
            for name in self.files
            if name == TEMPLATE or name.startswith(f"{TEMPLATE_DIRECTORY}/")
        ]

    @functools.cached_property
    def generation(self) -> dict[str, Any] | None:
        """The base's defaults of generation; None if it says none. Raises: WeightsError on a value without sense."""
        if GENERATION not in self.files:
            return None
        said = self.object(GENERATION)
        try:
            for key in ("temperature", "repetition_penalty"):
                said.number(key, default=None, null=True)
            for key in ("top_p", "typical_p"):
                said.number(key, default=None, most=1.0, null=True)
            said.integer("top_k", default=None, least=0, null=True)
            for key in ("max_length", "max_new_tokens", "num_beams", "num_return_sequences"):
                said.integer(key, default=None, null=True)
            for key in ("do_sample", "use_cache"):
                said.boolean(key, default=None, null=True)
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                value = said.values.get(key)
                for one in value if isinstance(value, list) else [value]:
                    Fields({key: one}, said.where).integer(key, default=None, least=0, null=True)
        except ValueError as error:
            raise WeightsError(str(error)) from error
        return dict(said.values)

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.object(CONFIG).values)

    def object(self, name: str) -> Fields:
        """Returns the values of a JSON file; none if it is not there."""
        path = f"{self.where}/{name}"
        try:
            values = json.loads(self.files.get(name, b"{}"))
        except ValueError as error:
            raise WeightsError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise WeightsError(f"{path} holds a {type(values).__name__}; expected an object")
        return Fields(values, path)


def read_carried(directory: pathlib.Path, tensors: Mapping[str, SafeTensor]) -> Carried:
    """Returns what a checkpoint carries; tensors: all of its tensors."""
    tower = {name: tensor for name, tensor in tensors.items() if is_vision(name)}
    names = [*_FILES, *([CONFIG] if tower else [])]
    names += [
        f"{TEMPLATE_DIRECTORY}/{path.name}"
        for path in sorted((directory / TEMPLATE_DIRECTORY).glob("*.jinja"))
    ]
    files = {
        name: (directory / name).read_bytes() for name in names if (directory / name).is_file()
    }
    return Carried(str(directory), files, tower)


def save_carried(directory: pathlib.Path, carried: Carried) -> str:
    """Writes a copy that `open_carried` reads back; returns its digest."""
    shutil.rmtree(directory, ignore_errors=True)  # of an attempt that was cut off
    directory.mkdir(parents=True)
    for name, content in carried.files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    if carried.tower:
        write_safetensors(
            directory / _TOWER,
            [copied(name, tensor) for name, tensor in carried.tower.items()],
            "float32",
        )
    write_json(directory / "origin.json", {"where": carried.where})
    return carried_digest(directory)


def open_carried(directory: pathlib.Path, digest: str) -> Carried:
    """Raises: WeightsError if it is not what was written."""
    if not directory.is_dir() or carried_digest(directory) != digest:
        raise WeightsError(
            f"{directory} is not what was written with this base; put it back, or run its phase again"
        )
    tower = read_safetensors_header(directory / _TOWER) if (directory / _TOWER).is_file() else {}
    where = json.loads((directory / "origin.json").read_text(encoding="utf-8"))["where"]
    return dataclasses.replace(read_carried(directory, tower), where=where)


def carried_digest(directory: pathlib.Path) -> str:
    return files_digest((path for path in directory.rglob("*") if path.is_file()), directory)


def copied(name: str, tensor: SafeTensor) -> Planned:
    """Returns a tensor to be written as it lies, byte for byte, in the dtype it is stored in."""
    return Planned(
        name, tensor.shape, lambda: read_bytes(tensor), stored=(tensor.dtype, tensor.n_bytes)
    )


def _decoded(where: str, raw: bytes) -> str:
    try:
        return (
            raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        )  # as a file opened for text is read
    except UnicodeDecodeError as error:
        raise WeightsError(f"{where} is no UTF-8 text: {error}") from error


def _refused(fields: Fields, key: str, expected: str) -> str:
    try:
        fields.refuse(key, expected)
    except ValueError as error:
        return str(error)
