"""A whole config as a file that builds it again: what `medkor config` prints, and what each phase of a run keeps of its own.

    print(config_file(plain(recipe), "configs/quickstart.py --config.seed=1"))

Nothing is read or checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medkor_jax.run.config_document import literal
from medkor_jax.run.config_keys import REQUIRED, keys_of
from medkor_jax.run.defaults import defaults_of, is_mapping, phase_names
from medkor_jax.run.phases import Phase, Recipe


def config_file(config: Mapping[str, Any], said_by: str, *, changed: bool = False) -> str:
    """Returns a config file that says all that `config` does (changed: what is not at its default),
    and can be run."""
    phases = [name for name in phase_names(config) if is_mapping(config.get(name))]
    lines = [
        f'"""{said_by}, resolved."""',
        "",
        "from configs import common",
        "",
        "",
        "def get_config():",
    ]
    lines.append("    config = common.get_config()")
    lines += _assignments(Recipe, config, defaults_of(Recipe), "config", changed)
    for name in phases:
        lines += [
            "",
            "    with config.unlocked():",
            f"        config.{name} = common.empty_phase()",
        ]
        lines += _assignments(Phase, config[name], defaults_of(Phase), f"config.{name}", changed)
    return "\n".join([*lines, "    return config"])


def _assignments(
    kind: type, config: Mapping[str, Any], defaults: Mapping[str, Any], at: str, changed: bool
) -> Iterator[str]:
    for name, key in keys_of(kind).items():
        value, default = config.get(name, REQUIRED), defaults.get(name, REQUIRED)
        if value is REQUIRED or (changed and value == default):
            continue
        if key.holds and not key.is_many and is_mapping(value):
            yield from _assignments(key.holds, value, default, f"{at}.{name}", changed)
        elif key.is_many and value:
            yield f"    {at}.{name} = {{"
            yield from (
                f"        {literal(one)}: {_entry(key.holds, entry)},"
                for one, entry in value.items()
            )
            yield "    }"
        else:
            yield f"    {at}.{name} = {literal(value)}"


def _entry(kind: type, entry: Any) -> str:
    """Returns an entry of a mapping as Python, without the keys that have their default."""
    if not is_mapping(entry):
        return literal(entry)
    said = []
    for name, key in keys_of(kind).items():
        value = entry.get(name, key.default)
        if value is REQUIRED:
            continue
        if key.holds and is_mapping(value) and not key.is_many:
            said.append(f"{name}={_entry(key.holds, value)}")
        elif key.default is REQUIRED or value != key.default:
            said.append(f"{name}={literal(value)}")
    return f"dict({', '.join(said)})"
