"""A stage and what was resolved for it: what the loop runs, and what it says of itself on disk.

    plan = stage_plan(recipe, corpora, phase, phase.train, "train")     # in `run.stage_plans`
    claim(plan, loaded, trained)        # writes stage.json, or refuses what was begun otherwise

It repeats nothing that the stage says, and neither reads data nor trains.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.question import Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import Example, Source
from medkor_jax.io.files import read_json_file, write_json
from medkor_jax.io.loaded_model import LoadedModel
from medkor_jax.io.old_formats import STAGE_FORMAT, upgraded_stage
from medkor_jax.parallel import hosts
from medkor_jax.parallel.hosts import say
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import StepSpec, step_spec
from medkor_jax.train.trainable import count

Corpus = Sequence[tuple[Source, Sequence[Example] | Sequence[Question]]]

_MAY_CHANGE = (
    "save_every",
    "keep_last",
    "spike_nats",
    "on_spike",
    "validation",
    "validate_every",
    "take",
)  # under a stage that has begun


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """train, validation: the data that was read, documents or, with a reward, questions. form: how
    reasoning is written.

    upstream: digest of the model that the stage starts from. drop_bad: rows that do not fit are
    left out, not refused.
    """

    name: str
    directory: pathlib.Path
    stage: Stage
    compute: ComputeSettings
    seed: int
    train: Corpus
    validation: Corpus
    upstream: str
    form: ReasoningFormat = ReasoningFormat()
    drop_bad: bool = False
    log_every: int = 10

    @property
    def spec(self) -> StepSpec:
        return step_spec(self.stage, self.compute, self.seed)


def claim(plan: StagePlan, loaded: LoadedModel, trained: Any) -> None:
    """Writes what this stage is, or checks that an earlier start of it was the same.

    Raises: ValueError, naming what differs.
    """
    said = json.loads(json.dumps(said_of(plan, loaded.language_unit, trained, loaded.style.digest)))
    path = plan.directory / "stage.json"
    before = hosts.first(path, lambda: read_json_file(path) if path.exists() else None)
    if before is not None:
        before = upgraded_stage(before)
        differing = [
            f"{k}: was {before.get(k)!r}, is {v!r}" for k, v in said.items() if before.get(k) != v
        ]
        if differing:
            raise ValueError(
                f"{plan.directory} was started with other settings ({'; '.join(differing)[:600]}). "
                "Give back those "
                "settings, use another run_dir, or start the phase again with --restart"
            )
    else:
        write_json(path, said)
    say(
        f"{plan.name}: training {', '.join(plan.stage.trees)} ({said['trainable']}), "
        f"{plan.stage.steps} steps"
    )


def said_of(
    plan: StagePlan, language_unit: str, trained: Any, style_digest: str = ""
) -> dict[str, Any]:
    """Returns all that decides what the stage learns, as plain data; what is switched off is
    None.
    """
    stage, has_policy_loss = plan.stage, plan.stage.reward.has_policy_loss
    settings = {
        field.name: getattr(stage, field.name)
        for field in dataclasses.fields(stage)
        if field.name not in _MAY_CHANGE
    }
    settings |= {
        "trees": sorted(stage.trees),
        "rules": {rule.name: dataclasses.asdict(rule) for rule in stage.rules_in_force},
        "next_token_weight": 0.0 if has_policy_loss else stage.next_token_weight,
        "reward": stage.reward.in_force(plan.form),
        "policy": stage.reward.policy if has_policy_loss else None,
    }
    resolved = {
        "format": STAGE_FORMAT,
        "dtype": plan.compute.dtype,
        "seed": plan.seed,
        "route": language_unit,
        "style": style_digest or None,
        "upstream": plan.upstream,
        "trainable": count(trained),
    }
    return {name: _plain(value) for name, value in settings.items()} | resolved


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Source):
        return value.settings()
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    return dataclasses.asdict(value) if getattr(value, "is_on", True) else None
