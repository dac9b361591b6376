"""How long a run takes to its first training step, and how much memory: the first time, and when nothing has changed.

    python -m medkor_jax.bench.text_source /tmp/su/text.jsonl --megabytes 2000
    python -m medkor_jax.bench.startup /tmp/su/text.jsonl --cache /tmp/su/cache

Each start is `medkor run` again: it trains on the source, an exam judges, leaks are refused. The model is a random one of seven
layers with the embedded tokenizer (so that the time is that of the data), or `--weights embedded`. Time counts from the start of
the interpreter to the line that the first step writes. Memory is the resident size of all processes together, looked at ten
times a second; CPU seconds are those of all of them, which say more where the machine is busy. The operating system may hold
the source in memory: beside the times stands how much was read from disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

_LOOK_SECONDS = 0.1


def measure(
    source: pathlib.Path,
    exam: pathlib.Path,
    *,
    cache: pathlib.Path,
    weights: str = "",
    starts: int = 2,
) -> list[dict[str, Any]]:
    """Returns, for each start in turn, the seconds to the first step and the peak of resident memory. Empties `cache` first.

    Raises: RuntimeError with what the run said, if one ends before its first step.
    """
    shutil.rmtree(cache, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="medkor-startup-") as own:
        place = pathlib.Path(own)
        weights = weights or _make_tiny(place / "base")
        found = []
        for n in range(starts):
            run_dir, config = place / f"run{n}", place / f"start{n}.py"
            config.write_text(
                _config(str(source.resolve()), str(exam.resolve()), weights, str(run_dir)),
                encoding="utf-8",
            )
            found.append(_watch(config, run_dir, cache))
        return found


def _config(source: str, exam: str, weights: str, run_dir: str) -> str:
    """Returns the text of a config file that trains one step on the source."""
    config = {
        "run_dir": run_dir,
        "weights": weights,
        "run": ("phase0",),
        "dtype": "float32",
        "param_dtype": "float32",
        "remat": "none",
        "exams": {"judged": {"source": {"path": exam}, "batch_size": 16}},
        "phase0": {
            "lora": {"rank": 2, "alpha": 4.0, "targets": ("q", "down")},
            "trees": ("lora",),
            "exam": "judged",
            "gate": {
                "reading": "absolute",
                "threshold": 1.0,
                "on_failure": "continue",
                "allow_chance": True,
            },
            "data": {"text": {"kind": "text", "path": source}},
            "steps": 1,
            "batch_size": 4,
            "seq_len": 256,
            "warmup_steps": 0,
            "rules": {"lora": {"pattern": "lora/.*", "learning_rate": 1e-3}},
        },
    }
    return f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config!r})\n"


def _watch(config: pathlib.Path, run_dir: pathlib.Path, cache: pathlib.Path) -> dict[str, Any]:
    first_step = run_dir / "phase0" / "train" / "metrics.jsonl"
    command = [sys.executable, "-m", "medkor_jax.cli", "run", "--config", str(config)]
    root = str(pathlib.Path(__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"MEDKOR_CACHE": str(cache), "PYTHONPATH": paths}
    peak = together = read = 0
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            while not (first_step.exists() and '"step": 1' in first_step.read_text()):
                if process.poll() is not None:
                    said.seek(0)
                    raise RuntimeError(
                        f"the run ended with {process.returncode}: {said.read().decode(errors='replace')[-2000:]}"
                    )
                sizes = [_resident_bytes(pid) for pid in _family(process.pid)]
                peak, together = max(peak, *sizes), max(together, sum(sizes))
                read = max(read, _read_bytes(process.pid))
                time.sleep(_LOOK_SECONDS)
            seconds, cpu_seconds = time.perf_counter() - began, _cpu_seconds(process.pid)
        finally:
            process.kill()
            process.wait()
    kept = sum(
        file.stat().st_size
        for kind in ("rows", "compared")
        for file in (cache / kind).rglob("*")
        if file.is_file()
    )
    return {
        "seconds_to_first_step": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_gb_all_processes": round(together / 1e9, 2),
        "peak_gb_largest": round(peak / 1e9, 2),
        "read_from_disk_gb": round(read / 1e9, 2),
        "kept_gb": round(kept / 1e9, 2),
    }


def _family(pid: int) -> list[int]:
    """Returns the process and those it has started."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [one for child in task.read_text().split() for one in _family(int(child))]
        except OSError:  # it has ended
            continue
    return found


def _resident_bytes(pid: int) -> int:
    try:
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    except (OSError, IndexError):
        return 0


def _cpu_seconds(pid: int) -> float:
    """Returns what the process, and those it has started that have ended, took of the CPUs."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def _read_bytes(pid: int) -> int:
    try:
        said = dict(
            line.split(": ") for line in pathlib.Path(f"/proc/{pid}/io").read_text().splitlines()
        )
        return int(said["read_bytes"])
    except (OSError, KeyError, ValueError):
        return 0


def _make_tiny(directory: pathlib.Path) -> str:
    """Returns the directory of seven layers of random numbers with the embedded tokenizer."""
    import jax
    import numpy as np

    from medkor_jax.io.bases import save_base
    from medkor_jax.io.embedded_model import EMBEDDED_MODEL
    from medkor_jax.io.weights import open_weights
    from medkor_jax.model.config import preset
    from medkor_jax.model.params import abstract_base

    tokenizer = open_weights(EMBEDDED_MODEL).tokenizer
    config = dataclasses.replace(preset("tiny"), vocab_size=tokenizer.vocab_size)
    rng = np.random.default_rng(0)
    shapes = abstract_base(config, np.float32)
    base = jax.tree.map(
        lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )
    directory.mkdir(parents=True)
    save_base(directory, base, config, tokenizer, {"made_by": "medkor_jax.bench.startup"})
    return str(directory)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m medkor_jax.bench.startup", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument(
        "--exam",
        type=pathlib.Path,
        help="what judges; by default SOURCE.exam.jsonl, as text_source writes it",
    )
    parser.add_argument(
        "--cache", type=pathlib.Path, required=True, help="a directory of its own: it is emptied"
    )
    parser.add_argument("--weights", default="", help="by default seven random layers")
    parser.add_argument("--starts", type=int, default=2)
    asked = parser.parse_args()
    exam = asked.exam or asked.source.with_suffix(".exam.jsonl")
    for found in measure(
        asked.source, exam, cache=asked.cache, weights=asked.weights, starts=asked.starts
    ):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
