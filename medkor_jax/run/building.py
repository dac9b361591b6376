"""A config, as plain data, becomes the recipe's dataclasses; what does not fit is refused by its
key.

    build(Phase, {"name": "phase0", "exam": "english", "steps": 3}, "config.phase0")

What a value may be is beside its field's type: bounds (">= 0"), a function that checks it. Nothing
is left out or
guessed: an unknown key fails with the nearest.
"""

from __future__ import annotations

import math
import operator
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medkor_jax.nearest import nearest
from medkor_jax.run.config_keys import BESIDE, REQUIRED, Key, keys_of, renamed
from medkor_jax.run.phases import ConfigError, Exam

_RULES = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "!=": operator.ne,
}


def build(kind: type, raw: Mapping[str, Any], path: str = "config") -> Any:
    """Returns the dataclass `kind` made of `raw`, nested ones included.

    A tuple of dataclasses is written as a mapping {name: keys}; its order is kept, and an entry of
    None is left out (so a config can switch off what it inherits).

    Raises: ConfigError naming the key, what was found, and the nearest valid name.
    """
    made, keys = fields_of(kind, raw, path), keys_of(kind)
    if kind not in BESIDE:
        return make(kind, made, path)
    own = {name: value for name, value in made.items() if keys[name].owner is kind}
    inner = next(key.owner for key in keys.values() if key.owner is not kind)
    beside = {name: value for name, value in made.items() if name not in own}
    return make(kind, own | {BESIDE[kind]: make(inner, beside, path)}, path)


def fields_of(kind: type, raw: Mapping[str, Any], path: str = "config") -> dict[str, Any]:
    """Returns what `raw` says of the fields of `kind`, each of its own type. Raises: ConfigError,
    as `build`."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path} is {raw!r}; expected the keys of {kind.__name__}")
    keys = keys_of(kind)
    for name in raw:
        if name not in keys:
            raise unknown(f"{path}.{name}", keys, kind)
    if missing := [n for n, key in keys.items() if key.default is REQUIRED and n not in raw]:
        raise ConfigError(f"{path} lacks {', '.join(missing)}")
    return {name: _convert(keys[name], value, f"{path}.{name}") for name, value in raw.items()}


def make(kind: type, fields: Mapping[str, Any], path: str) -> Any:
    """Returns kind(**fields). Raises: ConfigError with `path` in front of what the class itself
    refuses."""
    try:
        return kind(**fields)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def unknown(path: str, keys: Iterable[str], kind: type) -> ConfigError:
    """Returns the error for a key that is none of a class: what it is called now, or the nearest
    that is one."""
    name = path.rpartition(".")[2]
    said = renamed(path) or f"nearest: {nearest(name, sorted(keys))!r}"
    return ConfigError(f"{path} is not a key of {kind.__name__}; {said}")


def _convert(key: Key, value: Any, path: str) -> Any:
    if key.check:
        try:
            key.check(value)
        except ValueError as error:
            raise ConfigError(f"{path.rpartition('.')[0]}: {error}") from error
    if key.is_optional and value is None:
        return None
    if key.is_many:
        return _entries(key, value, path)
    if key.holds:
        return build(key.holds, value, path)
    if typing.get_origin(key.hint) is tuple:
        return _list(typing.get_args(key.hint)[0], value, path)
    value = _plain_value(key.hint, value, path)
    if not all(_holds(value, rule) for rule in key.rules):
        is_percent = value > 1 and {"< 1", "<= 1"} & set(key.rules)
        hint = f" (a share: {value / 100:g}, not {value:g})" if is_percent else ""
        raise ConfigError(f"{path} is {value!r}; it must be {' and '.join(key.rules)}{hint}")
    return value


def _entries(key: Key, value: Any, path: str) -> tuple[Any, ...]:
    is_mapping = isinstance(value, Mapping)
    if not is_mapping or not all(isinstance(item, Mapping | None) for item in value.values()):
        raise ConfigError(f"{path} is {value!r}; expected a mapping from names to their keys")
    given = {name: item for name, item in value.items() if item is not None}
    return tuple(
        build(key.holds, _named(key.holds, name, item), f"{path}.{name}")
        for name, item in given.items()
    )


def _named(kind: type, name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the entry its mapping key as `name`; an Exam passes it on to its source."""
    if kind is Exam:
        return {**item, "source": {"name": name, "kind": "exam", **item.get("source", {})}}
    return {"name": name, **item}


def _list(kind: type, value: Any, path: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{path} is {value!r}; expected a list, such as ({value!r},)")
    return tuple(_plain_value(kind, item, f"{path}[{i}]") for i, item in enumerate(value))


def _plain_value(kind: type, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} is {value!r}; expected a number")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path} is {value!r}; expected {kind.__name__}")
    return value


def _holds(value: float, rule: str) -> bool:
    """Returns whether `value` is as a rule such as ">= 0" wants it."""
    sign, bound = rule.split()
    return _RULES[sign](value, float(bound))
