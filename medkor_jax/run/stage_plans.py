"""A stage of the recipe with everything it needs resolved: its data loaded, its numbers and its seed.

    plan = stage_plan(recipe, corpora, phase, phase.train, "train")        # what `train.loop` runs

What it does not do: train (`train.loop`).
"""

from __future__ import annotations

import pathlib

from medkor_jax.run.corpora import Corpora
from medkor_jax.run.phases import Phase, Recipe
from medkor_jax.run.seeds import seed_of
from medkor_jax.train.stage import Stage
from medkor_jax.train.stage_plan import StagePlan


def stage_plan(
    recipe: Recipe, corpora: Corpora, phase: Phase, stage: Stage, name: str, *, upstream: str = ""
) -> StagePlan:
    """upstream: digest of the model the stage starts from."""
    is_asked = stage.reward.is_on
    return StagePlan(
        name=f"{phase.name}/{name}",
        directory=pathlib.Path(recipe.run_dir) / phase.name / name,
        stage=stage,
        compute=recipe.compute,
        seed=seed_of(recipe.seed, phase.name, name),
        train=[(s, corpora.questions(s)) for s in stage.data]
        if is_asked
        else corpora.examples(stage.data),
        validation=corpora.examples(stage.validation),
        upstream=upstream,
        form=recipe.reasoning,
        drop_bad=recipe.drop_bad,
        log_every=recipe.log_every,
    )
