"""How far the study's models have moved on English: KL(start || end) of each predicted token, nats.

    python -m medkor_jax.bench.study_kl DATA runs/study/*-[0-9]

Read in the order and shape of the held-out losses (configs/study.py), both models in float32 on one device. Written as
RUN/kl.json with the digest of the model, a held-out loss by text, which `medkor_jax.report.study` shows beside them; what was
measured of the same model is left as it is.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from medkor_jax.data.rows import EMBEDDED
from medkor_jax.io.loaded_model import LoadedModel, load
from medkor_jax.io.models import open_model
from medkor_jax.parallel.mesh import one_device
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.phases import Recipe
from medkor_jax.train.text_loss import text_loss

KL_FILE = "kl.json"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    given = parser.parse_args(arguments)
    recipe = load_recipe(f"configs/study.py:{given.data},lora,0")  # all hold out the same
    corpora, mesh = Corpora(recipe.drop_bad), one_device()
    with jax.set_mesh(mesh):
        start = load(open_model(EMBEDDED), jnp.float32, mesh)
        for run in given.runs:
            model, file = open_model(run / recipe.phases[0].name), run / KL_FILE
            if file.exists() and json.loads(file.read_text())["digest"] == model.digest:
                print(f"{run}: measured before")
                continue
            end = load(model, jnp.float32, mesh)
            if not jnp.array_equal(start.params.base["embed"], end.params.base["embed"]):
                raise ValueError(f"{run}: its head is not that of {EMBEDDED}")
            found = divergences(recipe, corpora, mesh, start, end)
            file.write_text(json.dumps({"digest": model.digest, "texts": found}))
            print(f"{run}: " + ", ".join(f"{name} {kl['nats']:.3f}" for name, kl in found.items()))


def divergences(
    recipe: Recipe, corpora: Corpora, mesh: Any, start: LoadedModel, end: LoadedModel
) -> dict[str, dict[str, Any]]:
    """Returns KL(start || end) of each English held-out text, as `text_loss` says it."""
    stage = recipe.phases[0].train
    return {
        text.name: text_loss(
            end,
            mesh,
            corpora.examples((text,)),
            recipe.compute,
            batch_size=stage.batch_size,
            seq_len=stage.seq_len,
            max_tokens=recipe.held_out_tokens,
            reference=start.params,
        )
        for text in recipe.held_out
        if text.language == "en"
    }


if __name__ == "__main__":
    main()
