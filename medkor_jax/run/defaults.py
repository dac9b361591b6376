"""The defaults of a config, made from the recipe's dataclasses: no default is written twice.

    defaults_of(Phase)["seq_len"]           # what an empty config of that class says
    complete(config)                        # every key that is not there, put in with its default
    plain(recipe)                           # back again: the config that builds this recipe

`building.build` is the inverse: build(kind, defaults_of(kind)) equals kind().
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from medkor_jax.run.config_keys import BESIDE, REQUIRED, Key, keys_of
from medkor_jax.run.phases import Exam, Phase, Recipe


def defaults_of(kind: type) -> dict[str, Any]:
    """Returns every key of a config of that class that has a default, nested ones too, as plain
    data."""
    keys = keys_of(kind).values()
    return {key.name: _plain(key, key.default) for key in keys if key.default is not REQUIRED}


def plain(value: Any) -> dict[str, Any]:
    """Returns the config that builds `value`, a recipe or a part of one; all keys are in it."""
    kind: Any = type(value)
    found: dict[str, Any] = {}
    for name, key in keys_of(kind).items():
        holder = value if key.owner is kind else getattr(value, BESIDE[kind])
        found[name] = _plain(key, getattr(holder, name))
    if kind is Recipe:
        phases = dict(map(_entry, value.phases))
        return found | {"phases": tuple(phases)} | phases
    return found


def _plain(key: Key, value: Any) -> Any:
    if key.is_many:
        return dict(_entry(one) for one in value)
    return plain(value) if key.holds and value is not None else value


def _entry(one: Any) -> tuple[str, dict[str, Any]]:
    """Returns the name that a mapping has for `one`, and its keys without that name."""
    keys = plain(one)
    if isinstance(one, Exam):
        return keys["source"].pop("name"), keys
    return keys.pop("name"), keys


def complete(config: MutableMapping[str, Any]) -> None:
    """Puts into a config of a run, at every depth, each key that has a default and is not there:
    then all can be overridden."""
    _complete(Recipe, config)
    for name in phase_names(config):
        if is_mapping(config.get(name)):
            _complete(Phase, config[name])


def is_mapping(value: Any) -> bool:
    """Whether `value` has keys of its own: a dict, or the ConfigDict that a config file makes,
    which is no Mapping."""
    return hasattr(value, "keys")


def phase_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the phases that a config defines, in the order they run."""
    return tuple(config.get("phases") or config.get("run") or ())


def _complete(kind: type, config: MutableMapping[str, Any]) -> None:
    for key in keys_of(kind).values():
        if key.name not in config:
            if key.default is not REQUIRED:
                config[key.name] = _plain(key, key.default)
            continue
        for below in _below(key, config[key.name]):
            _complete(key.holds, below)


def _below(key: Key, value: Any) -> Iterator[MutableMapping[str, Any]]:
    if key.holds and is_mapping(value):
        yield from (one for one in (value.values() if key.is_many else [value]) if is_mapping(one))
