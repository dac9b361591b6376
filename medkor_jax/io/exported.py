"""A directory that an export writes: it appears whole or not at all, and says what it is.

    with new_directory(pathlib.Path("exported")) as directory:
        ...                         # written beside its place; moved there at the end

What goes into it: `export` and `export_peft`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator

from medkor_jax.io.streaming import WeightsError
from medkor_jax.model.dtypes import check_dtype
from medkor_jax.parallel import hosts


class ExportError(WeightsError):
    """A model that cannot be written in the form asked for; the message names what stands in the way."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """directory: what was written; files: bytes of each weight file; notes: what whoever uses it should know."""

    directory: pathlib.Path
    files: dict[str, int]
    notes: tuple[str, ...]

    def text(self) -> str:
        size = sum(self.files.values()) / 1e9
        lines = [
            f"{self.directory}: {size:.2f} GB in {len(self.files)} file{'s' if len(self.files) > 1 else ''}"
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def check_exportable_here(dtype: str = "float32") -> None:
    """Raises: ExportError on another dtype, or if this process is one of several."""
    try:
        check_dtype(dtype)
    except ValueError as error:
        raise ExportError(str(error)) from None
    if hosts.n_processes() > 1:
        raise ExportError(
            f"export runs in one process, this is one of {hosts.n_processes()}; run it on one host"
        )


@contextlib.contextmanager
def new_directory(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a directory beside `out` that becomes `out` at the end; if it fails, nothing is left.

    Raises: ExportError if `out` is there and is not an empty directory.
    """
    if out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ExportError(
            f"{out} exists and is not empty; name a new directory, or remove this one"
        )
    beside = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        os.replace(beside, out)  # onto nothing or an empty directory
    finally:
        shutil.rmtree(beside, ignore_errors=True)
