"""The peer of the study: plain LoRA as people train it, transformers with PEFT, on the very tokens of our condition "lora".

    python -m medkor_jax.bench.study_peer DATA SEED runs/study/peer-model-0

Same start, batches, rank, rates, schedule and clipping (configs/study.py); what differs is the program. Each of our packed
segments is a row of its own, so no text sees another there either. It writes the model with the adapters merged in, which
`medkor run --config configs/study.py:DATA,peer,SEED` then measures as it measures ours, and `peer.json`: losses and seconds. A
directory that is complete is left as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from medkor_jax.bench.documents import Document, pad
from medkor_jax.bench.peer import TARGETS
from medkor_jax.bench.stopwatch import n_cpus, peak_memory_bytes
from medkor_jax.io.export import export_hf
from medkor_jax.io.loaded_model import style_of
from medkor_jax.io.models import open_model
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.stage_plans import stage_plan
from medkor_jax.train.drawing import make_batches
from medkor_jax.train.stage_plan import StagePlan
from medkor_jax.train.trainable import learning_rate

DONE = "peer.json"


def segments(batch: dict[str, np.ndarray]) -> list[Document]:
    """Returns the documents of a packed batch, without bos, in the order they lie in it."""
    found: list[Document] = []
    for row, numbers in enumerate(batch["segment_ids"]):
        predicted = np.zeros(len(numbers) + 1, bool)
        at = batch["loss_positions"][row][batch["loss_weights"][row] > 0]
        predicted[at + 1] = True  # what a position predicts stands behind it
        for number in range(1, numbers.max() + 1):
            here = np.flatnonzero(numbers == number)[1:]
            found.append(
                {
                    "tokens": batch["tokens"][row, here].tolist(),
                    "loss": predicted[here].astype(int).tolist(),
                }
            )
    return found


def train(start: pathlib.Path, plan: StagePlan, batches: Iterator[Any], rank: int, scale: float):
    """Returns (the model with the adapters merged in, the loss of each step)."""
    import peft
    import torch
    import transformers

    torch.manual_seed(plan.seed)
    torch.set_num_threads(n_cpus())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        start, dtype=torch.float32, attn_implementation="sdpa"
    )
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=scale * rank,
        lora_dropout=0.0,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, settings).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    (rule,) = plan.stage.rules_in_force
    optimizer = torch.optim.AdamW(
        trainable, lr=rule.learning_rate, betas=(rule.b1, rule.b2), weight_decay=rule.weight_decay
    )
    rate, losses = learning_rate(rule, plan.stage.schedule), []
    for step in range(plan.stage.steps):
        documents = sorted(segments(next(batches)), key=lambda one: len(one["tokens"]))
        n_losses = sum(sum(one["loss"]) for one in documents)
        total = 0.0
        for at in range(0, len(documents), 4):  # small parts are its best on a CPU: `bench.peer`
            part = pad(documents[at : at + 4], bos_id=2, pad_id=0)
            given = {name: torch.from_numpy(x) for name, x in part.items()}
            loss = model(**given, use_cache=False, num_items_in_batch=n_losses).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trainable, plan.stage.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        print(f"step {step + 1} of {plan.stage.steps}, loss {total:.3f}", flush=True)
    return model.merge_and_unload(), losses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("seed", type=int)
    parser.add_argument("out", type=pathlib.Path)
    given = parser.parse_args(arguments)
    if (given.out / DONE).exists():
        print(f"{given.out}: trained before")
        return
    start = given.out.with_name(f"{given.out.name}.start")
    if not (start / "config.json").exists():
        export_hf(open_model("embedded"), start)
    recipe = load_recipe(f"configs/study.py:{given.data},lora,{given.seed}")
    (phase,) = recipe.phases
    corpora = Corpora(recipe.drop_bad)
    plan = stage_plan(recipe, corpora, phase, phase.train, "train")
    style = style_of(open_model("embedded"))
    began = time.perf_counter()
    batches = make_batches(plan, style, recipe.language_unit)
    model, losses = train(start, plan, cast("Any", batches), phase.lora.rank, phase.lora.scale)
    seconds = time.perf_counter() - began
    partial = given.out.with_name(f"{given.out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(start, partial, ignore=shutil.ignore_patterns("*.safetensors*"))
    model.save_pretrained(partial)
    said = {"seconds": seconds, "losses": losses, "peak_memory_bytes": peak_memory_bytes()}
    (partial / DONE).write_text(json.dumps(said, indent=1))
    os.replace(partial, given.out)


if __name__ == "__main__":
    main()
