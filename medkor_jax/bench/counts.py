"""FLOPs of a training step, by hand and in the program that was compiled, so that one can check the other.

    step_flops(config, batch_size=4, seq_len=512, loss_positions=512, rank=16)     # useful work, from sizes
    compiled_matmul_flops(compiled.as_text())                                      # every dot, times its loops

The compiler's own `cost_analysis` takes each loop body once, whatever the trip count; here loops count as often
as they run. Only matrix products are counted: the rest is a few percent.

By hand, with N = B T tokens, P = B M loss positions, W, A, C the parameters of a layer's matrices and of their
adapters' two factors, N_h H the width of all query heads; a product of [m, k] and [k, n] is 2 m k n:

    matrices    4 N W              forward, and the gradient in their input (they are frozen: none in the weights)
    adapters    6 N (A + C)        forward, input, weights
    attention   12 B S N_h H       S scores a head, those of masked blocks left out (`kernel.n_scores`; a local layer's
                                   are fewer): scores and values forward (4), twice that backward
    head        4 P D V            logits, and the gradient in the hidden states, formed in the forward pass

Layers count L times, also the first (a scan cannot leave out what only its first turn does not need). What the backward pass computes again (attention scores, the adapters' low
product) is not useful work, so a compiled step may have up to `RECOMPUTED_SHARE` more.
"""

from __future__ import annotations

import functools
import math
import re

from medkor_jax.model.config import LOCAL, ModelConfig
from medkor_jax.model.kernel import choose, n_scores
from medkor_jax.model.layout import platform
from medkor_jax.model.params import matrix_sizes

RECOMPUTED_SHARE = 0.1

_SHAPE = r"[a-z]\w*\[([\d,]*)\]"
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?%?([\w.-]+) = {_SHAPE}")
_DOT = re.compile(rf"= {_SHAPE}\S* dot\((?:{_SHAPE}\S* )?%?([\w.-]+), .*?lhs_contracting_dims={{([\d,]*)}}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations={([^}]*)}")


def lora_parameters(config: ModelConfig, rank: int) -> int:
    return config.n_layers * rank * sum(i + o for i, o in matrix_sizes(config))


def step_flops(config: ModelConfig, batch_size: int, seq_len: int, loss_positions: int, rank: int) -> int:
    """Returns the useful FLOPs of a LoRA step on all seven matrices; rank 0 is a step without adapters."""
    n = batch_size * seq_len
    matrices = 4 * n * sum(i * o for i, o in matrix_sizes(config))
    adapters = 6 * n * rank * sum(i + o for i, o in matrix_sizes(config))
    kernel = choose("auto", t=seq_len, head_dim=config.head_dim, platform=platform())
    windows = [config.sliding_window if kind == LOCAL else None for kind in config.layer_kinds]
    scores = sum(n_scores(kernel, seq_len, window) for window in windows)  # of all layers
    attention = 12 * batch_size * scores * config.n_heads * config.head_dim
    head = 4 * batch_size * loss_positions * config.d_model * config.vocab_size
    return config.n_layers * (matrices + adapters) + attention + head


def compiled_matmul_flops(hlo: str) -> int:
    """Returns the FLOPs of every `dot` in a compiled module's text, loops times their known trip count.

    Of a conditional the costliest branch counts. Products hidden in library calls (GPU) are not seen.

    Raises: ValueError if a loop that holds products does not state how often it runs.
    """
    computations = _computations(hlo)

    @functools.cache
    def flops(name: str) -> int:
        lines = computations.get(name, ())
        shapes = {found[1]: found[2] for line in lines if (found := _INSTRUCTION.match(line))}
        total = 0
        for line in lines:
            if found := _DOT.search(line):
                out, inline, operand, contracted = found.groups()
                sizes = _sizes(inline or shapes[operand])
                total += 2 * math.prod(_sizes(out)) * math.prod(sizes[i] for i in _sizes(contracted))
            inside = sum(flops(called) for called in _CALLED.findall(line) if "_computation=" not in line)
            if " while(" in line and inside:
                trips = _TRIPS.search(line)
                if not trips:
                    raise ValueError(f"the loop {line.strip()[:80]!r} does not state its trip count; FLOPs cannot be counted")
                inside *= int(trips[1])
            branches = [name.strip(" %") for found in _BRANCHES.findall(line) for name in found.split(",")]
            if "_computation=" in line:
                branches += _CALLED.findall(line)
            total += inside + max(map(flops, branches), default=0)
        return total

    return flops(next(name for name in computations if f"ENTRY %{name} " in hlo or f"ENTRY {name} " in hlo))


def _computations(hlo: str) -> dict[str, list[str]]:
    """Returns {computation: its instruction lines}."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            current = found.setdefault(header[1], [])
        elif line.startswith("  "):
            current.append(line)
    return found


def _sizes(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]
