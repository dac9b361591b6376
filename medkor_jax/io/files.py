"""Small files that a reader never sees half written.

    write_atomically("runs/a/ledger.json", to_json(ledger))
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path` so that a reader sees the old file or the whole new one, never a part."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as readable JSON, atomically. Raises: ValueError on NaN or infinity, which JSON has not."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
