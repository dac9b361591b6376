"""The known name that is most like one that is not known, for a message that says what may have been meant.

    nearest("lorra", ("lora", "lang", "expand"))        # "lora"

Below every room, so that all of them can say it alike. It decides nothing: an unknown name stays an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str], *, least: float = 0.0) -> str:
    """Returns the one of `known` written most like `name`, "" where there is none.

    least: how alike the two must be, from 0 (whatever is nearest) to 1 (the same).
    """
    return next(iter(nearest_few(name, known, 1, least=least)), "")


def nearest_few(name: object, known: Iterable[str], n: int, *, least: float = 0.0) -> list[str]:
    """Returns the n of `known` written most like `name`, the nearest first."""
    return difflib.get_close_matches(str(name), list(known), n=n, cutoff=least)
