"""What earlier versions of this program left on disk, as this version writes it: a run made then
resumes now.

    record = upgraded_record(stored)        # record.json: what made a phase
    said = upgraded_stage(stored)           # stage.json: what a stage was asked for
    state = upgraded_cursor(stored)         # where a source of sampled answers stands

Plain data in, plain data out, whatever the format that it says it has; what is of today's format
comes back as it is. Files are neither read nor written here, and their digests are those of what is
stored, not of what comes out.

Format 1 spelt optimizer rules "groups", all of a reward flat, and what was switched off with the
value that says so. Record format 2 named every candidate in `upstream`, tried or not, and their
number nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

RECORD_FORMAT = 3
STAGE_FORMAT = CURSOR_FORMAT = 2

_OFF = {
    "lora.rank": 0,
    "remedy_lora.rank": 0,
    "language.kind": "",
    "retention.weight": 0.0,
    "reward.algorithm": "",
}
_RULE = {"optimizer": "adamw", "b1": 0.9, "b2": 0.98, "momentum": 0.0}  # of every rule there was
_WORTH = ("answer", "letter", "format")
_OF_ROLLOUT = (
    "group_size",
    "temperature",
    "max_new_tokens",
    "std_normalised",
    "updates_per_batch",
    "max_refills",
    "patience",
    "importance_cap",
)
_OF_POLICY = ("clip_low", "clip_high", "kl_weight")


def upgraded_record(record: dict[str, Any]) -> dict[str, Any]:
    if record.get("format") == 1:
        facts = {name: dict(_facts(record[name])) for name in ("trained", "accepted")}
        record = record | facts | {"format": 2}
    if record["format"] == 2:
        record = record | {"format": RECORD_FORMAT}
        if (n := len(record.get("upstream", ()))) > 1:
            record["judged"] = record["judged"] | {"candidates": n}
    return record


def _facts(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the facts of format 1 by their names of now; what was switched off is no fact any
    more.
    """
    has_layers = facts.get("expand.front") or facts.get("expand.back")
    for name, value in facts.items():
        stage, _, own = name.partition(".")
        if stage not in ("train", "remedy"):
            stage, own = "", name
        before = f"{stage}." if stage else ""
        if (own in _OFF and value == _OFF[own]) or (own.startswith("expand.") and not has_layers):
            continue
        if own.startswith("groups."):
            yield f"{before}rules.{own.removeprefix('groups.')}", value and _RULE | value
        elif own.startswith("reward."):
            key = own.removeprefix("reward.")
            yield from (
                (f"{before}reward.{new}", of)
                for new, of in _reward_facts(key, value, facts, before)
            )
        else:
            yield name, value


def _reward_facts(
    key: str, value: Any, facts: dict[str, Any], before: str
) -> Iterator[tuple[str, Any]]:
    if key in _OF_ROLLOUT:
        yield f"rollout.{key}", value
    elif key in _OF_POLICY:
        yield f"policy.{key}", value
    elif key in _WORTH or key == "length_penalty":
        part = "length" if key == "length_penalty" else key
        bound = facts.get(f"{before}reward.max_reasoning_tokens", 0) if part == "length" else 0
        if value:
            for name, of in _part(part, -value if part == "length" else value, bound).items():
                yield f"parts.{part}.{name}", of
    elif key != "max_reasoning_tokens":
        yield key, value


def _part(name: str, weight: float, bound: float) -> dict[str, Any]:
    return {"name": name, "weight": weight, "bound": float(bound)}


def upgraded_stage(said: dict[str, Any]) -> dict[str, Any]:
    if said.get("format", 1) != 1:
        return said
    spec, schedule, rollout, policy = (
        said["spec"],
        said["schedule"],
        said["rollout"],
        said["spec"]["policy"],
    )
    kept = ("trees", "batch_size", "seq_len", "loss_positions", "route", "upstream", "trainable")
    return (
        {name: said[name] for name in kept}
        | schedule
        | {
            "format": STAGE_FORMAT,
            "data": said["sources"],
            "rules": {rule["name"]: _RULE | rule for rule in said["groups"]},
            **{
                name: spec[name]
                for name in ("microbatches", "dropout", "next_token_weight", "dtype", "seed")
            },
            "retention": spec["retention"] if spec["retention"]["weight"] > 0 else None,
            "reward": None if rollout is None else _rollout(rollout),
            "policy": None if policy is None else {name: policy[name] for name in _OF_POLICY},
        }
    )


def _rollout(said: dict[str, Any]) -> dict[str, Any]:
    """Returns what `RewardSettings.in_force` says of the same."""
    reward = said["reward"]
    worth = {name: (reward[name], 0.0) for name in _WORTH} | {
        "length": (-reward["length_penalty"], reward["max_reasoning_tokens"])
    }
    return {
        "algorithm": said["algorithm"],
        "rollout": {name: said[name] for name in _OF_ROLLOUT},
        "form": said["form"],
        "parts": {name: _part(name, *of) for name, of in worth.items() if of[0]},
    }


def upgraded_cursor(state: dict[str, Any]) -> dict[str, Any]:
    if state.get("format", 1) != 1:
        return state
    settings = state["settings"] | {"rollouts": _rollout(state["settings"]["rollouts"])}
    return state | {"format": CURSOR_FORMAT, "settings": settings}
