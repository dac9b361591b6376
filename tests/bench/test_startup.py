import os
import subprocess
import sys

import pytest

from medkor_jax.bench import startup, text_source
from medkor_jax.run.config_file import load_recipe


def test_its_config_is_one_that_run_takes(tmp_path):
    (tmp_path / "start.py").write_text(
        startup._config("/data/text.jsonl", "/data/exam.jsonl", "embedded", str(tmp_path / "run")),
        "utf-8",
    )
    recipe = load_recipe(str(tmp_path / "start.py"))
    (source,) = recipe.phases[0].train.data
    assert (source.path, source.kind, recipe.phases[0].train.steps) == (
        "/data/text.jsonl",
        "text",
        1,
    )
    assert [exam.source.path for exam in recipe.exams] == [
        "/data/exam.jsonl"
    ] and recipe.weights == "embedded"


def test_memory_and_cpu_are_those_of_the_process_and_of_what_it_started():
    hold = "import subprocess, sys; x = bytearray(60 * 2**20); subprocess.run([sys.executable, '-c', sys.argv[1]]); print('done', flush=True); sys.stdin.read()"
    child = "import time; y = bytearray(80 * 2**20); t = time.process_time()\nwhile time.process_time() < t + 0.6: pass"
    process = subprocess.Popen(
        [sys.executable, "-c", hold, child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        together = 0
        while len(startup._family(process.pid)) < 2 or together < 140e6:
            assert process.poll() is None
            together = sum(map(startup._resident_bytes, startup._family(process.pid)))
        process.stdout.readline()
        assert (
            startup._cpu_seconds(process.pid) > 0.5 and startup._resident_bytes(process.pid) > 60e6
        )
    finally:
        process.kill()
        process.wait()
    assert startup._resident_bytes(process.pid) == 0 == startup._cpu_seconds(process.pid)


@pytest.mark.slow
def test_the_second_start_reads_and_compares_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    exam = text_source.write(tmp_path / "a.jsonl", 40)
    first, second = startup.measure(tmp_path / "a.jsonl", exam, cache=tmp_path / "cache")
    assert (
        first["kept_gb"] == second["kept_gb"] > 0.03
        and second["cpu_seconds"] < first["cpu_seconds"]
    )
    assert sorted(
        kind for kind in os.listdir(tmp_path / "cache") if kind in ("rows", "compared")
    ) == ["compared", "rows"]
    assert all(
        len([*(tmp_path / "cache" / kind).glob("*.lock")]) == 1 for kind in ("rows", "compared")
    )
