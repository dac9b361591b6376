"""Any weights, any exam file, one report: what `medkor eval` calls.

    report = evaluate_file("embedded", "doctor/valid.csv", mode="harness", fewshot="doctor/fewshot.csv", n_shots=5)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medkor_jax.data.exams import Question
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_questions
from medkor_jax.eval.exam import evaluate
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.eval.scores import Report
from medkor_jax.io.models import open_model
from medkor_jax.parallel.mesh import MeshShape, make_mesh


def evaluate_file(
    weights: str,
    exam: str,
    *,
    mode: str,
    split: str = "valid",
    subset: str = "",
    language: str = "",
    fewshot: str | None = None,
    n_shots: int = 0,
    limit: int = 0,
    dtype: str = "float32",
    batch_size: int = 16,
    drop_bad: bool = False,
) -> Report:
    """Returns every answer of `weights` to the questions of `exam` (a file, a hub id or "embedded").

    Raises: ValueError if the shots are not there, before the weights are loaded; BadDataError, WeightsError.
    """

    def questions(path: str, split: str, limit: int) -> list[Question]:
        source = Source(path, "exam", path, split=split, subset=subset, language=language, limit=limit)
        loaded = load_questions(source, drop_bad=drop_bad)
        for row in loaded.bad:
            print(f"left out: {row}")
        return list(loaded.rows)

    asked = questions(exam, split, limit)
    shots = []
    if n_shots:
        if fewshot is None:
            raise ValueError(f"{n_shots} shots are asked for and no few-shot file is named; give --fewshot FILE")
        shots = questions(fewshot, "fewshot", 0)[:n_shots]
        if len(shots) < n_shots:
            raise ValueError(f"{fewshot} holds {len(shots)} questions; {n_shots} shots were asked for")
    model = open_model(weights)
    mesh = make_mesh(MeshShape(data=1), jax.devices()[:1]) if jax.default_backend() == "cpu" else make_mesh(MeshShape())
    with jax.set_mesh(mesh):
        params = model.load(jnp.dtype(dtype), mesh)
        scorer = ModelScorer(params, model.config, model.tokenizer, dtype=jnp.dtype(dtype), mesh=mesh, batch_size=batch_size)
        return evaluate(
            scorer, model.tokenizer, asked, mode=mode, shots=shots, source=exam, split=split, batch_size=batch_size,
            max_positions=model.config.max_positions,
        )  # fmt: skip
