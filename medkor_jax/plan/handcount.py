"""Useful FLOPs of a program by hand, over all chips together: what its compiled form is held against.

    hand_flops(program, config)                                  # useful: what a mask hides counts nothing
    hand_flops(program, config, scores=functools.partial(n_scores, kernel))     # with the scores that a kernel computes

For everything that a phase can train. With N = B T tokens, W, A the parameters of a layer's matrices and
of its adapters, E those of the matrices of added layers, S the keys that a row's queries see (causal, within the window), P positions
that meet the head:

    layer, in training   4 N W   forward and the gradient in its input      adapters 4 N A, and 2 N A more where they train
    layer, forward only  2 N W + 2 N A
    added layer          6 N E   forward, input, weights; 4 where it is frozen
    attention            12 S N_h H in training, 4 forward only, each row
    head                 4 P D V in training, 2 forward only; each-layer: 6 at each layer drawn (student, its gradient, teacher)

Layers count whole, also the first; what is computed again counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from medkor_jax.model import splash
from medkor_jax.model.config import GLOBAL, LOCAL, ModelConfig
from medkor_jax.model.params import ADAPTABLE, matrix_sizes
from medkor_jax.plan.program import Kernel
from medkor_jax.plan.stages import READ, SCORE, STEP, WRITE, Program, Trees

Scores = Callable[[int, int | None], int]
"""scores(length, window): how many of them count for each head of a row; window None: of a global layer."""


def visible_scores(length: int, window: int | None) -> int:
    """Returns how many keys all queries of a row see together: each itself and what is before it, within the window."""
    w = length if window is None else min(window, length)
    return w * (w + 1) // 2 + (length - w) * w


def hand_flops(program: Program, config: ModelConfig, scores: Scores = visible_scores) -> float:
    """Returns the useful FLOPs of one run of the program (of one token a row, for the one that writes, whose cache is what it sees)."""
    if program.kind == WRITE:
        return _write(program, config)
    return {STEP: _step, SCORE: _score, READ: _read}[program.kind](program, config, scores)


def costly_share(program: Program, config: ModelConfig) -> float:
    """Returns how often the program's conditionals take their costlier branch: they choose between the two kinds of layers,
    and what looks at everything costs more than what looks at a window."""
    kinds = _kinds(program.trees, config)
    return kinds.count(GLOBAL) / len(kinds)


def _kinds(trees: Trees, config: ModelConfig) -> tuple[str, ...]:
    front, back = trees.expand
    return config.layer_kinds[:1] * front + config.layer_kinds + config.layer_kinds[-1:] * back


def n_places(program: Program, config: ModelConfig) -> int:
    has_back = program.trees.expand[1] or (
        program.reference is not None and program.reference.expand[1]
    )
    return config.n_layers + bool(has_back)


def _matrices(config: ModelConfig) -> int:
    return sum(i * o for i, o in matrix_sizes(config))


def _adapters(config: ModelConfig, trees: Trees) -> int:
    if trees.lora is None:
        return 0
    sizes = dict(zip(ADAPTABLE, matrix_sizes(config)))
    return trees.lora.rank * sum(sum(sizes[name]) for name in trees.lora.targets)


def _attention(
    program: Program, config: ModelConfig, trees: Trees, factor: int, scores: Scores
) -> float:
    """Returns the attention of all layers of a model with these trees."""
    windows = [config.sliding_window if kind == LOCAL else None for kind in _kinds(trees, config)]
    return (
        factor
        * program.rows
        * sum(scores(program.length, window) for window in windows)
        * config.n_heads
        * config.head_dim
    )


def _trained(program: Program, config: ModelConfig, scores: Scores) -> float:
    """Returns forward and backward of all layers."""
    n, edges = program.rows * program.length, sum(program.trees.expand)
    of_adapters = 6 if "lora" in program.trained else 4
    of_edges = 6 if "expand" in program.trained else 4
    layer = 4 * n * _matrices(config) + of_adapters * n * _adapters(config, program.trees)
    added = edges * of_edges * n * _matrices(config)
    return config.n_layers * layer + added + _attention(program, config, program.trees, 12, scores)


def _forward(program: Program, config: ModelConfig, trees: Trees, scores: Scores) -> float:
    layers, n = config.n_layers + sum(trees.expand), program.rows * program.length
    matrices = 2 * n * (layers * _matrices(config) + config.n_layers * _adapters(config, trees))
    return matrices + _attention(program, config, trees, 4, scores)


def _step(program: Program, config: ModelConfig, scores: Scores) -> float:
    head = program.rows * config.d_model * config.vocab_size
    retention, flops = program.spec.retention, _trained(program, config, scores)
    if any(term is not retention for term in program.spec.terms):
        flops += 4 * program.positions * head
    if program.reference is not None:
        flops += _forward(program, config, program.reference, scores)
        compared = min(retention.most_places or config.n_layers + 1, n_places(program, config))
        flops += (
            6 * compared * (min(retention.positions, program.positions) or program.positions) * head
        )
    return flops


def _score(program: Program, config: ModelConfig, scores: Scores) -> float:
    head = 2 * program.rows * program.positions * config.d_model * config.vocab_size
    return _forward(program, config, program.trees, scores) + head


def _read(program: Program, config: ModelConfig, scores: Scores) -> float:
    return (
        _forward(program, config, program.trees, scores)
        + 2 * program.rows * config.d_model * config.vocab_size
    )


def _write(program: Program, config: ModelConfig) -> float:
    kinds = _kinds(program.trees, config)
    slots = sum(
        min(config.sliding_window, program.room) if kind == LOCAL else program.room
        for kind in kinds
    )
    layers = len(kinds) * _matrices(config) + config.n_layers * _adapters(config, program.trees)
    attention = 4 * slots * config.n_heads * config.head_dim
    return program.rows * (2 * layers + attention + 2 * config.d_model * config.vocab_size)


def kernel_flops(kernel: Kernel, program: Program, config: ModelConfig) -> float | None:
    """Returns a chip's FLOPs of all runs of a kernel whose inside the compiler does not show, None if it is none we know.

    Known are those of `model.splash`, by their names: [.., T, H] comes out, of query heads, or of key heads where it is their gradient.
    A kernel that visits fewer blocks of keys than there are is a local layer's.
    """
    products = splash.n_products(f"{kernel.target} {kernel.where}")
    out = max(kernel.shapes, key=math.prod)
    if products is None or program.length not in out:
        return None
    queries_a_head = config.n_heads / config.n_kv_heads if products == 4 else 1
    is_local = len(kernel.grid) > 1 and min(kernel.grid[-2:]) < max(kernel.grid[-2:])
    scores = splash.n_scores(program.length, config.sliding_window if is_local else None)
    return products * 2 * math.prod(out) / program.length * queries_a_head * scores * kernel.times
