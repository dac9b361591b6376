"""Tiny runs of all phases, killed at random moments and started again, compared with one that was never stopped. Run by hand.

    python tests/run/kill_anywhere.py BASE OUT --kills 200 --seed 0         # goes on where it stood; OUT/kills.jsonl
    python tests/run/kill_anywhere.py BASE OUT --kills 200 --signals KILL,TERM,INT

BASE: a directory of tiny weights (tests/conftest.py makes one: `tiny_base_dir`). In each run moments are drawn until it is through;
then weights, optimizer-independent digests, scores and losses of every phase are compared with those of the uninterrupted run.
A run that ends with a traceback, or with other numbers, is kept in OUT and named; the exit code is then 1.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parent / "parallel" / "tiny_phases.py"


def command_of(run_dir, base, overrides=()):
    environment = {
        **os.environ,
        "RUN_DIR": str(run_dir),
        "WEIGHTS": str(base),
        "OWN_PROCESS": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    words = [sys.executable, "-m", "medkor_jax.cli", "run", "--config", str(CONFIG), *overrides]
    return words, environment


def start(run_dir, base, overrides=()):
    words, environment = command_of(run_dir, base, overrides)
    log = (run_dir.parent / f"{run_dir.name}.log").open("ab")
    return subprocess.Popen(words, env=environment, stdout=log, stderr=log)


def outcome(run_dir):
    """Returns what came of each phase: the model by content, and all that was measured of it."""
    found = {}
    for path in sorted(run_dir.glob("*/verdict.json")):
        summary = json.loads(path.with_name("summary.json").read_text())
        verdict = json.loads(path.read_text())
        after = {
            name: summary["after"][name] for name in ("digest", "watch", "exams", "translations")
        }
        found[path.parent.name] = [summary["model"], after, verdict["passed"], verdict["report"]]
    return found


def run_killed(run_dir, base, randomly, mean_seconds, signals):
    """Starts the run until it is through, ending it at random moments; returns [(signal, seconds after the start)]."""
    struck = []
    while True:
        process, wait = start(run_dir, base), randomly.expovariate(1 / mean_seconds)
        try:
            code = process.wait(wait)
        except subprocess.TimeoutExpired:
            number = randomly.choice(signals)
            process.send_signal(number)
            struck.append((number.name, round(wait, 2)))
            if number is not signal.SIGKILL:
                code = process.wait(600)
                if code == 0:
                    return struck
                if code not in (143, -number):  # -number: it came before Python had begun
                    raise SystemExit(
                        f"{run_dir}: {number.name} ended in exit code {code}"
                    ) from None
            process.wait()
            continue
        if code:
            raise SystemExit(
                f"{run_dir}: ended with exit code {code} by itself after {struck}; see its log"
            )
        return struck


def uninterrupted(out, base):
    """Returns the run that nothing stops, made once, and the seconds that it took."""
    whole, began = out / "uninterrupted", time.monotonic()
    if not (whole / "done").exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(whole, ignore_errors=True)
        if code := start(whole, base).wait():
            raise SystemExit(f"the uninterrupted run ended with {code}; see {whole}.log")
        (whole / "done").write_text(str(time.monotonic() - began))
    return whole, float((whole / "done").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", default="KILL")
    arguments = parser.parse_args()
    signals = [signal.Signals[f"SIG{name}"] for name in arguments.signals.split(",")]
    out = arguments.out.resolve()
    whole, seconds = uninterrupted(out, arguments.base)
    wanted = outcome(whole)
    log = out / "kills.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    total = sum(len(json.loads(line)["struck"]) for line in lines)
    while total < arguments.kills:
        number = len(lines)
        run_dir = out / f"run-{number}"
        shutil.rmtree(run_dir, ignore_errors=True)
        randomly = random.Random(f"{arguments.seed} {number}")
        struck = run_killed(run_dir, arguments.base, randomly, seconds / 4, signals)
        is_same = outcome(run_dir) == wanted
        lines.append(json.dumps({"run": number, "struck": struck, "same": is_same}))
        log.write_text("\n".join(lines) + "\n")
        total += len(struck)
        print(
            f"run {number}: {len(struck)} times struck, {'the same' if is_same else 'DIFFERS'}; {total} in all",
            flush=True,
        )
        if not is_same:
            sys.exit(1)
        shutil.rmtree(run_dir)


if __name__ == "__main__":
    main()
