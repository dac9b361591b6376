"""Small files that a reader never sees half written, and that say so when they were changed afterwards.

    write_atomically("runs/a/ledger.json", to_json(ledger))
    write_sealed("runs/a/phase1/model.json", {"format": 2});  read_sealed(path)        # the same, or ValueError

The seal is a checksum: it finds damage and edits by hand. It is no signature.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from medkor_jax.data.contents import checksum
from medkor_jax.parallel import hosts


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path` so that a reader sees the old file or the whole new one, never a part.

    With several processes, process 0 writes; all must call it, and none goes on before all have read what was there or
    misses what is there now.
    """
    path = pathlib.Path(path)
    hosts.wait(f"before {path.name}")
    if hosts.is_first():
        _write(path, text)
    hosts.wait(path)


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # says in words what it has to say
            raise
        raise OSError(error.errno, f"{error.strerror}, writing", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as readable JSON, atomically. Raises: ValueError on NaN or infinity, which JSON has not."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_sealed(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Writes `value` as JSON with its checksum, atomically."""
    write_json(path, {**value, "checksum": checksum(value)})


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
    """Returns what `write_sealed` wrote.

    Raises: ValueError, naming the file, if it is damaged or was changed; FileNotFoundError.
    """
    return _unsealed(path, read_json_file(path, "checksum"))


def read_if_sealed(path: str | os.PathLike, *keys: str) -> dict[str, Any]:
    """Returns what `write_sealed` wrote, or an older version without a seal. Raises: as `read_json_file` and `read_sealed`."""
    value = read_json_file(path, *keys)
    return _unsealed(path, value) if "checksum" in value else value


def read_json_file(path: str | os.PathLike, *keys: str, kind: Any = dict) -> Any:
    """Returns what a JSON file holds, an object that has `keys` unless another kind is asked for.

    Raises: ValueError, naming the file, if it is damaged or something else; FileNotFoundError.
    """
    try:
        value: Any = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it holds a {type(value).__name__}, not a {kind.__name__}")
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no file of this program ({error})") from error
    return value


def _unsealed(path: str | os.PathLike, value: dict[str, Any]) -> dict[str, Any]:
    stated = value.pop("checksum")
    if stated != checksum(value):
        raise ValueError(f"{path} was changed after it was written: its checksum does not hold")
    return value
