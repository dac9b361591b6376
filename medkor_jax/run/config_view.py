"""A config looked at: every key with its value, what it means, its default, and who set it.

    leaves = leaves_of(load_layers("configs/quickstart.py", overrides))
    leaves["phase3.steps"].value                        # 16
    explained(leaves, "phase3.reward")                  # all below it; schema_leaves(): of no config
    differences(leaves, others)

Read from the recipe's dataclasses and the text below their fields; nothing is checked or built
here.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from medkor_jax.nearest import nearest
from medkor_jax.run.config_file import Layers
from medkor_jax.run.config_keys import REQUIRED, Key, keys_of, meaning_of, renamed
from medkor_jax.run.defaults import defaults_of, is_mapping, phase_names
from medkor_jax.run.phases import ConfigError, Phase, Recipe

PHASE, NAME = "PHASE", "NAME"  # stand for the name of any phase, of any source, exam, rule, ...
COMMAND_LINE, DEFAULT = "an override on the command line", "the default"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One key at one place. default: REQUIRED where one must be given; set_by: DEFAULT,
    COMMAND_LINE or the config file."""

    path: str
    key: Key
    value: Any
    default: Any
    set_by: str = ""

    @property
    def meaning(self) -> str:
        return meaning_of(self.key.owner, self.key.name)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"key": self.path, "meaning": self.meaning, "type": self.key.kind}
        found["bounds"] = list(self.key.rules)
        if self.default is not REQUIRED:
            found["default"] = self.default
        return found | ({"value": self.value, "set_by": self.set_by} if self.set_by else {})


def leaves_of(layers: Layers) -> dict[str, Leaf]:
    """Returns {path: leaf} of a config: the run's own keys, then each phase's, in the order they
    run."""
    config = layers.config.to_dict()
    phases = [name for name in phase_names(config) if is_mapping(config.get(name))]
    defaults = defaults_of(Recipe) | dict.fromkeys(phases, defaults_of(Phase))
    found = list(_walk(Recipe, config))
    for name in phases:
        found += _walk(Phase, config[name], (name,))
    leaves, file = {}, f"{layers.path.split(':')[0]} or what it imports"
    for parts, key, value in found:
        default = _default(defaults, parts, key)
        is_overridden = any(
            ".".join(parts[:n]) in layers.overridden for n in range(1, len(parts) + 1)
        )
        of_file = DEFAULT if _at(layers.of_file, parts) == default else file
        path = ".".join(parts)
        leaves[path] = Leaf(path, key, value, default, COMMAND_LINE if is_overridden else of_file)
    return leaves


def schema_leaves() -> dict[str, Leaf]:
    """Returns {path: leaf} of every key there is, without values: PHASE and NAME stand where a
    config has names of its own."""
    defaults = defaults_of(Recipe) | {PHASE: defaults_of(Phase)}
    found = [*_schema(Recipe, ()), *_schema(Phase, (PHASE,))]
    return {
        ".".join(parts): Leaf(".".join(parts), key, None, _default(defaults, parts, key))
        for parts, key in found
    }


def explained(leaves: Mapping[str, Leaf], asked: str) -> list[Leaf]:
    """Returns the keys that `asked` names: one, all below it, or all that a pattern ("*.seq_len")
    fits.

    Raises: ConfigError, with the nearest key or the name that it has now, if there is none.
    """
    asked = asked.removeprefix("config.")
    if found := [leaf for path, leaf in leaves.items() if _is_asked(path, asked)]:
        return found
    parts = asked.split(".")
    said = next(filter(None, (renamed(".".join(parts[:n])) for n in range(1, len(parts) + 1))), "")
    said = said or f"nearest: {_nearest_path(asked, leaves)!r}"
    raise ConfigError(f"config.{asked} is not a key; {said}")


def differences(one: Mapping[str, Leaf], other: Mapping[str, Leaf]) -> list[tuple[str, Any, Any]]:
    """Returns (path, value in one, value in the other) of every key that differs; REQUIRED where
    one has not got it."""
    found = []
    for path in dict.fromkeys([*one, *other]):
        mine, theirs = (leaves[path].value if path in leaves else REQUIRED for leaves in (one, other))
        if mine != theirs:
            found.append((path, mine, theirs))
    return found


def _walk(
    kind: type, config: Mapping[str, Any], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Key, Any]]:
    """Yields (path, key, value) of every key that holds no further ones, or holds none here."""
    for name, key in keys_of(kind).items():
        if name not in config:
            continue
        value, path = config[name], (*at, name)
        if not key.holds or not value:
            yield path, key, value
        elif not key.is_many:
            yield from _walk(key.holds, value, path)
        else:
            for one, entry in value.items():
                yield from (
                    _walk(key.holds, entry, (*path, one)) if entry else [((*path, one), key, entry)]
                )


def _schema(kind: type, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Key]]:
    for name, key in keys_of(kind).items():
        if name == "name" and at[-1:] in ((PHASE,), (NAME,)):
            continue  # the mapping has it
        yield (*at, name), key
        if key.holds:
            yield from _schema(key.holds, (*at, name, NAME) if key.is_many else (*at, name))


def _default(defaults: Mapping[str, Any], parts: tuple[str, ...], key: Key) -> Any:
    """Returns what the key is at this place if nobody sets it: a phase's LoRA has rank 0, although
    the class says 16."""
    found = _at(defaults, parts)
    is_own = found is REQUIRED and (not key.holds or key.default is None)
    return key.default if is_own else found


def _at(tree: Any, parts: tuple[str, ...]) -> Any:
    for part in parts:
        if not is_mapping(tree) or part not in tree:
            return REQUIRED
        tree = tree[part]
    return tree


def _is_asked(path: str, asked: str) -> bool:
    if any(sign in asked for sign in "*?["):
        return fnmatch.fnmatchcase(path, asked) or fnmatch.fnmatchcase(path, f"{asked}.*")
    parts, wanted = path.split("."), asked.split(".")
    same = (have == want or have in (PHASE, NAME) for have, want in zip(parts, wanted))
    return len(parts) >= len(wanted) and all(same)


def _nearest_path(asked: str, paths: Mapping[str, Leaf]) -> str:
    """Returns the path most like `asked`: as much of its way as there is, then the nearest name."""
    wanted, all_parts = asked.split("."), [path.split(".") for path in paths]
    for n in reversed(range(len(wanted))):
        among = {
            p[n]
            for p in all_parts
            if len(p) > n and _is_asked(".".join(p[:n]), ".".join(wanted[:n]))
        }
        if among:
            return ".".join([*wanted[:n], nearest(wanted[n], sorted(among))])
    return nearest(asked, paths)
