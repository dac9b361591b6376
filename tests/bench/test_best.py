import json
import math

import pytest

from medkor_jax import bench, cli
from medkor_jax.bench import best, checks, counts, documents, sides, useful
from medkor_jax.bench.worker import Worker, WorkerError
from medkor_jax.model.config import preset
from medkor_jax.plan.topology import CHIPS, GPUS, chip_of

SMALL = dict(device="cpu", seq_len=320, batch_size=2, repeats=2)


def test_every_case_is_measured_on_this_machine(tmp_path):
    out = tmp_path / "best.json"
    report = bench.run_best("tiny", out=str(out), against="none", **SMALL)
    rows = {row.case: row for row in report.rows}
    for case in best.CASES:
        speed, work, memory = (
            rows[case],
            rows[f"{case}, useful work (other: peak; ratio: MFU)"],
            rows[f"{case}, peak memory"],
        )
        assert speed.ours > 0 and speed.other is None and 0.05 < memory.ours < 8
        assert (
            work.other > 0.05
            and 0 < work.ratio < 5
            and work.ratio == pytest.approx(work.ours / work.other)
        )
    notes = "\n".join(report.notes)
    assert (
        "MFU = useful FLOPs / seconds / peak" in notes
        and "of a CPU none is published; a product of two float32 matrices" in notes
    )
    assert "Ours was measured alone" in notes or "no peer: --against none" in notes
    saved = json.loads(out.read_text())
    assert saved["settings"]["dtype"] == "float32" and saved["settings"]["peak"] is None
    assert len(saved["steps"]["rollout"][0]) == 2


def test_beside_transformers_the_sides_train_as_much_on_as_much():
    pytest.importorskip("peft")
    report = bench.run_best("tiny", ["exam"], against="hf", **SMALL)
    rows = {row.case: row for row in report.rows}
    assert rows["exam"].ratio > 0 and rows["exam, peak memory"].other > 0.1
    config, notes = preset("tiny"), "\n".join(report.notes)
    assert (
        f"{counts.lora_parameters(config, 16):,} trainable parameters and" in notes
        and "a step on both sides" in notes
    )
    assert "transformers with PEFT at" in notes


def test_a_device_that_is_not_there_is_a_sentence():
    with pytest.raises(
        bench.BenchError,
        match=r"--device gpu: jax cannot use one; is it there, .*medkor-jax\[cuda\]",
    ):
        bench.run_best("tiny", ["text"], device="gpu")


def test_what_does_not_fit_is_tried_in_a_smaller_way(monkeypatch):
    opened = []

    class Worker:
        side = "ours"

        def __init__(self, remat):
            self.remat, self.is_closed = remat, False
            opened.append(self)

        def call(self, order, **arguments):
            if order == "prepare_training" and self.remat != "full":
                raise WorkerError(
                    "ours: 'prepare_training' failed: XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
                )
            return {"loss": 1.0} if order == "step" else {"tokens": 7, "parameters": 3}

        def close(self):
            self.is_closed = True

    settings = best.Settings(
        "random:tiny",
        1,
        "gpu",
        "x",
        1,
        "bfloat16",
        8,
        1,
        ("none", "gate_up", "full"),
        False,
        1.0,
        1,
    )
    one = sides.Sides(settings, {})
    monkeypatch.setattr(one, "open", lambda side, remat: Worker(remat))
    ways = [("prepare_training", {"remat": remat}) for remat in settings.remat]
    worker, first = one.first_that_fits("text", "ours", "step", ways)
    assert (worker.remat, first) == ("full", {"loss": 1.0, "tokens": 7, "parameters": 3})
    assert [w.is_closed for w in opened] == [True, True, False]
    assert "text, ours: remat full; 2 larger settings did not fit" in one.notes
    with pytest.raises(WorkerError, match="RESOURCE_EXHAUSTED"):
        one.first_that_fits("text", "ours", "step", ways[:2])


def test_two_random_models_are_compared_by_what_can_be_equal():
    side = {"loss": math.log(512) + 0.1, "tokens": 64, "parameters": 10}
    checks.check_random(512, 60, 64, [side, side | {"loss": side["loss"] + 0.1}])
    for wrong, words in (
        ({"parameters": 9}, "ours trains 10 parameters, the peer 9"),
        ({"tokens": 63}, "one side trains on 63"),
        ({"loss": side["loss"] + 2}, "differ by at most"),
        ({"loss": 1.0}, "near ln V = 6.238 nats; found 1.000"),
        ({"loss": float("nan")}, "found nan"),
    ):
        with pytest.raises(bench.BenchError, match=words):
            checks.check_random(512, 60, 64, [side, side | wrong])
    checks.check_learning("text", "ours", [3.0, 2.9])
    with pytest.raises(
        bench.BenchError, match="the peer: the loss on the same batch went from 3.00000 to 3.00000"
    ):
        checks.check_learning("text", "the peer", [3.0, 3.0])


def test_a_rollout_that_the_two_passes_see_otherwise_is_refused():
    first = {"n_tokens": 6, "nats": 6.0, "gap_nats": 1e-5}
    checks.check_rollout(first, "float32", 512, 6)
    for wrong in ({"n_tokens": 5}, {"nats": 1.0}, {"gap_nats": 0.1}, {"gap_nats": float("nan")}):
        with pytest.raises(bench.BenchError):
            checks.check_rollout(first | wrong, "float32", 512, 6)


def test_a_side_that_writes_less_is_refused():
    checks.check_lengths([{"tokens": [[1, 2], [3, 4]]}], 2, 2)
    for short in ([[1, 2], [3]], [[1, 2]]):
        with pytest.raises(bench.BenchError, match="2 rows of 2 new tokens were asked for"):
            checks.check_lengths([{"tokens": [[1, 2], [3, 4]]}, {"tokens": short}], 2, 2)


def test_useful_work_is_that_of_the_documents_alone():
    config = preset("tiny")
    rows = documents.text_rows(None, config.vocab_size, n_rows=2, seq_len=32)
    one, two = (useful.training_flops(some, config, 4) for some in (rows[:1], rows))
    assert two == 2 * one
    silent = [row | {"loss": [0] * 30 + [1]} for row in rows]
    head = 4 * config.d_model * config.vocab_size
    assert two - useful.training_flops(silent, config, 4) == 2 * 30 * head
    weights = sum(i * o for i, o in counts.matrix_sizes(config))
    adapters = counts.lora_parameters(config, 4) // config.n_layers
    products = config.n_layers * 32 * (4 * weights + 6 * adapters) + 31 * head
    scores = 12 * config.n_layers * config.n_heads * config.head_dim
    assert (
        0.3 * 32 * 32 * scores <= one - products <= 32 * 32 * scores
    )  # what is seen of a square, window and causal
    prompts = [[2] * 10, [2] * 12]
    written = useful.writing_flops(prompts, 5, config)
    assert (
        written
        > (22 + 2 * 4) * 2 * config.n_layers * weights + 10 * 2 * config.d_model * config.vocab_size
    )
    assert useful.scoring_flops(prompts, 5, config, 4) > 32 * 2 * config.n_layers * (
        weights + adapters
    )


@pytest.mark.parametrize(
    "kind, chip",
    [
        ("TPU v5 lite", CHIPS["v5e"]), ("TPU v5", CHIPS["v5p"]), ("TPU v5p", CHIPS["v5p"]), ("TPU v6 lite", CHIPS["v6e"]),
        ("NVIDIA H100 80GB HBM3", GPUS[80]), ("NVIDIA H200", GPUS[141]), ("NVIDIA A100-SXM4-80GB", GPUS[40]), ("NVIDIA L4", GPUS[24]),
        ("Tesla T4", GPUS[16]), ("NVIDIA H100 PCIe", None), ("NVIDIA L40S", None), ("cpu", None),
    ],
)  # fmt: skip
def test_published_peaks_are_found_by_what_jax_calls_a_device(kind, chip):
    assert chip_of(kind) == chip


def test_the_command_asks_for_a_size(capsys):
    assert cli.main(["bench", "--device", "cpu", "--seq-len", "64"]) == 1
    assert (
        "--device, --seq-len is for the machine's own best: give --size 270m, 1b, 4b"
        in capsys.readouterr().err
    )


def test_the_peer_makes_the_same_step_with_checkpointing_and_under_autocast():
    pytest.importorskip("peft")
    rows = documents.text_rows(None, 512, n_rows=2, seq_len=32)
    shape = dict(documents=rows, batch_size=2, seq_len=32, rank=4, bos_id=2)
    with Worker(
        "peer", {"model": "random:tiny", "dtype": "bfloat16", "learning_rate": 1e-2}
    ) as peer:
        losses = []
        for rows_at_once, checkpointing in ((2, False), (1, False), (2, True)):
            prepared = peer.call(
                "prepare_training", rows_at_once=rows_at_once, checkpointing=checkpointing, **shape
            )
            assert (prepared["tokens"], prepared["parameters"]) == (
                64,
                counts.lora_parameters(preset("tiny"), 4),
            )
            losses.append([peer.call("step")["loss"] for _ in range(3)])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=0.05)
    assert all(one[-1] < one[0] for one in losses)
