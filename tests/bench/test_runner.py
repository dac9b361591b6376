import json

import pytest

from medkor_jax import bench
from medkor_jax.bench import BenchError, checks, documents, machine, runner
from medkor_jax.bench.report import compare
from medkor_jax.bench.worker import Worker, WorkerError

TINY = "random:tiny"


@pytest.fixture(scope="module")
def ours():
    with Worker("ours", {"weights": TINY, "learning_rate": 1e-2}) as worker:
        yield worker


def test_our_worker_trains_what_it_is_given(ours):
    rows = documents.text_rows(None, 512, n_rows=2, seq_len=32)
    prepared = ours.call(
        "prepare_training", documents=rows, batch_size=2, seq_len=32, rank=4, bos_id=2
    )
    assert prepared["loss_positions"] == 32
    steps = [ours.call("step") for _ in range(6)]
    losses = [step["loss"] for step in steps]
    assert 5.5 < losses[0] < 7.0  # ln 512 = 6.24, before anything is learnt
    assert losses[-1] < losses[0]
    assert all(step["seconds"] > 0 for step in steps)
    assert 50e6 < ours.call("peak_memory_bytes") < 4e9


def test_our_worker_decodes_as_many_tokens_as_asked(ours):
    ours.call("prepare_decoding", prompts=[[2, 5, 6], [2, 9]], max_new_tokens=5, pad_id=0)
    assert [len(row) for row in ours.call("generate")["tokens"]] == [5, 5]


def test_a_failing_order_is_a_sentence_and_the_worker_goes_on(ours):
    with pytest.raises(WorkerError, match=r"ours: 'nonsense' failed: AttributeError"):
        ours.call("nonsense")
    assert ours.call("describe")["device"]


def test_a_worker_that_dies_is_reported(tmp_path):
    with pytest.raises(WorkerError, match="no weights are called"):
        Worker("ours", {"weights": str(tmp_path / "absent")})


def test_without_a_peer_ours_is_measured_alone(monkeypatch):
    monkeypatch.setattr(machine, "missing_packages", lambda: ["peft"])
    model, notes = machine.find_peer("embedded")
    assert model is None
    assert "peft not installed" in notes[0] and "pip install" in notes[0]


def test_unknown_case_names_the_nearest():
    with pytest.raises(ValueError, match="'texts' is none of .*nearest: 'text'"):
        bench.run(TINY, ["texts"])


def test_a_case_that_fails_loses_nothing_measured_before(monkeypatch, tmp_path):
    row = compare("first", "s", [1.0])

    def fail(bench):
        raise BenchError("the sides differ")

    monkeypatch.setattr(runner, "CASES", {"first": lambda bench: [row], "second": fail})
    with pytest.raises(
        BenchError, match=r"(?s)second: the sides differ; measured before that:.*first"
    ):
        runner.run(TINY, out=str(tmp_path / "figures.json"))
    assert [one["case"] for one in json.loads((tmp_path / "figures.json").read_text())["rows"]] == [
        "first"
    ]


def test_sides_that_disagree_are_not_compared():
    checks.check_losses({"loss": 3.0}, {"loss": 3.0005})
    with pytest.raises(bench.BenchError, match="3.000000 here and 3.002000 in transformers"):
        checks.check_losses({"loss": 3.0}, {"loss": 3.002})
    with pytest.raises(bench.BenchError):
        checks.check_losses({"loss": float("nan")}, {"loss": 3.0})
    checks.check_tokens({"tokens": [[1, 2, 3]]}, {"tokens": [[1, 2, 3]]})
    with pytest.raises(bench.BenchError, match="only 67%"):
        checks.check_tokens({"tokens": [[1, 2, 3]]}, {"tokens": [[1, 2, 4]]})


def test_missing_work_is_found():
    right = {
        "leaves": 14,
        "hand_leaves": 14,
        "parameters": 9,
        "hand_parameters": 9,
        "flops": 100,
        "hand_flops": 100,
    }
    checks.check_counts(6, right)
    with pytest.raises(bench.BenchError, match="6 layers: 0 trainable leaves, 14 by hand"):
        checks.check_counts(6, right | {"leaves": 0})
    with pytest.raises(bench.BenchError, match="compiled away"):
        checks.check_counts(6, right | {"flops": 99})
