"""Which leaves learn: one description for gradients, optimizer state and checkpoints.

    trainable, frozen = split(params, trees=("lang", "lora"))
    optimizer = make_optimizer((OptimizerRule("lora", r"lora/.*", 1e-4), ...), schedule, trainable)
    params = join(trainable, frozen)

Whole trees train or do not. What is not in `trainable` is not differentiated, has no optimizer state and
is not saved again: there is no mask to get wrong.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from medkor_jax.model.params import TRAINABLE_TREES, Params, Tree, leaf_paths
from medkor_jax.nearest import nearest

READ_BY = {"adamw": ("b1", "b2", "weight_decay"), "sgd": ("momentum",)}
"""The optimizers of optax that a rule may name, and which of the rule's numbers each reads."""


@dataclasses.dataclass(frozen=True)
class OptimizerRule:
    """How some of the leaves that train are updated. Every leaf is matched by exactly one rule.

    Raises: ValueError on an optimizer that is not known, or a number that the one that is named does not read.
    """

    name: str
    """What it is called in messages and in the log; in a config, its key."""
    pattern: str
    """A regular expression for the whole path of a leaf, such as "lora/.*" or "lang/vector"."""
    learning_rate: Annotated[float, "> 0"]
    """The highest rate, reached at the end of the warm-up."""
    optimizer: str = "adamw"
    """"adamw" or "sgd", as optax has them."""
    b1: Annotated[float, ">= 0", "< 1"] = 0.9
    """adamw: decay of the running mean of gradients."""
    b2: Annotated[float, ">= 0", "< 1"] = 0.98
    """adamw: decay of the running mean of their squares; 0.98 as is usual for short fine-tuning."""
    weight_decay: Annotated[float, ">= 0", "< 1"] = 0.0
    """adamw: share of a weight taken away a step, times the learning rate; norms never decay. 0: none."""
    momentum: Annotated[float, ">= 0", "< 1"] = 0.0
    """sgd: share of the last update that goes into the next. 0: none."""

    def __post_init__(self) -> None:
        what = f"optimizer rule {self.name!r}"
        if self.optimizer not in READ_BY:
            near = nearest(self.optimizer, READ_BY)
            raise ValueError(
                f"{what}: optimizer is {self.optimizer!r}; expected {' or '.join(READ_BY)}; nearest: {near!r}"
            )
        others = {
            name
            for optimizer, names in READ_BY.items()
            if optimizer != self.optimizer
            for name in names
        }
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in sorted(others):
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{what}: {name} is {getattr(self, name)}, which {self.optimizer} does not read (it reads "
                    f"{', '.join(READ_BY[self.optimizer])}); leave it out, or name another optimizer"
                )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up to a rule's rate, then a cosine down to `final_share` of it, over `steps` updates.

    clip_norm: of the gradient of all leaves together. `Stage.schedule` is where the numbers come from.
    """

    steps: int
    warmup_steps: int
    final_share: float
    clip_norm: float


def split(params: Params, trees: Sequence[str]) -> tuple[dict[str, Tree], Params]:
    """Returns ({tree name: tree}, the rest: `params` with those trees emptied).

    Raises: ValueError if a tree is not trainable, or has nothing in it to train.
    """
    for name in trees:
        if name not in TRAINABLE_TREES:
            raise ValueError(
                f"tree {name!r} cannot train; choose from {', '.join(TRAINABLE_TREES)}"
            )
        if not jax.tree.leaves(getattr(params, name)):
            raise ValueError(
                f"tree {name!r} is empty: nothing would train. Add it in the phase's `adapt` first"
            )
    if not trees:
        raise ValueError("no tree named to train")
    return {name: getattr(params, name) for name in trees}, params.replace(
        **{name: {} for name in trees}
    )


def join(trainable: dict[str, Tree], frozen: Params) -> Params:
    return frozen.replace(**trainable)


def assign_rules(rules: Sequence[OptimizerRule], trainable: dict[str, Tree]) -> dict[str, Tree]:
    """Returns `trainable` with each leaf replaced by the name of its rule.

    Raises: ValueError naming every leaf that no rule, or more than one, matches, and any rule without a leaf.
    """
    repeated = [
        name for name, n in collections.Counter(rule.name for rule in rules).items() if n > 1
    ]
    if repeated:
        raise ValueError(f"optimizer rules share the name {repeated[0]!r}; each needs its own")
    matches = {
        path: [rule.name for rule in rules if re.fullmatch(rule.pattern, path)]
        for path in leaf_paths(trainable)
    }
    wrong = {path: names for path, names in matches.items() if len(names) != 1}
    if wrong:
        lines = [
            f"{path}: {' and '.join(names) or 'no rule'}" for path, names in sorted(wrong.items())
        ]
        raise ValueError(
            "every trainable leaf needs exactly one optimizer rule; found " + "; ".join(lines[:8])
        )
    idle = {rule.name for rule in rules} - {names[0] for names in matches.values()}
    if idle:
        raise ValueError(
            f"optimizer rules {sorted(idle)} match no trainable leaf; trees: {sorted(trainable)}"
        )
    treedef = jax.tree.structure(trainable)
    return jax.tree.unflatten(treedef, [matches[path][0] for path in leaf_paths(trainable)])


def make_optimizer(
    rules: Sequence[OptimizerRule], schedule: Schedule, trainable: dict[str, Tree]
) -> optax.GradientTransformation:
    """Returns each rule's optimizer under one schedule, after clipping the global gradient norm."""
    transforms = {rule.name: _of_rule(rule, learning_rate(rule, schedule)) for rule in rules}
    labels = assign_rules(rules, trainable)
    return optax.chain(
        optax.clip_by_global_norm(schedule.clip_norm), optax.partition(transforms, labels)
    )


def _of_rule(rule: OptimizerRule, rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer that the rule names, with its numbers.

    Norms never decay, whatever the rule says: in an added layer -1 is the weight that changes nothing, and
    decay would pull it to 0, where the layer speaks at full strength.
    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101).
    """
    if rule.optimizer == "sgd":
        return optax.sgd(rate, momentum=rule.momentum or None)
    return optax.adamw(rate, b1=rule.b1, b2=rule.b2, weight_decay=rule.weight_decay, mask=_decays)


def _decays(tree: Any) -> Any:
    """Returns `tree` with True at each leaf that weight decay may reach."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not str(path[-1].key).endswith("norm"), tree
    )


def learning_rate(rule: OptimizerRule, schedule: Schedule) -> optax.Schedule:
    """Returns rate(step). The first update already has a rate above zero: a one-step stage learns."""
    warmup = min(schedule.warmup_steps, max(schedule.steps - 1, 0))
    peak, final = rule.learning_rate, rule.learning_rate * schedule.final_share
    cosine = optax.cosine_decay_schedule(
        peak, max(schedule.steps - warmup, 1), alpha=final / peak if peak else 0.0
    )
    if warmup == 0:
        return cosine
    return optax.join_schedules(
        [optax.linear_schedule(peak / warmup, peak, warmup - 1), cosine], [warmup]
    )


def has_changed(before: Any, after: Any) -> bool:
    """Returns whether any leaf of two trees of the same structure differs in any bit."""
    differ = jax.jit(
        lambda a, b: jnp.any(
            jnp.stack([jnp.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))])
        )
    )
    return bool(differ(before, after))


def count(trainable: Any) -> str:
    """Returns e.g. '14 leaves, 3,796,992 parameters', for the log line every stage begins with."""
    leaves = jax.tree.leaves(trainable)
    return f"{len(leaves)} leaves, {sum(leaf.size for leaf in leaves):,} parameters"
