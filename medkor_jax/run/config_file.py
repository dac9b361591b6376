"""A config file and its overrides, read with ml_collections, become a Recipe.

    recipe = load_recipe("configs/phase3.py", ["--config.phase3.steps=100"])

A config file may import its neighbours (`from configs import common`) and writes only what differs
from the defaults, which are those of the recipe's dataclasses (`defaults`): whatever it leaves out
is put in before overrides are read, so that every key can be overridden. Overrides are type-checked
by ml_collections; a key that does not exist fails with the nearest one.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import medkor_jax
from medkor_jax.nearest import nearest
from medkor_jax.run.building import build, fields_of, make, unknown
from medkor_jax.run.choosing import check_candidates
from medkor_jax.run.config_keys import keys_of, renamed
from medkor_jax.run.defaults import complete, is_mapping, phase_names
from medkor_jax.run.gate_rules import check_gates
from medkor_jax.run.phases import ConfigError, Phase, Recipe

CONFIGS = pathlib.Path(medkor_jax.__file__).resolve().parent.parent / "configs"
"""The configs that come with the program: beside the package, in a checkout and where it is installed."""

_OVERRIDE = re.compile(r"(?P<flag>--?(?:no)?config\.)(?P<keys>[^=\s]+)")


@dataclasses.dataclass(frozen=True)
class Layers:
    """A config as its file says it, and with what the command line changed. overridden: the keys
    named there, "phase3.steps"."""

    path: str
    of_file: Mapping[str, Any]
    config: Any
    overridden: frozenset[str]


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    return make_recipe(load_config(path, overrides).to_dict())


def load_config(path: str, overrides: Sequence[str] = ()) -> Any:
    """Returns the ConfigDict of `path` ("file.py" or "file.py:argument") with overrides applied;
    every key is in it.

    Raises: ConfigError on a missing file, a wrong override, or a file that does not build a config.
    """
    return load_layers(path, overrides).config


def load_layers(path: str, overrides: Sequence[str] = ()) -> Layers:
    """Returns the config of `path` before and after overrides. Raises: ConfigError, as
    `load_config`."""
    from absl import flags
    from ml_collections import config_flags

    file = pathlib.Path(path.split(":")[0])
    if not file.is_file():
        near = nearest(file, map(str, file.parent.glob("*.py")), least=0.6)
        raise ConfigError(f"no config file {file}" + (f"; nearest: {near}" if near else ""))
    _make_configs_importable(file)
    named = [parts for text in overrides if (parts := _named_by(text))]
    with _as_config_errors(path):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[])
        values(["medkor", f"--config={path}"])
        config = values.config
        _unlock(config)
        complete(config)
        config.lock()
        for parts in named:
            _check_is_there(config, parts)
        of_file, values = copy.deepcopy(config.to_dict()), flags.FlagValues()
        argv = ["medkor", *map(_in_brackets, overrides)]
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        if left := values(argv, known_only=True)[1:]:
            raise ConfigError(
                f"not understood: {' '.join(left)}; overrides read --config.phase3.steps=100"
            )
    return Layers(path, of_file, values.config, frozenset(map(".".join, named)))


def _unlock(config: Any) -> None:
    """`ConfigDict.unlock` passes over what is locked below a part that is not."""
    config.unlock()
    for below in config.values():
        if hasattr(below, "unlock"):
            _unlock(below)


def _make_configs_importable(file: pathlib.Path) -> None:
    """So that `from configs import common` finds the file's neighbours, else those of the working directory, else ours."""
    for place in (CONFIGS.parent, pathlib.Path.cwd(), file.resolve().parent.parent):
        if (place / "configs").is_dir():
            sys.path[:] = [str(place), *(one for one in sys.path if one != str(place))]


def _named_by(override: str) -> list[str]:
    """Returns the keys on the way to what "--config.phase3.data.korean-text.weight=2" sets; [] if
    it sets nothing."""
    found = _OVERRIDE.match(override)
    return re.findall(r"""[^.\[\]'"]+""", found["keys"]) if found else []


def _check_is_there(config: Any, parts: Sequence[str]) -> None:
    """Raises: ConfigError, with the nearest key, if an override names one that is not there."""
    place = config
    for depth, part in enumerate(parts):
        if is_mapping(place) and part not in place:
            path = ".".join(("config", *parts[: depth + 1]))
            said = renamed(path) or f"nearest: {nearest(part, place.keys())!r}"
            raise ConfigError(f"{path} is not a key; {said}")
        place = place[part] if is_mapping(place) else None


def _in_brackets(override: str) -> str:
    """Returns the override as ml_collections reads it, which takes "korean-text" for a difference:
    data["korean-text"]."""
    found = _OVERRIDE.match(override)
    if not found:
        return override
    first, *others = _named_by(override)
    rest = (
        f".{o}" if o.isidentifier() else f"[{o}]" if o.isdigit() else f"['{o}']" for o in others
    )
    return f"{found['flag']}{first}{''.join(rest)}{override[found.end() :]}"


@contextlib.contextmanager
def _as_config_errors(path: str) -> Iterator[None]:
    """What ml_collections says of a config, as a ConfigError on one line."""
    from absl import flags

    try:
        yield
    except ConfigError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        said = str(error.args[0]) if error.args else repr(error)  # str() of a KeyError is quoted
        said = _without_traceback(said)
        raise ConfigError(f"{path}: {_in_short(' '.join(said.split()))}") from error


def _without_traceback(said: str) -> str:
    """Returns what an error in a config file said, and its place, of the traceback that ml_collections makes of it."""
    if "Traceback (most recent call last)" not in said:
        return said
    places = re.findall(r'File "([^"]+)", line (\d+)', said)
    words = re.findall(r"^\w*(?:Error|Exception): (.*)$", said, re.MULTILINE) or [
        said.splitlines()[-1]
    ]
    of_config = [(file, line) for file, line in places if "ml_collections" not in file]
    at = " ({}, line {})".format(*of_config[-1]) if of_config else ""
    return f"{words[-1]}{at}"


def _in_short(said: str) -> str:
    """Returns what ml_collections said without the whole config, which it adds to a wrong key."""
    is_read = re.fullmatch(r"""["']+(\w+)["']+( Did you mean "\w+".*)?""", said)
    if found := re.search(r'Key "(\w+)" does not exist', said) or is_read:
        near = re.search(r'Did you mean "(\w+)"', said)
        words = renamed(found[1]) or (f"nearest: {near[1]!r}" if near else "")
        return f"{found[1]!r} is not a key" + (f"; {words}" if words else "")
    if "field 'remat'" in said and "<class 'bool'>" in said:  # older config files
        return 'remat is a name now: "full" for what was True, "none" for what was False'
    return said


def make_recipe(config: Mapping[str, Any]) -> Recipe:
    """Returns the recipe a whole config describes. `phases` names the phases it defines, in the
    order they run (those of `run` if it is empty); the keys of each are under its own name, those
    of its training stage beside them.

    Raises: ConfigError, naming the key, as `build`.
    """
    keys = keys_of(Recipe)
    own = fields_of(Recipe, {name: value for name, value in config.items() if name in keys})
    names, defined = phase_names(own), [name for name in config if name not in keys]
    for name in names:
        if name not in defined:
            said = (
                f"{'phases' if own.get('phases') else 'run'} names {name!r}, which is not defined"
            )
            raise ConfigError(f"{said}; nearest: {nearest(name, defined) or 'none'!r}")
    for name in (name for name in defined if name not in names):
        if renamed(f"config.{name}") or not isinstance(config[name], Mapping):
            raise unknown(f"config.{name}", keys, Recipe)
        raise ConfigError(
            f"config.{name} is no key, nor a phase that `phases` names ({', '.join(names)}); "
            f"put it there, where it is to run. Nearest key: {nearest(name, sorted(keys))!r}"
        )
    phases = tuple(_phase(name, config[name]) for name in names if config[name] is not None)
    recipe = make(Recipe, own | {"phases": phases}, "config")
    try:
        check_candidates(recipe)
        check_gates(recipe)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config: {error}") from error
    return recipe


def _phase(name: str, raw: Any) -> Phase:
    if isinstance(raw, Mapping) and "name" in raw:
        raise unknown(
            f"config.{name}.name", [key for key in keys_of(Phase) if key != "name"], Phase
        )
    return build(
        Phase, {"name": name, **raw} if isinstance(raw, Mapping) else raw, f"config.{name}"
    )
