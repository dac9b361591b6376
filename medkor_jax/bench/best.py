"""The machine's own best, with random weights: tokens/s, MFU and peak memory, beside transformers with PEFT where it can run.

    run_best("gemma3-4b", device="gpu").table()               # needs no network, no tokenizer, no file

text       LoRA step, rank 16 on all seven matrices, loss at every position
exam       the same on packed questions, loss on the answers only
retention  each-layer step at its default settings
rollout    answers sampled with their nats, and scored by the training pass: sampled tokens/s
decode     greedy, reading the prompts included: new tokens/s

What does not fit is tried with more made again in the backward pass (`--remat`), the peer with fewer documents at once and then
with gradient checkpointing. On a CPU the sides take turns, so that a machine that slows down slows both; an accelerator has
room for one of them, and they come one after the other.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from medkor_jax.bench import documents, useful
from medkor_jax.bench.cases import check_cases, run_cases
from medkor_jax.bench.checks import (
    BenchError,
    check_learning,
    check_lengths,
    check_random,
    check_rollout,
)
from medkor_jax.bench.documents import Document
from medkor_jax.bench.machine import PLATFORMS, Settings, find_peer_on, look, peak_words
from medkor_jax.bench.report import Report, Row, describe_machine
from medkor_jax.bench.sides import Sides
from medkor_jax.model.config import ModelConfig, preset
from medkor_jax.model.remat import KEPT, check_remat
from medkor_jax.plan.topology import chip_of

GOAL_MFU, GOAL_RATIO = 0.45, 1.5  # of the text step on an accelerator
BOS = 2


class Best:
    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        self.settings, self.sides = settings, Sides(settings, environment)
        self.config: ModelConfig = preset(settings.weights.removeprefix("random:"))
        self.notes, self.versions, self.steps = (
            self.sides.notes,
            self.sides.versions,
            self.sides.steps,
        )

    def text(self) -> list[Row]:
        s = self.settings
        rows = documents.text_rows(
            None, self.config.vocab_size, n_rows=s.batch_size, seq_len=s.seq_len
        )
        return self._train("text", rows, peer_rows=1 if s.is_cpu else s.batch_size)

    def exam(self) -> list[Row]:
        s = self.settings
        asked = documents.exam_questions(
            None, self.config.vocab_size, batch_size=s.batch_size, seq_len=s.seq_len
        )
        if not asked:
            raise BenchError(
                f"no question fits a row of {s.seq_len} tokens; give --seq-len 128 or more"
            )
        return self._train("exam", asked, peer_rows=8 if s.is_cpu else len(asked))

    def retention(self) -> list[Row]:
        s = self.settings
        rows = documents.text_rows(
            None, self.config.vocab_size, n_rows=s.batch_size, seq_len=s.seq_len
        )
        return self._train("retention", rows, peer_rows=0, retention=True)

    def rollout(self) -> list[Row]:
        s, asked = self.settings, self._prompts()
        flops = useful.writing_flops(
            asked, s.new_tokens, self.config, s.rank
        ) + useful.scoring_flops(asked, s.new_tokens, self.config, s.rank)
        ways = [
            ("prepare_rollout", {"prompts": asked, "max_new_tokens": s.new_tokens, "rank": s.rank})
        ]
        rows, (first, *_), times = self.sides.measure(
            "rollout",
            "rollout",
            "sampled tokens/s",
            s.batch_size * s.new_tokens,
            flops,
            {"ours": ways},
        )
        check_rollout(first, s.dtype, self.config.vocab_size, s.batch_size * s.new_tokens)
        scoring = statistics.median(one["scoring_seconds"] / one["seconds"] for one in times[0])
        self.notes.append(
            f"rollout: {s.batch_size} answers of {s.new_tokens} tokens to prompts of {min(map(len, asked))} to {max(map(len, asked))}; "
            f"{scoring:.0%} of the time scores them. Decoder and training pass differ by {first['gap_nats']:.1e} nats a token; no peer"
        )
        return rows

    def decode(self) -> list[Row]:
        s, asked = self.settings, self._prompts()
        way = [
            ("prepare_decoding", {"prompts": asked, "max_new_tokens": s.new_tokens, "pad_id": 0})
        ]
        flops = useful.writing_flops(asked, s.new_tokens, self.config)
        rows, _, _ = self.sides.measure(
            "decode",
            "generate",
            "new tokens/s",
            s.batch_size * s.new_tokens,
            flops,
            {"ours": way, "peer": way},
            check=lambda *sides: check_lengths(sides, s.batch_size, s.new_tokens),
        )
        self.notes.append(
            f"decode: {s.batch_size} rows of {s.new_tokens} new tokens; random weights of two sides write different ones, so only their "
            "number is compared. Writing is bound by reading the weights: its MFU says little"
        )
        return rows

    def _prompts(self) -> list[list[int]]:
        return documents.prompts(
            None, self.config.vocab_size, bos_id=BOS, n_prompts=self.settings.batch_size
        )

    def _train(
        self, case: str, batch: list[Document], *, peer_rows: int, retention: bool = False
    ) -> list[Row]:
        s, n_tokens = self.settings, documents.n_tokens(batch)
        shape = dict(
            documents=batch, batch_size=s.batch_size, seq_len=s.seq_len, rank=s.rank, bos_id=BOS
        )
        ways = {
            "ours": [
                ("prepare_training", shape | {"retention": retention, "remat": remat})
                for remat in s.remat
            ]
        }
        if peer_rows:
            at_once = [
                n for n in dict.fromkeys(max(1, peer_rows >> i) for i in range(8)) if n <= peer_rows
            ]
            more = [
                ("prepare_training", shape | {"rows_at_once": n, "checkpointing": kept})
                for kept in (False, True)
                for n in at_once
            ]
            ways["peer"] = more
        check = None if retention else lambda *sides: self._check_training(case, batch, sides)
        flops = useful.training_flops(batch, self.config, s.rank, retention)
        is_goal = case == "text" and not s.is_cpu
        rows, _, times = self.sides.measure(
            case,
            "step",
            "tokens/s",
            n_tokens,
            flops,
            ways,
            check=check,
            at_least=GOAL_RATIO if is_goal else None,
            mfu=GOAL_MFU if is_goal and s.peak else None,
        )
        if not retention:
            for side, answers in zip(("ours", "the peer"), times):
                check_learning(case, side, [one["loss"] for one in answers])
        return rows

    def _check_training(
        self, case: str, batch: list[Document], sides: Sequence[dict[str, Any]]
    ) -> None:
        n_losses = sum(sum(document["loss"]) for document in batch)
        check_random(self.config.vocab_size, n_losses, documents.n_tokens(batch), sides)
        said = " and ".join(f"{side['loss']:.3f}" for side in sides)
        self.notes.append(
            f"{case}: weights are random, so losses cannot be equal: first {said} nats, ln V is {math.log(self.config.vocab_size):.3f}; "
            f"{sides[0]['parameters']:,} trainable parameters and {sides[0]['tokens']:,} tokens a step"
            + (" on both sides" if len(sides) > 1 else "")
        )


CASES: dict[str, Callable[[Best], list[Row]]] = {
    "text": Best.text,
    "exam": Best.exam,
    "retention": Best.retention,
    "rollout": Best.rollout,
    "decode": Best.decode,
}


def run_best(
    model: str,
    cases: Sequence[str] = (),
    *,
    repeats: int = 5,
    out: str = "",
    device: str = "",
    dtype: str = "",
    seq_len: int | None = None,
    batch_size: int | None = None,
    remat: str = "",
    against: str = "",
) -> Report:
    """Returns the figures of `cases` (none named: all) of a preset's random weights, written to `out` as JSON if that is given.

    device: cpu, gpu or tpu ("": what jax finds); against: hf, none, or "" for hf where it can run. With a peer one device is used,
    else all of them.

    Raises: ValueError on an unknown case or remat; BenchError if the device is not there, the peer cannot run though it was asked
    for, or a side does not do the work; WorkerError if one of them dies.
    """
    check_cases(cases, CASES)
    check_remat(remat or "none")
    machine = describe_machine()
    # nothing else is on the device while ours runs
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    environment |= {"JAX_PLATFORMS": PLATFORMS[device]} if device else {}
    found = look(model, dtype, environment, device)
    is_cpu = found["platform"] == "cpu"
    has_peer, notes = find_peer_on(found["platform"], against)
    n_devices = 1 if has_peer or is_cpu else found["n_devices"]
    chip = None if is_cpu else chip_of(found["device_kind"])
    settings = Settings(
        f"random:{model}",
        repeats,
        found["platform"],
        found["device_kind"],
        n_devices,
        found["dtype"],
        seq_len or (512 if is_cpu else 2048),
        batch_size or (4 if is_cpu else 8 * n_devices),
        (remat,) if remat else tuple(KEPT),
        has_peer,
        None if chip is None else chip.flops * n_devices,
        32 if is_cpu else 256,
    )
    if settings.batch_size % n_devices:
        raise ValueError(
            f"--batch-size {settings.batch_size} is not a multiple of the {n_devices} devices"
        )
    notes = [
        f"{model}, random weights, {settings.dtype}, {settings.batch_size} rows of {settings.seq_len} tokens, LoRA of rank {settings.rank} on "
        f"all seven matrices, on {n_devices} x {settings.device_kind}",
        f"{useful.FORMULA}. Peak: {peak_words(chip, settings)}",
        *notes,
    ]
    best = Best(settings, environment)
    versions = {"machine": machine, **found}
    report = Report(dataclasses.asdict(settings), versions, [], notes, best.steps)
    return run_cases(report, best, CASES, cases, out)
