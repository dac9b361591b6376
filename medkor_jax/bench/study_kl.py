"""How far the study's models have moved on English: KL(start || end) of each predicted token, nats.

    python -m medkor_jax.bench.study_kl DATA runs/study/*-[0-9]

Read in the order and shape of the held-out losses (configs/study.py), both models in float32 on one device. Written as
RUN/kl.json, a held-out loss by text, which `medkor_jax.report.study` shows beside them; a run that has one is left as it is.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp

from medkor_jax.data.rows import EMBEDDED
from medkor_jax.io.loaded_model import load
from medkor_jax.io.models import open_model
from medkor_jax.parallel.mesh import one_device
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.train.text_loss import text_loss

KL_FILE = "kl.json"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    given = parser.parse_args(arguments)
    for run in given.runs:
        if (run / KL_FILE).exists():
            print(f"{run}: measured before")
        else:
            measure(given.data, run)


def measure(data: str, run: pathlib.Path) -> None:
    """Writes the file of one run, and prints the means."""
    recipe = load_recipe(f"configs/study.py:{data},lora,0")  # what is held out is the same for all
    (phase,), corpora, mesh = recipe.phases, Corpora(recipe.drop_bad), one_device()
    texts = [source for source in recipe.held_out if source.language == "en"]
    with jax.set_mesh(mesh):
        start = load(open_model(EMBEDDED), jnp.float32, mesh)
        end = load(open_model(run / phase.name), jnp.float32, mesh)
        if not jnp.array_equal(start.params.base["embed"], end.params.base["embed"]):
            raise ValueError(f"{run}: its head is not that of {EMBEDDED}")
        found = {
            text.name: text_loss(
                end,
                mesh,
                corpora.examples((text,)),
                recipe.compute,
                batch_size=phase.train.batch_size,
                seq_len=phase.train.seq_len,
                max_tokens=recipe.held_out_tokens,
                reference=start.params,
            )
            for text in texts
        }
    (run / KL_FILE).write_text(json.dumps(found))
    print(f"{run}: " + ", ".join(f"{name} {kl['nats']:.3f}" for name, kl in found.items()))


if __name__ == "__main__":
    main()
