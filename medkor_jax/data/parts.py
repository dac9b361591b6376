"""Which rows of a source are held out: by a hash of what each row says, never by where it stands.

    Source("a", "text", "own/texts", held_share=0.02, part="train")          # 98 of 100 rows
    Source("b", "text", "own/texts", held_share=0.02, part="held_out")       # the others

Two parts of one file share no row, equal rows fall on the same side, and rows that are added later move none. What counts
of a row are its texts, composed (NFC) and with any run of spaces as one; `part_by` names the columns that decide, so that
the same question with other options, or under another id, stays on its side. Files that are sorted (by source, by year)
are why no slice of their end is held out.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from medkor_jax.data.cells import plain_number
from medkor_jax.data.contents import sha256_of
from medkor_jax.data.lines import Row
from medkor_jax.data.source import Source

_DIGITS = 15  # of the hash, in hex: as many as a float holds


def of_part(
    source: Source, numbered: Iterator[tuple[int, Row | str]]
) -> Iterator[tuple[int, Row | str]]:
    """Yields the rows that belong to the source's part, under their own numbers; a row that could not be read to either."""
    for number, row in numbered:
        if isinstance(row, str) or is_of_part(source, row):
            yield number, row


def is_of_part(source: Source, row: Row) -> bool:
    return not source.part or is_held_out(row, source) == (source.part == "held_out")


def is_held_out(row: Row, source: Source) -> bool:
    """Whether the row falls into the share that is held out.

    Raises: ValueError if a column of `part_by` is not there.
    """
    if missing := [name for name in source.part_by if name not in row]:
        raise ValueError(
            f"source {source.name!r}: part_by names {', '.join(map(repr, missing))}, which is no column; "
            f"the columns are {', '.join(map(repr, row))}"
        )
    said = {name: row[name] for name in source.part_by or row}
    text = json.dumps(_plain(said), ensure_ascii=False, sort_keys=True)
    return int(sha256_of([text])[:_DIGITS], 16) / 16**_DIGITS < source.held_share


def check_parts(sources: Sequence[Source]) -> None:
    """Raises: ValueError if two sources take parts of one file that are not cut alike, so that they could share rows."""
    cut: dict[tuple[str, str, str], Source] = {}
    for source in sources:
        if not source.part:
            continue
        first = cut.setdefault((source.path, source.subset, source.split), source)
        if (first.held_share, first.part_by) != (source.held_share, source.part_by):
            raise ValueError(
                f"sources {first.name!r} and {source.name!r} take parts of {source.path} that are cut otherwise "
                f"(held_share {first.held_share:g} and {source.held_share:g}, part_by {first.part_by} and {source.part_by}): "
                "they could share rows; give both the same"
            )


def _plain(value: Any) -> Any:
    """Returns the value as it is compared: texts composed and without runs of spaces, numbers as text, what is empty left out."""
    if isinstance(value, dict):
        named = {" ".join(_text(name)): _plain(inner) for name, inner in value.items()}
        return {name: inner for name, inner in named.items() if inner not in ("", [], {})}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return " ".join(_text(plain_number(value)))


def _text(text: str) -> list[str]:
    return unicodedata.normalize("NFC", text).replace("\ufeff", "").split()
