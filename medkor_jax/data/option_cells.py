"""Options that stand in one cell of a row, whichever form data sets give it.

    listed_options(in_one_cell('{"option_A": "liver", "option_B": "pancreas"}'))      # {"A": "liver", "B": "pancreas"}

What it does not do: know which column that is (`exam_rows`), or read keys (`answer_keys`).
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from typing import Any

from medkor_jax.data.cells import plain_number
from medkor_jax.data.lines import Row
from medkor_jax.data.question import LETTERS

NAMES = "names of the options"  # ours, in a row made flat
_OPTION = re.compile(r"(?i)^option[ _-]?(?=[a-z0-9]$)")  # in front of a letter: option_A


class TooManyOptionsError(ValueError):
    """Why a source cannot be asked whole."""


def in_one_cell(value: Any) -> dict | list | None:
    """Returns the options of a cell that holds all of them, also where they stand there as text, of JSON or of Python."""
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                value = read(value)
                break
    return value if isinstance(value, dict | list) else None


def listed_options(value: Any) -> Row:
    """Returns {letter: option}, and their own names, of options in one cell: {name: text}, [text], [{key, value}], {text, label}.

    Raises: BadRowReason for more than there are letters.
    """
    if (
        isinstance(value, dict)
        and isinstance(value.get("text"), list)
        and isinstance(value.get("label"), list)
    ):
        pairs = list(zip(value["label"], value["text"], strict=False))
    elif isinstance(value, dict):
        pairs = [(_OPTION.sub("", str(name)), text) for name, text in value.items()]
        if all(plain_number(name).upper() in [*LETTERS] for name, _ in pairs):
            pairs.sort(key=lambda pair: LETTERS.index(pair[0].strip().upper()))
            return {
                name.strip().upper(): text for name, text in pairs
            }  # a letter may be missing: that is seen later
    elif value and all(isinstance(one, dict) for one in value):
        called = (("key", "label", "id"), ("value", "text", "content"))
        pairs = [
            tuple(next((one[name] for name in names if name in one), None) for names in called)
            for one in value
        ]
    else:
        pairs = list(zip(LETTERS + "?" * len(value), value))
    while pairs and is_absent(pairs[-1][1]):
        pairs.pop()
    if len(pairs) > len(LETTERS):
        raise TooManyOptionsError(f"{len(pairs)} options, expected 2 to {len(LETTERS)}")
    names = tuple(plain_number(name).upper() for name, _ in pairs)
    own = (
        {NAMES: names}
        if names != tuple(LETTERS[: len(names)]) and all(names) and len(set(names)) == len(names)
        else {}
    )
    return {**dict(zip(LETTERS, (text for _, text in pairs))), **own}


def is_absent(value: Any) -> bool:
    """Whether a cell holds nothing: null, or the "not a number" that tables keep for it."""
    return value is None or value != value
