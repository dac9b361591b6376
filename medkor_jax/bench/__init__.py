"""Speed and memory beside transformers with PEFT, measured in the same run on the same machine.

    print(bench.run("embedded", ["text", "exam"], repeats=5, out="bench.json"))
    print(bench.run_best("gemma3-4b", device="gpu"))                                # the machine's own best

Each side lives in a process of its own, so that its peak memory is its own. Steps alternate, ours then
theirs, so that a machine that slows down slows both. Before anything is timed both sides must report the
same loss on the same batch (or the same greedy tokens): a fast wrong answer is no result.

It measures this machine; it does not tune either side, and it does not keep old results.
"""

from medkor_jax.bench.best import run_best
from medkor_jax.bench.checks import BenchError
from medkor_jax.bench.runner import CASES, run

__all__ = ["CASES", "BenchError", "run", "run_best"]
