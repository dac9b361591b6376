"""The cases, and who runs against whom.

    run("embedded", ["text", "compile"], repeats=5, out="bench.json")

text       LoRA step, loss at every position              against transformers with PEFT
exam       LoRA step, loss on the answers only            against the same, questions padded
retention  each-layer step at its default settings        against our own text step
compile    lower and compile from abstract inputs         against the shallowest depth, and a hand count
decode     greedy continuation of exam prompts            against transformers generate
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from medkor_jax.bench import documents
from medkor_jax.bench.cases import check_cases, run_cases
from medkor_jax.bench.checks import check_counts, check_losses, check_tokens
from medkor_jax.bench.counts import RECOMPUTED_SHARE
from medkor_jax.bench.machine import find_peer
from medkor_jax.bench.report import Report, Row, compare, describe_machine
from medkor_jax.bench.worker import Worker
from medkor_jax.data.rows import EMBEDDED
from medkor_jax.io.embedded_model import EMBEDDED_MODEL
from medkor_jax.io.weights import Weights, open_weights
from medkor_jax.plan.topology import GIB

COMPILE_GROWTH = 1.5
_DEFAULT_BOS = 2  # of every Gemma tokenizer; for weights that come without one


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every case runs with; written into the JSON as it is."""

    weights: str
    repeats: int
    exam: str
    batch_size: int = 4
    seq_len: int = 512
    rank: int = 16
    dtype: str = "float32"
    learning_rate: float = 1e-4
    depths: tuple[int, ...] = (6, 12, 24, 48)
    decode_batches: tuple[int, ...] = (1, 16)
    new_tokens: int = 64
    peer_text_rows: int = (
        1  # documents the peer takes at once: its fastest of 1, 4 and all, tried on two cores
    )
    peer_exam_rows: int = 8
    our_exam_rows: tuple[int, int] = (
        8,
        256,
    )  # rows and tokens a row of the packed questions: our fastest of 512, 256 and 128


class Bench:
    """Settings, opened weights, and where the peer finds the same ones (None: no peer)."""

    def __init__(self, settings: Settings, weights: Weights, peer_model: str | None) -> None:
        self.settings, self.weights, self.peer_model = settings, weights, peer_model
        self.notes: list[str] = []
        self.versions: dict[str, Any] = {}
        self.steps: dict[
            str, list[list[dict[str, Any]]]
        ] = {}  # case -> for each side its timed answers
        tokenizer = weights.tokenizer
        self.bos_id, self.pad_id = (
            (tokenizer.bos_id, tokenizer.pad_id) if tokenizer else (_DEFAULT_BOS, 0)
        )

    def open(self, stack: contextlib.ExitStack, side: str) -> Worker:
        s = self.settings
        source = {"weights": s.weights} if side == "ours" else {"model": self.peer_model}
        worker = stack.enter_context(
            Worker(side, {**source, "dtype": s.dtype, "learning_rate": s.learning_rate})
        )
        self.versions[side] = worker.call("describe")
        return worker

    def text(self) -> list[Row]:
        s = self.settings
        rows = documents.text_rows(
            self.weights.tokenizer,
            self.weights.config.vocab_size,
            n_rows=s.batch_size,
            seq_len=s.seq_len,
        )
        return self._train("text", rows, s.peer_text_rows, at_least=1.0)

    def exam(self) -> list[Row]:
        s, tokenizer, vocab = self.settings, self.weights.tokenizer, self.weights.config.vocab_size
        rows, length = s.our_exam_rows
        chosen = documents.exam_questions(
            tokenizer, vocab, batch_size=rows, seq_len=length, exam=s.exam
        )
        self.notes.append(
            f"exam: {len(chosen)} questions a step, ours packed into {rows} rows of {length} tokens"
        )
        return self._train(
            "exam", chosen, s.peer_exam_rows, at_least=2.0, batch_size=rows, seq_len=length
        )

    def retention(self) -> list[Row]:
        s = self.settings
        rows = documents.text_rows(
            self.weights.tokenizer,
            self.weights.config.vocab_size,
            n_rows=s.batch_size,
            seq_len=s.seq_len,
        )
        with contextlib.ExitStack() as stack:
            sides = [self.open(stack, "ours"), self.open(stack, "ours")]
            for side, retention in zip(sides, (True, False)):
                side.call(
                    "prepare_training", documents=rows, retention=retention, **self._training()
                )
            times = self._alternate("retention", sides, "step")
            self.notes.append(
                "retention: other is our own text step; seconds, so smaller is better"
            )
            return [compare("retention step", "s", *_series(times, "seconds"), at_most=3.0)]

    def compile(self) -> list[Row]:
        s, rounds = self.settings, []
        shape = {"batch_size": s.batch_size, "seq_len": s.seq_len, "rank": s.rank}
        with contextlib.ExitStack() as stack:
            side = self.open(stack, "ours")
            side.call(
                "compile", depth=s.depths[0], **shape
            )  # the first one also starts the compiler
            for _ in range(s.repeats):
                rounds.append([side.call("compile", depth=depth, **shape) for depth in s.depths])
        for depth, found in zip(s.depths, rounds[0]):
            check_counts(depth, found)
        shallow = [found[0]["seconds"] for found in rounds]
        rows = [compare(f"compile, {s.depths[0]} layers", "s", shallow)]
        for i, depth in enumerate(s.depths[1:], 1):
            seconds = [found[i]["seconds"] for found in rounds]
            rows.append(
                compare(f"compile, {depth} layers", "s", seconds, shallow, at_most=COMPILE_GROWTH)
            )
        deepest = rounds[0][-1]
        rows.append(
            compare(
                f"FLOPs a step, {s.depths[-1]} layers",
                "TFLOP",
                [deepest["flops"] / 1e12],
                [deepest["hand_flops"] / 1e12],
                at_least=1.0,
                at_most=1.0 + RECOMPUTED_SHARE,
            )
        )
        self.notes.append(
            f"compile: other is {s.depths[0]} layers, for FLOPs the hand count; trainable leaves and parameters equal the hand "
            f"count at every depth ({deepest['leaves']} leaves, {deepest['parameters']:,} parameters at {s.depths[-1]} layers)"
        )
        return rows

    def decode(self) -> list[Row]:
        s, rows = self.settings, []
        asked = documents.prompts(
            self.weights.tokenizer,
            self.weights.config.vocab_size,
            bos_id=self.bos_id,
            n_prompts=max(s.decode_batches),
        )
        for batch, at_least in zip(s.decode_batches, (None, 1.5)):
            with contextlib.ExitStack() as stack:
                sides = self._both(stack)
                for side in sides:
                    side.call(
                        "prepare_decoding",
                        prompts=asked[:batch],
                        max_new_tokens=s.new_tokens,
                        pad_id=self.pad_id,
                    )
                times = self._alternate(
                    f"decode, batch {batch}", sides, "generate", check=check_tokens
                )
                rates = _rates(times, batch * s.new_tokens)
                rows.append(
                    compare(f"decode, batch {batch}", "tokens/s", *rates, at_least=at_least)
                )
                rows.append(self._peaks(f"decode, batch {batch}", sides, at_most=None))
        return rows

    def _train(
        self,
        case: str,
        batch: list[documents.Document],
        peer_rows: int,
        *,
        at_least: float,
        **shape: int,
    ) -> list[Row]:
        settings = self._training() | shape
        places = settings["batch_size"] * settings["seq_len"]
        note = f"{case}: {documents.n_tokens(batch):,} tokens a step; ours in {places:,} places"
        with contextlib.ExitStack() as stack:
            sides = self._both(stack)
            for side in sides:
                own = {"rows_at_once": peer_rows} if side.side == "peer" else {}
                prepared = side.call("prepare_training", documents=batch, **settings, **own)
                if side.side == "peer":
                    note += f", the peer in {prepared['slots']:,}, {peer_rows} documents at once"
            self.notes.append(note)
            times = self._alternate(case, sides, "step", check=check_losses)
            rates = _rates(times, documents.n_tokens(batch))
            return [
                compare(case, "tokens/s", *rates, at_least=at_least),
                self._peaks(case, sides, at_most=1.0),
            ]

    def _training(self) -> dict[str, int]:
        s = self.settings
        return {
            "batch_size": s.batch_size,
            "seq_len": s.seq_len,
            "rank": s.rank,
            "bos_id": self.bos_id,
        }

    def _both(self, stack: contextlib.ExitStack) -> list[Worker]:
        return [
            self.open(stack, side) for side in (("ours", "peer") if self.peer_model else ("ours",))
        ]

    def _alternate(
        self,
        case: str,
        sides: list[Worker],
        order: str,
        check: Callable[[Any, Any], None] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Returns each side's timed answers. The first of each is warm-up: it is checked and not timed."""
        first = [side.call(order) for side in sides]
        if check and len(sides) == 2:
            check(*first)
        rounds = [[side.call(order) for side in sides] for _ in range(self.settings.repeats)]
        times = [list(answers) for answers in zip(*rounds)]
        self.steps[case] = [
            [{k: v for k, v in answer.items() if k != "tokens"} for answer in answers]
            for answers in times
        ]
        return times

    def _peaks(self, case: str, sides: list[Worker], *, at_most: float | None) -> Row:
        peaks = [[side.call("peak_memory_bytes") / GIB] for side in sides]
        return compare(f"{case}, peak memory", "GiB", *peaks, at_most=at_most)


CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "text": Bench.text,
    "exam": Bench.exam,
    "retention": Bench.retention,
    "compile": Bench.compile,
    "decode": Bench.decode,
}


def run(
    weights: str = EMBEDDED_MODEL,
    cases: Sequence[str] = (),
    *,
    repeats: int = 5,
    out: str = "",
    exam: str = EMBEDDED,
) -> Report:
    """Returns the figures of `cases` (none named: all), and writes them to `out` as JSON if that is given.

    exam: a file of questions for the exam case, instead of the embedded ones.

    Raises: ValueError on an unknown case; BenchError if the two sides disagree; WorkerError if one of them dies.
    """
    check_cases(cases, CASES)
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least one timed step is needed")
    settings = Settings(weights, repeats, exam)
    machine = describe_machine()
    peer_model, notes = find_peer(weights)
    bench = Bench(settings, open_weights(weights), peer_model)
    report = Report(dataclasses.asdict(settings), {"machine": machine}, [], notes, bench.steps)
    return run_cases(report, bench, CASES, cases, out)


def _series(times: list[list[dict[str, Any]]], key: str) -> list[list[float]]:
    return [[answer[key] for answer in answers] for answers in times]


def _rates(times: list[list[dict[str, Any]]], n_tokens: int) -> list[list[float]]:
    return [[n_tokens / seconds for seconds in series] for series in _series(times, "seconds")]
