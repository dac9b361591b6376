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

import contextlib
import dataclasses
import math
import re
import statistics
from typing import Any, Callable, Sequence

from medkor_jax.bench import documents, useful
from medkor_jax.bench.checks import BenchError, check_learning, check_lengths, check_random, check_rollout
from medkor_jax.bench.documents import Document
from medkor_jax.bench.peer import missing_packages
from medkor_jax.bench.report import Report, Row, compare, describe_machine
from medkor_jax.bench.runner import check_cases, run_cases
from medkor_jax.bench.worker import Worker, WorkerError
from medkor_jax.model.config import ModelConfig, preset
from medkor_jax.model.remat import KEPT, check_remat
from medkor_jax.plan.topology import chip_of

PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
GOAL_MFU, GOAL_RATIO = 0.45, 1.5  # of the text step on an accelerator
BOS = 2
_GIB = 2**30
_TOO_LARGE = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemory|out of memory")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every case runs with, once the device is known; written into the JSON as it is. peak: FLOP/s of all devices, None: measured."""

    weights: str
    repeats: int
    platform: str
    device_kind: str
    n_devices: int
    dtype: str
    seq_len: int
    batch_size: int
    remat: tuple[str, ...]
    against: bool
    peak: float | None
    new_tokens: int
    rank: int = 16
    learning_rate: float = 1e-3

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"


class Best:
    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        self.settings, self.environment = settings, environment
        self.config: ModelConfig = preset(settings.weights.removeprefix("random:"))
        self.notes: list[str] = []
        self.versions: dict[str, Any] = {}
        self.steps: dict[str, list[list[dict[str, Any]]]] = {}

    def text(self) -> list[Row]:
        s = self.settings
        rows = documents.text_rows(None, self.config.vocab_size, n_rows=s.batch_size, seq_len=s.seq_len)
        return self._train("text", rows, peer_rows=1 if s.is_cpu else s.batch_size)

    def exam(self) -> list[Row]:
        s = self.settings
        asked = documents.exam_questions(None, self.config.vocab_size, batch_size=s.batch_size, seq_len=s.seq_len)
        if not asked:
            raise BenchError(f"no question fits a row of {s.seq_len} tokens; give --seq-len 128 or more")
        return self._train("exam", asked, peer_rows=8 if s.is_cpu else len(asked))

    def retention(self) -> list[Row]:
        s = self.settings
        rows = documents.text_rows(None, self.config.vocab_size, n_rows=s.batch_size, seq_len=s.seq_len)
        return self._train("retention", rows, peer_rows=0, retention=True)

    def rollout(self) -> list[Row]:
        s, asked = self.settings, self._prompts()
        flops = useful.writing_flops(asked, s.new_tokens, self.config, s.rank) + useful.scoring_flops(asked, s.new_tokens, self.config, s.rank)
        ways = [("prepare_rollout", {"prompts": asked, "max_new_tokens": s.new_tokens, "rank": s.rank})]
        rows, (first, *_), times = self._measure("rollout", "rollout", "sampled tokens/s", s.batch_size * s.new_tokens, flops, {"ours": ways})
        check_rollout(first, s.dtype, self.config.vocab_size, s.batch_size * s.new_tokens)
        scoring = statistics.median(one["scoring_seconds"] / one["seconds"] for one in times[0])
        self.notes.append(
            f"rollout: {s.batch_size} answers of {s.new_tokens} tokens to prompts of {min(map(len, asked))} to {max(map(len, asked))}; "
            f"{scoring:.0%} of the time scores them. Decoder and training pass differ by {first['gap_nats']:.1e} nats a token; no peer"
        )
        return rows

    def decode(self) -> list[Row]:
        s, asked = self.settings, self._prompts()
        way = [("prepare_decoding", {"prompts": asked, "max_new_tokens": s.new_tokens, "pad_id": 0})]
        flops = useful.writing_flops(asked, s.new_tokens, self.config)
        rows, _, _ = self._measure(
            "decode", "generate", "new tokens/s", s.batch_size * s.new_tokens, flops, {"ours": way, "peer": way},
            check=lambda *sides: check_lengths(sides, s.batch_size, s.new_tokens),
        )  # fmt: skip
        self.notes.append(
            f"decode: {s.batch_size} rows of {s.new_tokens} new tokens; random weights of two sides write different ones, so only their "
            "number is compared. Writing is bound by reading the weights: its MFU says little"
        )
        return rows

    def _prompts(self) -> list[list[int]]:
        return documents.prompts(None, self.config.vocab_size, bos_id=BOS, n_prompts=self.settings.batch_size)

    def _train(self, case: str, batch: list[Document], *, peer_rows: int, retention: bool = False) -> list[Row]:
        s, n_tokens = self.settings, documents.n_tokens(batch)
        shape = dict(documents=batch, batch_size=s.batch_size, seq_len=s.seq_len, rank=s.rank, bos_id=BOS)
        ways = {"ours": [("prepare_training", shape | {"retention": retention, "remat": remat}) for remat in s.remat]}
        if peer_rows:
            at_once = [n for n in dict.fromkeys(max(1, peer_rows >> i) for i in range(8)) if n <= peer_rows]
            more = [("prepare_training", shape | {"rows_at_once": n, "checkpointing": kept}) for kept in (False, True) for n in at_once]
            ways["peer"] = more
        check = None if retention else lambda *sides: self._check_training(case, batch, sides)
        flops = useful.training_flops(batch, self.config, s.rank, retention)
        is_goal = case == "text" and not s.is_cpu
        rows, _, times = self._measure(
            case, "step", "tokens/s", n_tokens, flops, ways, check=check, at_least=GOAL_RATIO if is_goal else None,
            mfu=GOAL_MFU if is_goal and s.peak else None,
        )  # fmt: skip
        if not retention:
            for side, answers in zip(("ours", "the peer"), times):
                check_learning(case, side, [one["loss"] for one in answers])
        return rows

    def _check_training(self, case: str, batch: list[Document], sides: Sequence[dict[str, Any]]) -> None:
        n_losses = sum(sum(document["loss"]) for document in batch)
        check_random(self.config.vocab_size, n_losses, documents.n_tokens(batch), sides)
        said = " and ".join(f"{side['loss']:.3f}" for side in sides)
        self.notes.append(
            f"{case}: weights are random, so losses cannot be equal: first {said} nats, ln V is {math.log(self.config.vocab_size):.3f}; "
            f"{sides[0]['parameters']:,} trainable parameters and {sides[0]['tokens']:,} tokens a step"
            + (" on both sides" if len(sides) > 1 else "")
        )

    def _measure(
        self, case: str, order: str, unit: str, n_tokens: int, flops: float, ways: dict[str, list[tuple[str, dict[str, Any]]]], *,
        check: Callable[..., None] | None = None, at_least: float | None = None, mfu: float | None = None,
    ) -> tuple[list[Row], list[dict[str, Any]], list[list[dict[str, Any]]]]:  # fmt: skip
        """Returns the rows of a case, each side's first answer (warm-up, not timed) with what its preparation said, and the timed ones.

        flops: useful ones behind one answer. ways: by side, how it may be prepared; the first that fits is taken.
        """
        s = self.settings
        sides = [side for side in ways if side == "ours" or s.against]
        firsts, times, peaks, rates = [], [], [], []
        with contextlib.ExitStack() as stack:
            waiting: list[Worker] = []
            for side in sides:
                worker, first = self._first_that_fits(case, side, order, ways[side])
                stack.callback(worker.close)
                waiting.append(worker)
                firsts.append(first)
                if not s.is_cpu or side == sides[-1]:  # an accelerator has room for one side at a time
                    rounds = [[one.call(order) for one in waiting] for _ in range(s.repeats)]
                    times += [list(answers) for answers in zip(*rounds)]
                    peaks += [one.call("peak_memory_bytes") / _GIB for one in waiting]
                    rates += [one.call("matmul_rate") for one in waiting if one.side == "ours" and not s.peak]
                    for one in waiting:
                        one.close()
                    waiting = []
        if check:
            check(*firsts)
        self.steps[case] = [[{k: v for k, v in one.items() if k != "tokens"} for one in answers] for answers in times]
        seconds = [[one["seconds"] for one in answers] for answers in times]
        work = [flops / x / 1e9 for x in seconds[0]]
        peak = s.peak or rates[0]
        if len(sides) > 1:
            self.notes.append(f"{case}: transformers with PEFT at {flops / statistics.median(seconds[1]) / peak:.1%} of the peak")
        return [
            compare(case, unit, *([n_tokens / x for x in one] for one in seconds), at_least=at_least),
            compare(f"{case}, useful work (other: peak; ratio: MFU)", "GFLOP/s", work, [peak / 1e9] * len(work), at_least=mfu),
            compare(f"{case}, peak memory", "GiB", *([one] for one in peaks)),
        ], firsts, times  # fmt: skip

    def _first_that_fits(self, case: str, side: str, order: str, ways: list[tuple[str, dict[str, Any]]]) -> tuple[Worker, dict[str, Any]]:
        """Returns the worker and its first answer, joined to what its preparation said."""
        for number, (prepare, arguments) in enumerate(ways, 1):
            own = {k: v for k, v in arguments.items() if not (side == "ours" and k == "remat")}
            worker = self._open(side, arguments.get("remat", "none"))
            try:
                prepared = worker.call(prepare, **own) or {}
                first = worker.call(order)
            except BaseException as error:
                worker.close()
                if isinstance(error, WorkerError) and _TOO_LARGE.search(str(error)) and number < len(ways):
                    continue
                raise
            said = {k: arguments[k] for k in ("remat", "rows_at_once", "checkpointing") if k in arguments}
            if said:
                words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())
                self.notes.append(f"{case}, {side}: {words}" + (f"; {number - 1} larger settings did not fit" if number > 1 else ""))
            return worker, prepared | first | ({"tokens": prepared["tokens"]} if "tokens" in prepared else {})
        raise AssertionError("no way was given")

    def _open(self, side: str, remat: str) -> Worker:
        s = self.settings
        if side == "ours":
            how = dict(weights=s.weights, remat=remat, n_devices=s.n_devices)
        else:
            how = dict(model=s.weights, device="cpu" if s.is_cpu else "cuda")
        worker = Worker(side, how | dict(dtype=s.dtype, learning_rate=s.learning_rate), self.environment)
        self.versions[side] = worker.call("describe")
        return worker


CASES: dict[str, Callable[[Best], list[Row]]] = {
    "text": Best.text, "exam": Best.exam, "retention": Best.retention, "rollout": Best.rollout, "decode": Best.decode,
}  # fmt: skip


def run_best(
    model: str, cases: Sequence[str] = (), *, repeats: int = 5, out: str = "", device: str = "", dtype: str = "",
    seq_len: int | None = None, batch_size: int | None = None, remat: str = "", against: str = "",
) -> Report:  # fmt: skip
    """Returns the figures of `cases` (none named: all) of a preset's random weights, written to `out` as JSON if that is given.

    device: cpu, gpu or tpu ("": what jax finds); against: hf, none, or "" for hf where it can run. With a peer one device is used,
    else all of them.

    Raises: ValueError on an unknown case or remat; BenchError if the device is not there, the peer cannot run though it was asked
    for, or a side does not do the work; WorkerError if one of them dies.
    """
    check_cases(cases, CASES)
    if remat:
        check_remat(remat)
    machine = describe_machine()
    environment = {"JAX_PLATFORMS": PLATFORMS[device]} if device else {}
    environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"  # nothing else is on the device while ours runs
    found = _look(model, dtype, environment, device)
    is_cpu = found["platform"] == "cpu"
    has_peer, notes = _find_peer(found["platform"], against)
    n_devices = 1 if has_peer or is_cpu else found["n_devices"]
    chip = None if is_cpu else chip_of(found["device_kind"])
    settings = Settings(
        f"random:{model}", repeats, found["platform"], found["device_kind"], n_devices, found["dtype"], seq_len or (512 if is_cpu else 2048),
        batch_size or (4 if is_cpu else 8 * n_devices), (remat,) if remat else tuple(KEPT), has_peer,
        None if chip is None else chip.flops * n_devices, 32 if is_cpu else 256,
    )  # fmt: skip
    if settings.batch_size % n_devices:
        raise ValueError(f"--batch-size {settings.batch_size} is not a multiple of the {n_devices} devices")
    notes = [
        f"{model}, random weights, {settings.dtype}, {settings.batch_size} rows of {settings.seq_len} tokens, LoRA of rank {settings.rank} on "
        f"all seven matrices, on {n_devices} x {settings.device_kind}",
        f"{useful.FORMULA}. Peak: {_peak_words(chip, settings)}", *notes,
    ]  # fmt: skip
    best = Best(settings, environment)
    report = Report(dataclasses.asdict(settings), {"machine": machine, **found}, [], notes, best.steps)
    return run_cases(report, best, CASES, cases, out)


def _look(model: str, dtype: str, environment: dict[str, str], device: str) -> dict[str, Any]:
    """Returns what our side finds: platform, kind and number of devices, and the dtype it takes."""
    try:
        with Worker("ours", {"weights": f"random:{model}", "dtype": dtype, "n_devices": 0}, environment) as worker:
            found = worker.call("describe")
    except WorkerError as error:
        if not device or "backend" not in str(error).lower():
            raise
        found, said = {}, f" It says: {str(error)[:400]}"
    else:
        said = ""
    if device and found.get("platform") not in {"gpu": ("gpu", "cuda")}.get(device, (device,)):  # jax falls back to a CPU without a word
        extra = {"gpu": "cuda", "tpu": "tpu"}.get(device, "")
        advice = f"; is it there, and is jax installed for it (pip install 'medkor-jax[{extra}]')?" if extra else "."
        raise BenchError(f"--device {device}: jax cannot use one{advice}{said}")
    return found


def _find_peer(platform: str, against: str) -> tuple[bool, list[str]]:
    """Returns whether transformers with PEFT can run on the platform, and what to say.

    Raises: BenchError if it was asked for and cannot.
    """
    if against == "none":
        return False, ["no peer: --against none"]
    why = ""
    if missing := missing_packages():
        why = f"{', '.join(missing)} not installed; pip install 'medkor-jax[test]'"
    elif platform not in ("cpu", "gpu", "cuda"):
        why = f"transformers with PEFT does not run on a {platform} here"
    else:
        try:
            with Worker("peer", {"model": "random:tiny", "device": "cpu" if platform == "cpu" else "cuda"}) as worker:
                said = worker.call("describe")
        except WorkerError as error:
            why = str(error)
    if why and against:
        raise BenchError(f"--against {against}: {why}")
    if why:
        return False, [f"no peer: {why}. Ours was measured alone."]
    how = "sdpa attention; gradient checkpointing only where nothing else fits" + ("" if platform == "cpu" else "; bfloat16 under autocast, adapters float32")
    return True, [f"other: transformers {said['transformers']} with PEFT {said['peft']}, torch {said['torch']}, the same sizes made at random: {how}"]


def _peak_words(chip: Any, settings: Settings) -> str:
    if chip is not None:
        words = f"{chip.flops / 1e12:,.0f} TFLOP/s, bfloat16, dense, as published for {chip.name}"
        return words + (f", x {settings.n_devices}" if settings.n_devices > 1 else "")
    what = "of a CPU none is published" if settings.is_cpu else f"of {settings.device_kind!r} none is known here"
    return f"{what}; a product of two {settings.dtype} matrices of 2,048 squared, measured after each case, stands in"
