"""The metrics file holds every step once, whatever was cut off."""

import json
import math

import numpy as np

from medkor_jax.train.metrics import MetricsLog, read_metrics


def test_rows_read_back_arrays_and_numbers(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.note({"compiled": 1.5, "at_step": 1})
    log.write(1, {"loss": np.float32(0.5), "layers": np.array([1, 2])})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5, "layers": [1.0, 2.0]}]


def test_what_is_not_finite_is_null_so_that_the_file_stays_json(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"loss": math.nan, "layers": [math.inf, 1.0]})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == {
        "step": 1,
        "loss": None,
        "layers": [None, 1.0],
    }


def test_resuming_drops_later_steps_their_notes_and_a_half_line(tmp_path):
    first = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        first.note({"compiled": float(step), "at_step": step})
        first.write(step, {"loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    again = MetricsLog(tmp_path, 2)
    again.write(3, {"loss": 9.0})
    again.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 9.0),
    ]
    assert '"at_step": 3' not in (tmp_path / "metrics.jsonl").read_text()


def test_scalars_reach_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"validation_nats": 0.5})
    log.close()
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").glob("events*"))
    assert b"validation_nats" in events
