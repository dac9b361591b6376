"""Which leaves learn: one description for gradients, optimizer state and checkpoints.

    trainable, frozen = split(params, trees=("lang", "lora"))
    optimizer = make_optimizer((Group("lora", r"lora/.*", 1e-4), Group("lang", r"lang/.*", 1e-3)), trainable, ...)
    params = join(trainable, frozen)

Whole trees train or do not. What is not in `trainable` is not differentiated, has no optimizer state and
is not saved again: there is no mask to get wrong.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Annotated, Any, Sequence

import jax
import jax.numpy as jnp
import optax

from medkor_jax.model.params import Params, Tree, leaf_paths

TRAINABLE_TREES = ("lora", "lang", "expand")


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves whose path fully matches `pattern` learn at `learning_rate` (peak) with `weight_decay`."""

    name: str
    """What it is called in messages and in the log; in a config, its key."""
    pattern: str
    """A regular expression for the whole path of a leaf, such as "lora/.*" or "lang/vector"."""
    learning_rate: Annotated[float, "> 0"]
    """The highest rate, reached at the end of the warm-up."""
    weight_decay: Annotated[float, ">= 0", "< 1"] = 0.0
    """adamw: share of a weight taken away a step, times the learning rate; norms never decay. 0:
    none."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the group's rate, then a cosine down to `final_share` of it, over `steps` updates."""

    steps: int
    warmup_steps: int = 0
    final_share: float = 0.1
    clip_norm: float = 1.0


def split(params: Params, trees: Sequence[str]) -> tuple[dict[str, Tree], Params]:
    """Returns ({tree name: tree}, the rest: `params` with those trees emptied).

    Raises: ValueError if a tree is not trainable, or has nothing in it to train.
    """
    for name in trees:
        if name not in TRAINABLE_TREES:
            raise ValueError(f"tree {name!r} cannot train; choose from {', '.join(TRAINABLE_TREES)}")
        if not jax.tree.leaves(getattr(params, name)):
            raise ValueError(f"tree {name!r} is empty: nothing would train. Add it in the phase's `adapt` first")
    if not trees:
        raise ValueError("no tree named to train")
    return {name: getattr(params, name) for name in trees}, params.replace(**{name: {} for name in trees})


def join(trainable: dict[str, Tree], frozen: Params) -> Params:
    return frozen.replace(**trainable)


def assign_groups(groups: Sequence[Group], trainable: dict[str, Tree]) -> dict[str, Tree]:
    """Returns `trainable` with each leaf replaced by the name of its group.

    Raises: ValueError naming every leaf that no rule, or more than one, matches, and any rule without a leaf.
    """
    repeated = [name for name, n in collections.Counter(group.name for group in groups).items() if n > 1]
    if repeated:
        raise ValueError(f"optimizer groups share the name {repeated[0]!r}; each needs its own")
    matches = {
        path: [group.name for group in groups if re.fullmatch(group.pattern, path)] for path in leaf_paths(trainable)
    }
    wrong = {path: names for path, names in matches.items() if len(names) != 1}
    if wrong:
        lines = [f"{path}: {' and '.join(names) or 'no rule'}" for path, names in sorted(wrong.items())]
        raise ValueError("every trainable leaf needs exactly one optimizer rule; found " + "; ".join(lines[:8]))
    idle = {group.name for group in groups} - {names[0] for names in matches.values()}
    if idle:
        raise ValueError(f"optimizer rules {sorted(idle)} match no trainable leaf; trees: {sorted(trainable)}")
    treedef = jax.tree.structure(trainable)
    return jax.tree.unflatten(treedef, [matches[path][0] for path in leaf_paths(trainable)])


def make_optimizer(
    groups: Sequence[Group], schedule: Schedule, trainable: dict[str, Tree]
) -> optax.GradientTransformation:
    """Returns AdamW for each group under one schedule, after clipping the global gradient norm.

    Norms never decay, whatever their group says: in an added layer -1 is the weight that changes nothing, and
    decay would pull it to 0, where the layer speaks at full strength.
    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101); b2 0.98 as is usual for short fine-tuning.
    """
    labels = assign_groups(groups, trainable)
    transforms = {
        group.name: optax.adamw(
            learning_rate(group, schedule), b1=0.9, b2=0.98, weight_decay=group.weight_decay, mask=_decays
        )
        for group in groups
    }
    return optax.chain(optax.clip_by_global_norm(schedule.clip_norm), optax.partition(transforms, labels))


def _decays(tree: Any) -> Any:
    """Returns `tree` with True at each leaf that weight decay may reach."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not str(path[-1].key).endswith("norm"), tree)


def learning_rate(group: Group, schedule: Schedule) -> optax.Schedule:
    """Returns rate(step). The first update already has a rate above zero: a one-step stage learns."""
    warmup = min(schedule.warmup_steps, max(schedule.steps - 1, 0))
    peak, final = group.learning_rate, group.learning_rate * schedule.final_share
    cosine = optax.cosine_decay_schedule(peak, max(schedule.steps - warmup, 1), alpha=final / peak if peak else 0.0)
    if warmup == 0:
        return cosine
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), cosine], [warmup])


def has_changed(before: Any, after: Any) -> bool:
    """Returns whether any leaf of two trees of the same structure differs in any bit."""
    differ = jax.jit(lambda a, b: jnp.any(jnp.stack([jnp.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))])))
    return bool(differ(before, after))


def count(trainable: Any) -> str:
    """Returns e.g. '14 leaves, 3,796,992 parameters', for the log line every stage begins with."""
    leaves = jax.tree.leaves(trainable)
    return f"{len(leaves)} leaves, {sum(leaf.size for leaf in leaves):,} parameters"
