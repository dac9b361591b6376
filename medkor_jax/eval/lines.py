"""Answers and translations on disk: one JSON line each, and on every line what the report says of itself.

    write_lines("answers.jsonl", [{"id": "1"}], {"mode": "letter"})
    read_lines("answers.jsonl", lambda row: (row.pop("id"), row), "an answer")       # (["1"], {"mode": "letter"})

So a line quoted alone still says how it came about, and lines of two runs do not pass for one. Scores are never stored.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from medkor_jax.io.files import write_atomically

T = TypeVar("T")
Row = dict[str, Any]


def write_lines(path: str | os.PathLike, rows: Iterable[Row], shared: Row) -> None:
    """Writes a line a row, atomically; each also carries `shared`."""
    write_atomically(
        path, "".join(json.dumps({**row, **shared}, ensure_ascii=False) + "\n" for row in rows)
    )


def read_lines(
    path: str | os.PathLike, make: Callable[[Row], tuple[T, Row]], what: str
) -> tuple[tuple[T, ...], Row]:
    """Returns what `make` makes of each line, and what all lines share. what: one of them in words, "an answer".

    make(row): (the item, what the line shares with the others); it may raise ValueError, KeyError or TypeError.

    Raises: ValueError, naming the line, if it is none of these, or comes from another run than those before it.
    """
    items, shared = [], None
    # Not splitlines(): a generated text may hold other line separators, which JSON leaves as they are.
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate again") from error
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError(f"a line holds a {type(row).__name__}")
            item, said = make(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not {what} written by this program ({error!r}); evaluate again"
            ) from error
        if shared is not None and said != shared:
            raise ValueError(
                f"{path}, line {number} is from another run: {said}, those before {shared}"
            )
        items.append(item)
        shared = said
    return tuple(items), shared
