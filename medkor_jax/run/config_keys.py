"""The keys of a config, as the recipe's dataclasses have them: type, bounds, default, and what each
means.

    keys_of(Phase)["seq_len"].default       # 1024, from the class that is used
    meaning_of(Stage, "seq_len")            # the text below the field, read from the source

A key is a field. A dataclass in a field is a mapping of its keys; a tuple of dataclasses a mapping
from names to theirs. Two things lie otherwise in a config than in the recipe: a phase holds the
keys of its training stage beside its own, so that `config.phase3.steps` reads as it should; and
`config.phases` names the phases, in the order they run, whose keys are under their own names
(`config.phase3`). Nothing is checked here: `building` does that.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, cast

from medkor_jax.run.phases import Phase, Recipe

REQUIRED = dataclasses.MISSING
RENAMED = {
    "route": "language_unit",
    "watch": "held_out",
    "watch_tokens": "held_out_tokens",
    "groups": "rules",
    "reward.answer": "reward.parts.answer.weight",
    "reward.letter": "reward.parts.letter.weight",
    "reward.format": "reward.parts.format.weight",
    "reward.length_penalty": "reward.parts.length.weight (below 0)",
    "reward.max_reasoning_tokens": "reward.parts.length.bound",
    "reward.group_size": "reward.rollout.group_size",
    "reward.temperature": "reward.rollout.temperature",
    "reward.max_new_tokens": "reward.rollout.max_new_tokens",
    "reward.std_normalised": "reward.rollout.std_normalised",
    "reward.updates_per_batch": "reward.rollout.updates_per_batch",
    "reward.max_refills": "reward.rollout.max_refills",
    "reward.patience": "reward.rollout.patience",
    "reward.importance_cap": "reward.rollout.importance_cap",
    "reward.clip_low": "reward.policy.clip_low",
    "reward.clip_high": "reward.policy.clip_high",
    "reward.kl_weight": "reward.policy.kl_weight",
}
"""What keys were called before, wherever they stand, and what they are called now."""
BESIDE: dict[type, str] = {Phase: "train"}  # the field whose keys lie beside the class's own


@dataclasses.dataclass(frozen=True)
class Key:
    """One key. owner: the dataclass that has the field; holds: the dataclass below it, if any;
    is_many: a mapping from names to such; rules: bounds such as ">= 0"; check: what else a value is
    held to; default: REQUIRED where there is none."""

    name: str
    owner: type
    hint: Any
    default: Any
    rules: tuple[str, ...] = ()
    check: Callable[[Any], None] | None = None
    holds: type | None = None
    is_many: bool = False
    is_optional: bool = False

    @property
    def kind(self) -> str:
        """What a value is, in a word: "int", "float", "names", "list of str"."""
        if self.is_many:
            return f"names, each with the keys of {self.holds.__name__}"
        if self.holds:
            return f"the keys of {self.holds.__name__}"
        if typing.get_origin(self.hint) is tuple:
            return f"list of {typing.get_args(self.hint)[0].__name__}"
        return getattr(self.hint, "__name__", str(self.hint))


@functools.cache
def keys_of(kind: type) -> dict[str, Key]:
    """Returns every key that a config may hold where it describes a `kind`, in the order of the
    fields."""
    keys: dict[str, Key] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        key = _key(kind, field, hints[field.name])
        keys |= keys_of(key.holds) if BESIDE.get(kind) == field.name else {field.name: key}
    return keys


def _key(owner: type, field: dataclasses.Field, hint: Any) -> Key:
    rules: tuple[str, ...] = ()
    check, is_optional = None, False
    while typing.get_origin(hint) is Annotated:
        hint, *more = typing.get_args(hint)
        rules += tuple(rule for rule in more if isinstance(rule, str))
        check = next((rule for rule in more if callable(rule)), check)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint, is_optional = typing.get_args(hint)[0], True
    default: Any = field.default if field.default_factory is REQUIRED else field.default_factory()
    shared: dict[str, Any] = dict(rules=rules, check=check, is_optional=is_optional, default=default)
    if (owner, field.name) == (Recipe, "phases"):
        return Key(field.name, owner, tuple[str, ...], ())
    if dataclasses.is_dataclass(hint):
        return Key(field.name, owner, hint, holds=cast("type", hint), **shared)
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if dataclasses.is_dataclass(inner):
        return Key(field.name, owner, hint, holds=cast("type", inner), is_many=True, **shared)
    return Key(field.name, owner, hint, **shared)


def renamed(path: str) -> str:
    """Returns "groups is rules now" for a key that had another name; "" for any other. Of a name
    without its way, the last part of an old one is enough."""
    for old, new in RENAMED.items():
        if f".{path}".endswith(f".{old}") or old.rpartition(".")[2] == path:
            return f"{old} is {new} now"
    return ""


def meaning_of(owner: type, field: str) -> str:
    """Returns the text below the field in its class (the string literal on the next lines), on one
    line; "" if there is none."""
    for kind in owner.__mro__[:-1]:
        if found := _meanings(kind).get(field):
            return found
    return ""


@functools.cache
def _meanings(kind: type) -> dict[str, str]:
    tree = ast.parse(pathlib.Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
    body = next(
        n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == kind.__name__
    ).body
    found = {}
    for field, text in itertools.pairwise(body):
        said = text.value if isinstance(text, ast.Expr) else None
        if not isinstance(said, ast.Constant) or not isinstance(said.value, str):
            continue
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            found[field.target.id] = " ".join(said.value.split())
    return found
