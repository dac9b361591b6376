"""That both sides of a comparison did the same work, and did it: a fast wrong answer is no result.

    check_losses(ours, peer)        # BenchError unless they agree

With the same weights losses and tokens have to agree; two random models can be held only to what chance allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

LOSS_BOUND_NATS = 1e-3
SAME_TOKENS_SHARE = 0.9  # float32 sums differ in order: a near tie may fall either way, and the rest of that row with it
_GAP_NATS = {"float32": 1e-2, "bfloat16": 0.2}  # a token, between decoder and training pass


class BenchError(RuntimeError):
    """The two sides did not compute the same thing, so there is nothing to compare."""


def check_losses(ours: dict[str, float], peer: dict[str, float]) -> None:
    """Raises: BenchError unless both sides found the same loss on the same batch, adapters still at zero."""
    if not abs(ours["loss"] - peer["loss"]) <= LOSS_BOUND_NATS:
        raise BenchError(
            f"the same batch has loss {ours['loss']:.6f} here and {peer['loss']:.6f} in transformers; they may differ by "
            f"{LOSS_BOUND_NATS:g} nats. The sides do not compute the same thing; run `medkor verify` first"
        )


def check_tokens(ours: dict[str, Any], peer: dict[str, Any]) -> None:
    """Raises: BenchError unless nearly all greedy tokens agree."""
    pairs = [
        pair
        for rows in zip(ours["tokens"], peer["tokens"], strict=True)
        for pair in zip(*rows, strict=True)
    ]
    share = sum(a == b for a, b in pairs) / len(pairs)
    if share < SAME_TOKENS_SHARE:
        raise BenchError(
            f"only {share:.0%} of the greedy tokens agree with transformers; at least {SAME_TOKENS_SHARE:.0%} must"
        )


def check_counts(depth: int, found: dict[str, Any]) -> None:
    """Raises: BenchError if the compiled step does not train what a hand count says, or misses work."""
    for what in ("leaves", "parameters"):
        if found[what] != found[f"hand_{what}"]:
            raise BenchError(
                f"{depth} layers: {found[what]:,} trainable {what}, {found[f'hand_{what}']:,} by hand"
            )
    if found["flops"] < found["hand_flops"]:
        raise BenchError(
            f"{depth} layers: the compiled step has {found['flops']:.4e} FLOPs, a hand count {found['hand_flops']:.4e}; "
            "part of the model was compiled away"
        )


def check_random(
    vocab_size: int, n_losses: int, n_tokens: int, sides: Sequence[dict[str, Any]]
) -> None:
    """Raises: BenchError unless the first losses are those of a random model, near ln V and as near to each other as chance
    allows, and the sides train as many parameters on as many tokens."""
    uniform = math.log(vocab_size)
    for side in sides:
        if not -0.5 < side["loss"] - uniform < 3.0:
            raise BenchError(
                f"a random model's loss is near ln V = {uniform:.3f} nats; found {side['loss']:.3f}"
            )
        if side["tokens"] != n_tokens:
            raise BenchError(
                f"the step holds {n_tokens:,} tokens; one side trains on {side['tokens']:,}"
            )
    if len(sides) < 2:
        return
    ours, peer = sides
    if ours["parameters"] != peer["parameters"]:
        raise BenchError(
            f"ours trains {ours['parameters']:,} parameters, the peer {peer['parameters']:,}"
        )
    bound = 0.05 + 6.0 / math.sqrt(n_losses)  # a random logit varies by about 1
    if not abs(ours["loss"] - peer["loss"]) < bound:
        raise BenchError(
            f"first losses are {ours['loss']:.3f} here and {peer['loss']:.3f} in transformers; two random models differ by at most {bound:.3f}"
        )


def check_learning(case: str, side: str, losses: Sequence[float]) -> None:
    """Raises: BenchError unless the loss on the one batch falls, as it must where the step is really made."""
    if len(losses) > 1 and not losses[-1] < losses[0]:
        raise BenchError(
            f"{case}, {side}: the loss on the same batch went from {losses[0]:.5f} to {losses[-1]:.5f} in {len(losses)} steps; it must fall"
        )


def check_rollout(first: dict[str, Any], dtype: str, vocab_size: int, n_tokens: int) -> None:
    """Raises: BenchError unless all tokens were drawn, from a random model, and both passes think alike of them."""
    if first["n_tokens"] != n_tokens:
        raise BenchError(f"{first['n_tokens']} tokens were sampled, {n_tokens} were asked for")
    if not abs(first["nats"] - math.log(vocab_size)) <= 3.0:
        raise BenchError(
            f"a random model's tokens have about ln V = {math.log(vocab_size):.3f} nats; found {first['nats']:.3f}"
        )
    if not first["gap_nats"] <= _GAP_NATS[dtype]:
        raise BenchError(
            f"decoder and training pass differ by {first['gap_nats']:.2e} nats a token; at most {_GAP_NATS[dtype]:g} in {dtype}"
        )


def check_lengths(sides: Iterable[dict[str, Any]], n_rows: int, new_tokens: int) -> None:
    """Raises: BenchError unless every side wrote all that was asked for."""
    for side in sides:
        if [len(row) for row in side["tokens"]] != [new_tokens] * n_rows:
            raise BenchError(
                f"{n_rows} rows of {new_tokens} new tokens were asked for; found lengths {sorted({len(row) for row in side['tokens']})}"
            )
