"""Samples as rows of a batch, one a row, and a batch put aside in a cursor as JSON.

    batch = fill_rows(empty, [(group, sample)], tokenizer, language_unit="token")
    array_from_json(array_to_json(batch["tokens"]))

Loss is on what was sampled, never on the prompt. What a sample teaches is the business of `groups`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from medkor_jax.data.packing import LANGUAGE_IDS, Batch, Encoded, PackedRows
from medkor_jax.data.tokenizer import Tokenizer
from medkor_jax.train.actor import Sample
from medkor_jax.train.groups import Group


def fill_rows(
    empty: Sequence[PackedRows],
    rows: Sequence[tuple[Group, Sample]],
    tokenizer: Tokenizer,
    *,
    language_unit: str,
) -> Batch:
    """Returns what `PackedRows.arrays` gives of all rows together; those beyond the samples stay
    empty.
    """
    for row, (group, sample) in zip(empty, rows):
        tokens = np.array([*group.prompt[1:], *sample.tokens], np.int32)
        is_sampled = np.arange(len(tokens)) >= len(group.prompt) - 1
        language = LANGUAGE_IDS[group.question.language]
        placed = row.place(
            Encoded(group.question.id, tokens, is_sampled, language, splittable=False)
        )
        assert placed == len(tokens), "prompts were checked to leave room"
    parts = [row.arrays(tokenizer, language_unit=language_unit) for row in empty]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def array_to_json(array: np.ndarray) -> list[Any]:
    """Returns its dtype, its shape and its bytes."""
    encoded = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return [str(array.dtype), list(array.shape), encoded]


def array_from_json(stored: Sequence[Any]) -> np.ndarray:
    dtype, shape, data = stored
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape)
