"""A config file and its overrides, read with ml_collections, become a Recipe.

    recipe = load_recipe("configs/phase3.py", ["--config.phase3.steps=100"])

A config file may import its neighbours (`from configs import common`). Overrides are type-checked by
ml_collections; a key that does not exist fails with the nearest one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import pathlib
import sys
import types
import typing
from typing import Annotated, Any, Mapping, Sequence

from medkor_jax.run.gate_rules import check_gates
from medkor_jax.run.phases import ConfigError, Exam, Phase, Recipe
from medkor_jax.train.stage import Stage

RENAMED = {
    "groups": "rules",
    "reward.answer": "reward.parts.answer.weight",
    "reward.letter": "reward.parts.letter.weight",
    "reward.format": "reward.parts.format.weight",
    "reward.length_penalty": "reward.parts.length.weight (below 0)",
    "reward.max_reasoning_tokens": "reward.parts.length.bound",
    **{f"reward.{name}": f"reward.rollout.{name}" for name in (
        "group_size", "temperature", "max_new_tokens", "std_normalised", "updates_per_batch", "max_refills", "patience", "importance_cap"
    )},
    **{f"reward.{name}": f"reward.policy.{name}" for name in ("clip_low", "clip_high", "kl_weight")},
}  # fmt: skip
"""What keys were called before, wherever they stand, and what they are called now."""


def new_name(path: str) -> str:
    """Returns the sentence for a key that has another name now; "" if it never had one."""
    found = [(old, new) for old, new in RENAMED.items() if f".{old}." in f".{path}."]
    return f"; {found[0][0]} is {found[0][1]} now" if found else ""


def load_config(path: str, overrides: Sequence[str] = ()) -> Any:
    """Returns the ConfigDict of `path` ("file.py" or "file.py:argument") with overrides applied.

    Raises: ConfigError on a missing file, a wrong override, or a file that does not build a config.
    """
    from absl import flags
    from ml_collections import config_flags

    file = pathlib.Path(path.split(":")[0])
    if not file.is_file():
        near = difflib.get_close_matches(str(file), map(str, file.parent.glob("*.py")), n=1)
        raise ConfigError(f"no config file {file}" + (f"; nearest: {near[0]}" if near else ""))
    for place in (file.resolve().parent.parent, pathlib.Path.cwd()):  # so that `from configs import common` works
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
    values, argv = flags.FlagValues(), ["medkor", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        left = values(argv, known_only=True)[1:]
        config = values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        said = str(error.args[0]) if error.args else repr(error)  # str() of a KeyError is quoted
        if "field 'remat'" in said and "<class 'bool'>" in said:  # what older config files say; checked where they say it
            said = 'remat is a name now: "full" for what was True, "none" for what was False'
        renamed = "".join(map(new_name, (key for override in overrides for key in [override.partition("=")[0].lstrip("-")])))
        raise ConfigError(f"{path}: {' '.join(said.split())}{renamed}") from error
    if left:
        raise ConfigError(f"not understood: {' '.join(left)}; overrides read --config.phase3.steps=100")
    return config


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    return make_recipe(load_config(path, overrides).to_dict())


def make_recipe(config: Mapping[str, Any]) -> Recipe:
    """Returns the recipe a whole config describes. In the config, a phase is a top-level key `phase...` that
    holds the keys of its training stage beside its own, so `--config.phase3.steps=100` reads as it should.

    Raises: ConfigError, naming the key, as `build`.
    """
    raw = {key: value for key, value in config.items() if not key.startswith("phase")}
    phases = {key: _with_stage(key, value) for key, value in config.items() if key.startswith("phase") and value is not None}
    return _with_sound_gates(build(Recipe, {**raw, "phases": dict(sorted(phases.items()))}))


def _with_sound_gates(recipe: Recipe) -> Recipe:
    """Returns the recipe. Raises: ConfigError if something that a gate asks cannot be meant."""
    try:
        check_gates(recipe)
    except ValueError as error:
        raise ConfigError(f"config: {error}") from error
    return recipe


def _with_stage(name: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"config.{name} is {raw!r}; expected the keys of a phase")
    stage = {field.name for field in dataclasses.fields(Stage)}
    valid = [*stage, *(field.name for field in dataclasses.fields(Phase) if field.name not in ("name", "train"))]
    for key in raw:
        if key not in valid:
            near = difflib.get_close_matches(str(key), sorted(valid), n=1, cutoff=0.0)[0]
            raise ConfigError(f"config.{name}.{key} is not a key of a phase or its stage; nearest: {near!r}{new_name(key)}")
    own = {key: value for key, value in raw.items() if key not in stage}
    return own | {"train": {key: value for key, value in raw.items() if key in stage}}


def build(kind: type, raw: Mapping[str, Any], path: str = "config") -> Any:
    """Returns the dataclass `kind` made of `raw`, nested ones included.

    A tuple of dataclasses is written as a mapping {name: fields}; its order is kept, and an entry of None
    is left out (so a config can switch off what it inherits).

    Raises: ConfigError naming the key, what was found, and the nearest valid name.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path} is {raw!r}; expected the keys of {kind.__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in raw:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{path}.{key} is not a key of {kind.__name__}; nearest: {near!r}{new_name(f'{path}.{key}')}")
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING and n not in raw]
    if required:
        raise ConfigError(f"{path} lacks {', '.join(required)}")
    try:
        return kind(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in raw.items()})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and callable(check := arguments[1]):
        try:
            check(value)
        except ValueError as error:
            raise ConfigError(f"{path.rpartition('.')[0]}: {error}") from error
        return _convert(arguments[0], value, path)
    if origin is Annotated:
        value = _convert(arguments[0], value, path)
        if not all(_holds(value, rule) for rule in arguments[1:]):
            is_percent = value > 1 and {"< 1", "<= 1"} & set(arguments[1:])
            hint = f" (a share: {value / 100:g}, not {value:g})" if is_percent else ""
            raise ConfigError(f"{path} is {value!r}; it must be {' and '.join(arguments[1:])}{hint}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(arguments[0], value, path)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if origin is tuple and dataclasses.is_dataclass(arguments[0]):
        if not isinstance(value, Mapping) or not all(isinstance(item, Mapping | None) for item in value.values()):
            raise ConfigError(f"{path} is {value!r}; expected a mapping from names to their keys")
        return tuple(
            build(arguments[0], _named(arguments[0], name, item), f"{path}.{name}")
            for name, item in value.items()
            if item is not None
        )
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{path} is {value!r}; expected a list, such as ({value!r},)")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} is {value!r}; expected a number")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path} is {value!r}; expected {hint.__name__}")
    return value


_RULES = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "!=": operator.ne}


def _holds(value: float, rule: str) -> bool:
    """Returns whether `value` is as a rule such as ">= 0" wants it."""
    sign, bound = rule.split()
    return _RULES[sign](value, float(bound))


def _named(kind: type, name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the entry its mapping key as `name`; an Exam passes it on to its source."""
    item = dict(item)
    if kind is Exam:
        return item | {"source": {"name": name, "kind": "exam", **item.get("source", {})}}
    return {"name": name, **item}
