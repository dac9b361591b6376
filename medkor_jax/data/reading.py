"""What weights have read: the sources they were trained on, kept with them wherever they go.

    read = add_readings((), sources, by="phase3")
    [one.to_json() for one in read]                     # in model.json, in a merged base, in an export

Weights of another run bring this with them: what that run trained on is compared with whatever judges the next one.
A reading names its source as it was configured, where its file lay, and a digest of what the file held.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from medkor_jax.data.contents import file_digest, files_digest
from medkor_jax.data.pairs import twin_files
from medkor_jax.data.rows import EMBEDDED, Source


@dataclasses.dataclass(frozen=True)
class Reading:
    """source: its path absolute where it is a file. digest: of the bytes that lay there, "" of what is
    embedded or on the hub, which is compared as it is now. by: the phase."""

    source: Source
    digest: str
    by: str

    def to_json(self) -> dict[str, Any]:
        return {"source": dataclasses.asdict(self.source), "digest": self.digest, "by": self.by}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Reading:
        """Raises: ValueError if this is not what `to_json` wrote."""
        try:
            return cls(
                Source.from_json(said["source"]),
                str(said["digest"]),
                str(said["by"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"what weights have read is not stated as this program states it ({error!r})"
            ) from error

    @property
    def is_unchanged(self) -> bool:
        """Whether the file still is what was read; True where there was none to compare."""
        try:
            return source_digest(self.source) == self.digest
        except (OSError, ValueError):
            return False


def add_readings(
    read: Sequence[Reading], sources: Sequence[Source], *, by: str
) -> tuple[Reading, ...]:
    """Returns `read` and what these sources hold now; a source that was read before as it is now stands there once."""
    added = list(read)
    for source in sources:
        found = dataclasses.replace(source, path=_absolute(source.path))
        one = Reading(found, source_digest(source), by)
        if all((old.source, old.digest) != (one.source, one.digest) for old in added):
            added.append(one)
    return tuple(added)


def read_json(said: Sequence[Mapping[str, Any]]) -> tuple[Reading, ...]:
    """Returns the readings of a file. Raises: ValueError."""
    return tuple(map(Reading.from_json, said))


def without_place(reading: Reading) -> Reading:
    """Returns the reading without the directories of the machine it was read on, for files that are given away."""
    path = pathlib.Path(reading.source.path)
    return (
        dataclasses.replace(reading, source=dataclasses.replace(reading.source, path=path.name))
        if path.is_absolute()
        else reading
    )


def source_digest(source: Source) -> str:
    """Returns the digest of the bytes of the source's file, files or directory; "" where there are none (embedded, a hub id)."""
    path = pathlib.Path(source.path)
    if path.is_file():
        return file_digest(path)
    if path.is_dir() and source.path != EMBEDDED:
        return files_digest([one for one in path.rglob("*") if one.is_file()], path)
    twins = twin_files(source) if source.kind == "translation" else None
    return " ".join(map(file_digest, twins)) if twins else ""


def _absolute(path: str) -> str:
    """Returns the path from the root where something lies there; a name otherwise stays one."""
    at = pathlib.Path(path)
    stands = at.exists() or any(
        at.with_name(at.name + end).exists() for end in (".en", ".ko") if at.name
    )
    return str(at.resolve()) if stands and path != EMBEDDED else path
