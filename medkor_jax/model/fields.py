"""Single values out of a file that others wrote, each checked for type and range when it is read.

    fields = Fields(json.load(open("config.json")), "config.json")
    fields.integer("hidden_size")                    # or: config.json: hidden_size is null; expected a whole number of at least 1

Knows no file format and no key. A key that is absent takes the default given; null is another thing than absent, and
is taken for it only where the caller says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

REQUIRED: Any = object()
"""The default of a key that must be there."""

_MOST = 2**31 - 1


class Fields:
    """The values of one object; `where` names the file, and the part of it, in messages. All methods raise ValueError."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def integer(self, key: str, *, default: Any = REQUIRED, least: int = 1, most: int = _MOST, null: bool = False) -> Any:
        """null: a null stands for the default, here and below."""
        value = self._get(key, default, null)
        is_right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        upper = "" if most == _MOST else f" and at most {most}"
        return value if value is default or is_right else self.refuse(key, f"a whole number of at least {least}{upper}")

    def number(self, key: str, *, default: Any = REQUIRED, above: float = 0.0, most: float = math.inf, null: bool = False) -> Any:
        """Returns a finite number greater than `above`, as a float."""
        value = self._get(key, default, null)
        if value is default:
            return value
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not above < value <= most:
            self.refuse(key, f"a finite number above {above:g}" + ("" if most == math.inf else f" and at most {most:g}"))
        return float(value)

    def boolean(self, key: str, *, default: Any = REQUIRED, null: bool = False) -> Any:
        value = self._get(key, default, null)
        return value if value is default or isinstance(value, bool) else self.refuse(key, "true or false")

    def choice(self, key: str, choices: Collection[str], *, default: Any = REQUIRED, null: bool = False) -> Any:
        value = self._get(key, default, null)
        is_right = isinstance(value, str) and value in choices
        return value if value is default or is_right else self.refuse(key, " or ".join(map(repr, choices)))

    def text(self, key: str, *, default: Any = REQUIRED, null: bool = False) -> Any:
        value = self._get(key, default, null)
        return value if value is default or isinstance(value, str) else self.refuse(key, "a text")

    def listed(self, key: str, of: type | tuple[type, ...], what: str, *, default: Any = REQUIRED, null: bool = False) -> Any:
        """Returns a list whose items are all of type `of`; what: the items in words."""
        value = self._get(key, default, null)
        is_right = isinstance(value, list) and all(isinstance(item, of) for item in value)
        return value if value is default or is_right else self.refuse(key, f"a list of {what}")

    def part(self, key: str, *, default: Any = REQUIRED, null: bool = False) -> Any:
        """Returns an object's values as Fields of their own."""
        value = self._get(key, default, null)
        if value is default:
            return value
        return Fields(value, f"{self.where}: {key}") if isinstance(value, Mapping) else self.refuse(key, "an object")

    def refuse(self, key: str, expected: str) -> NoReturn:
        raise ValueError(f"{self.where}: {key} is {shown(self.values[key])}; expected {expected}")

    def _get(self, key: str, default: Any, null: bool) -> Any:
        if key not in self.values:
            if default is REQUIRED:
                raise ValueError(f"{self.where} has no {key!r}, which it must give")
            return default
        value = self.values[key]
        return default if value is None and null and default is not REQUIRED else value


def shown(value: Any) -> str:
    """Returns `value` as JSON writes it, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
