"""What would stop a run is said before it, in one table."""

import collections
import pathlib
import shutil

import huggingface_hub
import pytest

from medkor_jax import cli
from medkor_jax.commands import capacity, preflight
from medkor_jax.data.contents import files_digest
from medkor_jax.io import download
from medkor_jax.parallel import hosts
from medkor_jax.run.config_file import make_recipe

STAGE = dict(
    trees=("lora",), data=dict(text=dict(kind="text", path="embedded", language="en", subset="train", limit=20)), steps=2, batch_size=4, seq_len=64,
    warmup_steps=0, rules=dict(lora=dict(pattern="lora/.*", learning_rate=1e-3)),
)  # fmt: skip
ROWS = (
    "versions",
    "devices",
    "all-reduce",
    "run directory",
    "data",
    "disk",
    "memory",
    "order",
    "parts",
    "licences",
    "leaks",
    "options",
    "gates",
    "lengths",
    "batches",
)


@pytest.fixture
def config(tmp_path, tiny_base_dir):
    gate = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
    return dict(
        run_dir=str(tmp_path / "run"), weights=str(tiny_base_dir), run=("phase0",), dtype="float32", param_dtype="float32",
        exams=dict(english=dict(source=dict(path="embedded", language="en", split="valid", limit=8), batch_size=8)),
        phase0=dict(lora=dict(rank=2, alpha=4.0, targets=("q",)), merge=True, exam="english", gate=gate, **STAGE),
    )  # fmt: skip


def look(config):
    return {finding.what: finding for finding in preflight.preflight(make_recipe(config)).findings}


def test_a_config_that_would_run_is_clear_and_nothing_is_left(config, tmp_path):
    report = preflight.preflight(make_recipe(config))
    assert report.is_clear, report.table()
    assert {*ROWS, f"weights {config['weights']}"} == {finding.what for finding in report.findings}
    assert list((tmp_path / "run").iterdir()) == []
    found = {finding.what: finding.found for finding in report.findings}
    assert "4 devices sum right" in found["all-reduce"] and "phase0/train" in found["memory"]


def test_nothing_is_fetched_to_look_at_weights_on_the_hub(config, monkeypatch):
    """The hub would give them; what needs their tokenizer is said to be left out, what needs their sizes is not."""
    monkeypatch.setattr(download, "check_access", lambda *_: None)
    for module in (preflight, capacity):
        monkeypatch.setattr(module, "open_model", lambda name: pytest.fail(f"{name} was opened"))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("a download")
    )
    config["weights"], config["phase0"]["seq_len"] = "google/gemma-3-1b-it", 64
    found = look(config)
    assert found["weights google/gemma-3-1b-it"].found == "the hub gives them"
    assert (
        "GB for checkpoints" in found["disk"].found + found["disk"].trouble
        and "about" in found["memory"].found + found["memory"].trouble
    )
    assert found["batches"].found.startswith(
        "not looked at: google/gemma-3-1b-it is still on the hub"
    )
    config["weights"] = "somebody/unheard-of"
    assert look(config)["disk, memory"].found.startswith(
        "not looked at: the sizes of somebody/unheard-of are not known"
    )


def test_a_large_candidate_is_listed_as_only_if(config, tmp_path, monkeypatch):
    """It stops nothing: not where the hub would not give it, nor where it is not there at all."""
    gate = dict(reading="absolute", threshold=0.4, on_failure="continue", allow_chance=True)
    large = "google/medgemma-27b-text-it"
    config["phase1"] = dict(exam="english", gate=gate, candidates=("phase0", f"phase0 on {large}"))
    config["run"] = config["phases"] = ("phase0", "phase1")
    monkeypatch.setattr(download, "is_cached", lambda *_: False)

    def refused(*_):
        raise ValueError("its licence gate is closed to you")

    for access, words in (
        (lambda *_: None, "the hub gives them"),
        (refused, "NOT TO BE HAD NOW: its licence gate is closed to you"),
    ):
        monkeypatch.setattr(download, "check_access", access)
        report = preflight.preflight(make_recipe(config))
        found = {finding.what: finding.found for finding in report.findings}
        assert report.is_clear, report.table()
        assert found[f"weights {large}"] == f"only if phase0 does not pass phase1: {words}"
        assert f"phase1: phase0 on {large} (27.01B), opened only if phase0 does" in found["order"]
        # 27.01B in float32
        assert "only if phase0 does not pass phase1: 108.0 GB more" in found["disk"]
    config["phase1"]["candidates"] = ("phase0", f"phase0 on {tmp_path}/a/b/gone")
    report = preflight.preflight(make_recipe(config))
    found = {finding.what: finding.found for finding in report.findings}
    assert report.is_clear and found[f"weights {tmp_path}/a/b/gone"].endswith("NOT THERE")


def wrong_batch(config, _):
    config["phase0"]["batch_size"] = 6


def no_file(config, _):
    config["phase0"]["data"] = dict(text=dict(kind="text", path="not/here.jsonl", language="en"))


def no_weights(config, _):
    config["weights"] = "not/here"


def run_dir_is_a_file(config, tmp_path):
    (tmp_path / "run").write_text("")


def rows_too_long(config, _):
    config["phase0"]["seq_len"] = 4
    config["phase0"]["data"] = dict(exam=dict(kind="exam", path="embedded", language="en", limit=8))


@pytest.mark.parametrize(
    ("spoil", "row", "words"),
    [
        (wrong_batch, "devices", "batch_size 6 is not a multiple of 4"),
        (no_file, "data", "not/here.jsonl is not there"),
        (no_weights, "weights not/here", "not/here"),
        (run_dir_is_a_file, "run directory", "run"),
        (rows_too_long, "batches", "4"),
    ],
)
def test_what_would_fail_later_fails_now(config, tmp_path, spoil, row, words):
    spoil(config, tmp_path)
    found = look(config)
    assert words in found[row].trouble


def test_a_full_disk_and_a_small_device_are_found(config, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1e9, 1e9, 1e3))
    monkeypatch.setattr(capacity, "_device_memory", lambda: (1e4, "on it"))
    found = look(config)
    assert (
        "name a run_dir with more room" in found["disk"].trouble
        and "Take a smaller batch" in found["memory"].trouble
    )


def test_the_disk_counts_optimizer_checkpoints_and_the_merged_base(config, monkeypatch):
    """By hand: base 4 bytes a number; LoRA q of 7 layers, rank 2: A [7, 32, 2], B [7, 2, 64]; weights and two moments, twice; once more as adapters."""
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 0))
    lora = 4 * 7 * 2 * (32 + 64)
    base = 4 * (1024 * 32 + 32 + 7 * (32 * 64 * 2 + 2 * 32 * 32 + 3 * 32 * 64 + 4 * 32 + 2 * 16))
    said = look(config)["disk"].trouble
    assert said.startswith(f"{(base + lora * 3 * 2 + lora) / 1e9:.1f} GB")
    recipe = make_recipe(config)
    assert capacity.needed_bytes(recipe) == pytest.approx(base + lora * 3 * 2 + lora)


def test_a_base_in_int8_is_merged_into_a_file_of_bfloat16(config):
    """What lies in memory is smaller than what is written: the disk is asked for the latter."""
    said = {
        dtype: capacity.needed_bytes(make_recipe(config | {"param_dtype": dtype}))
        for dtype in ("float32", "bfloat16", "int8")
    }
    assert said["float32"] > said["bfloat16"] == said["int8"]


def test_one_host_with_other_versions_is_trouble_on_all(config, monkeypatch):
    monkeypatch.setattr(
        hosts,
        "collect",
        lambda name, value: (
            [value, {**value, "jax": "0.1"}] if isinstance(value, dict) else [value]
        ),
    )
    monkeypatch.setattr(hosts, "name_of", lambda process: f"host{process}")
    assert "versions is not the same on all hosts" in look(config)["versions"].trouble


def test_the_command_ends_with_1_where_something_would_fail(config, tmp_path, capsys):
    config["phase0"]["batch_size"] = 6
    file = tmp_path / "config.py"
    file.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config!r})\n"
    )
    assert cli.main(["preflight", "--config", str(file)]) == 1
    assert (
        cli.main(["run", "--config", str(file), "--preflight"]) == 1
        and not (tmp_path / "run/phase0").exists()
    )
    said = capsys.readouterr().out
    assert "devices   FAILS  batch_size 6" in said and said.endswith(
        "this run would not get through\n"
    )


def test_the_code_that_hosts_must_have_alike_is_the_whole_package(config, monkeypatch):
    seen = {}
    monkeypatch.setattr(preflight, "require_same", seen.setdefault)
    preflight._versions()
    package = pathlib.Path(cli.__file__).parent
    assert seen["versions"]["code"] == files_digest(package.rglob("*.py"), package)[:12]
