"""docs/CONFIG.md, written from the recipe's dataclasses and the text below their fields.

    medkor config --markdown > docs/CONFIG.md

A test holds the file to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medkor_jax.run.config_keys import REQUIRED, Key, keys_of, meaning_of
from medkor_jax.run.config_view import NAME, PHASE, Leaf, schema_leaves
from medkor_jax.run.phases import Phase, Recipe

HEAD = """# Every key of a config

Written by `medkor config --markdown`; do not edit. `medkor config --config FILE --explain KEY`
says the same of one key and who set it, `--diff A B` how two configs differ, and without either
the whole config.

A config file (`configs/`) returns `common.get_config()` with what differs set; what it leaves out
has its default. `--config.phase3.steps=100` on the command line overrides one key. {phase} stands
for a phase that `config.phases` names, {name} for a name that you choose.
"""


def document() -> str:
    """Returns the whole page: a table of keys for each class, under the places where it is used."""
    leaves = schema_leaves()
    places: dict[type, list[str]] = {Recipe: ["config"], Phase: [f"config.{PHASE}"]}
    beside = {
        key.owner: [f"config.{PHASE}"] for key in keys_of(Phase).values() if key.owner is not Phase
    }
    for path, leaf in leaves.items():
        if leaf.key.owner in beside:
            places.setdefault(leaf.key.owner, beside.pop(leaf.key.owner))
        if leaf.key.holds:
            where = f"config.{path}" + (f".{NAME}" if leaf.key.is_many else "")
            places.setdefault(leaf.key.holds, []).append(where)
    parts = [HEAD.format(phase=f"`{PHASE}`", name=f"`{NAME}`")]
    parts += [_section(kind, where, leaves) for kind, where in places.items()]
    return "\n".join(parts).rstrip()


def _section(kind: type, where: list[str], leaves: Mapping[str, Leaf]) -> str:
    again = f"config.{PHASE}.remedy."  # holds what the phase holds
    shown = ", ".join(
        f"`{place}`" for place in where if place.replace(again, f"config.{PHASE}.") == place
    )
    lines = [
        f"## {kind.__name__}: {shown}",
        "",
        _first_sentence(kind),
        "",
        "| key | what it means | type | default |",
    ]
    lines.append("| --- | --- | --- | --- |")
    at = where[0].removeprefix("config").removeprefix(".")
    for name, key in keys_of(kind).items():
        leaf = leaves.get(f"{at}.{name}" if at else name)
        if leaf is not None and key.owner is kind:
            lines.append(_row(key, leaf.default))
    return "\n".join([*lines, ""])


def _row(key: Key, default: Any) -> str:
    bounds = f", {' and '.join(key.rules)}" if key.rules else ""
    is_spelt_below = key.holds and not key.is_many and default is not None
    shown = (
        "must be given" if default is REQUIRED else "" if is_spelt_below else f"`{_short(default)}`"
    )
    meaning = meaning_of(key.owner, key.name).replace("|", "\\|")
    return f"| `{key.name}` | {meaning} | {key.kind}{bounds} | {shown} |"


def _short(default: Any) -> str:
    return literal(default) if not isinstance(default, Mapping) else f"{{{', '.join(default)}}}"


def _first_sentence(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def literal(value: Any) -> str:
    """Returns `value` as Python writes it, texts in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (tuple, list)):
        inner = ", ".join(map(literal, value))
        return f"({inner}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    return repr(value)
