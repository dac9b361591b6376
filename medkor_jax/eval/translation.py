r"""How well a model translates: held-out pairs, both directions, greedy.

    report = evaluate_translation(scorer, load_pairs(source, drop_bad=False).rows, source="embedded", split="test")
    print(report.table())

The model is asked as `data.pairs` teaches it ("English: ...\n한국어:"), a translator (TranslateGemma) by its own chat template, and its text ends at a newline or where the
model ends it. What it wrote is scored by `translation_report`. What it does not do: judge meaning, or align.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from medkor_jax.data.pairs import DIRECTIONS, Pair, translation_ids
from medkor_jax.eval.scoring import Continuation, Scorer
from medkor_jax.eval.translation_report import Translated, TranslationReport

STOP = ("\n",)
MAX_TRANSLATION_TOKENS = 256


def evaluate_translation(
    scorer: Scorer,
    pairs: Sequence[Pair],
    *,
    source: str = "",
    split: str = "",
    batch_size: int = 16,
    max_new_tokens: int = MAX_TRANSLATION_TOKENS,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> TranslationReport:
    """Returns every pair translated from English into Korean, then from Korean into English, in the order of `pairs`.

    `on_progress(done, total)` is called after each batch.

    Raises: ValueError if there are no pairs, or one is too long for the model.
    """
    asked = [(pair, given, target) for given, target in DIRECTIONS for pair in pairs]
    text = getattr
    # Longest first: neighbours pad little, and a pair that does not fit fails at once.
    order = sorted(range(len(asked)), key=lambda i: -len(text(*asked[i][:2])))
    done: dict[int, Continuation] = {}
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        wanted = [
            (text(pair, given), given, target) for pair, given, target in (asked[i] for i in batch)
        ]
        done |= zip(batch, translate(scorer, wanted, max_new_tokens=max_new_tokens), strict=True)
        if on_progress is not None:
            on_progress(len(done), len(asked))
    outputs = tuple(
        Translated(
            pair.id,
            given,
            target,
            text(pair, given),
            text(pair, target),
            done[i].text,
            done[i].is_whole,
            done[i].n_tokens,
        )
        for i, (pair, given, target) in enumerate(asked)
    )
    return TranslationReport(
        source, split, outputs, max_new_tokens, confidence, n_resamples, seed, scorer.style.name
    )


def translate(
    scorer: Scorer, wanted: Sequence[tuple[str, str, str]], *, max_new_tokens: int
) -> list[Continuation]:
    """Returns the translation of each (text, given, target) up to the end of its line, without the space around it."""
    encoded = [translation_ids(scorer.style, *one) for one in wanted]
    written = scorer.complete(encoded, max_new_tokens=max_new_tokens, stop=STOP)
    return [dataclasses.replace(one, text=one.text.strip()) for one in written]
