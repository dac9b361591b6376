"""What the two sides are given: the same documents as plain token lists, without bos.

    rows = text_rows(weights.tokenizer, config.vocab_size, n_rows=4, seq_len=512)
    questions = exam_questions(weights.tokenizer, config.vocab_size, batch_size=4, seq_len=512)

Text comes from the embedded exam's texts, questions from the embedded exam or a file. Weights without a
tokenizer get made-up tokens of plausible lengths. How a side lays them out (packed, padded) is its own affair.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from medkor_jax.data import embedded
from medkor_jax.data.packing import Encoded, PackedRows, encode
from medkor_jax.data.question import example, prompt
from medkor_jax.data.rows import EMBEDDED
from medkor_jax.data.sources import Source, load_questions
from medkor_jax.data.style import Plain

Document = dict[str, list[int]]
"""tokens: ids without bos; loss: 1 where the token is predicted, else 0."""

_SEED = 0
_MADE_UP_LENGTHS = (60, 260)  # tokens of an exam question, about what a Korean licensing exam has


def text_rows(tokenizer: Any, vocab_size: int, *, n_rows: int, seq_len: int) -> list[Document]:
    """Returns `n_rows` documents of seq_len - 1 tokens (bos makes it seq_len), every token predicted."""
    length = seq_len - 1
    if tokenizer is None:
        ids = _made_up(vocab_size, n_rows * length, random.Random(_SEED))
    else:
        passages = [text for language in ("ko", "en") for _, text in embedded.texts(language)]
        random.Random(_SEED).shuffle(passages)
        ids = []
        while len(ids) < n_rows * length:
            for passage in passages:
                ids += [*tokenizer.encode(passage), tokenizer.eos_id]
    rows = [ids[i * length : (i + 1) * length] for i in range(n_rows)]
    return [{"tokens": row, "loss": [1] * length} for row in rows]


def exam_questions(
    tokenizer: Any, vocab_size: int, *, batch_size: int, seq_len: int, exam: str = EMBEDDED
) -> list[Document]:
    """Returns the questions, loss on answer and eos only, that one packed batch of [batch_size, seq_len] takes.

    exam: "embedded" (its Korean training questions) or a file of questions. A question longer than a row is left out.
    """
    rows = PackedRows(
        batch_size=batch_size, seq_len=seq_len, loss_positions=seq_len, bos_id=0, pad_id=0
    )
    taken = []
    for document in _question_stream(tokenizer, vocab_size, exam):
        encoded = to_encoded(document)
        if len(encoded.tokens) >= seq_len:
            continue
        if not rows.place(encoded):
            break
        taken.append(document)
    return taken


def prompts(tokenizer: Any, vocab_size: int, *, bos_id: int, n_prompts: int) -> list[list[int]]:
    """Returns exam prompts as token ids, bos first, without their answers."""
    if tokenizer is None:
        rng = random.Random(_SEED)
        return [
            [bos_id, *_made_up(vocab_size, rng.randint(*_MADE_UP_LENGTHS), rng)]
            for _ in range(n_prompts)
        ]
    asked = embedded.questions("train", "ko")[:n_prompts]
    return [[bos_id, *tokenizer.encode(prompt(question))] for question in asked]


def pack(
    documents: list[Document], *, batch_size: int, seq_len: int, bos_id: int
) -> dict[str, np.ndarray]:
    """Returns the packed batch of `documents`, its loss positions cut to the fullest row (a multiple of 8).

    Raises: ValueError if a document finds no room.
    """
    rows = PackedRows(
        batch_size=batch_size, seq_len=seq_len, loss_positions=seq_len, bos_id=bos_id, pad_id=0
    )
    for document in documents:
        if not rows.place(to_encoded(document)):
            raise ValueError(
                f"{len(documents)} documents do not fit {batch_size} rows of {seq_len} tokens"
            )
    batch = rows.arrays(None, language_unit="document")
    used = int((batch["loss_weights"] > 0).sum(axis=1).max())
    m = min(seq_len, -(-used // 8) * 8)
    return {
        name: x[:, :m] if name in ("loss_positions", "targets", "loss_weights") else x
        for name, x in batch.items()
    }


def pad(documents: list[Document], *, bos_id: int, pad_id: int) -> dict[str, np.ndarray]:
    """Returns input_ids, attention_mask and labels [n, longest], right-padded, -100 where nothing is predicted."""
    width = 1 + max(len(document["tokens"]) for document in documents)
    shape = (len(documents), width)
    ids, mask, labels = (
        np.full(shape, pad_id, np.int64),
        np.zeros(shape, np.int64),
        np.full(shape, -100, np.int64),
    )
    for row, document in enumerate(documents):
        n = len(document["tokens"])
        ids[row, : n + 1] = [bos_id, *document["tokens"]]
        mask[row, : n + 1] = 1
        labels[row, 1 : n + 1] = np.where(document["loss"], document["tokens"], -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def n_tokens(documents: list[Document]) -> int:
    """Returns the tokens that are not padding, bos included."""
    return sum(len(document["tokens"]) + 1 for document in documents)


def to_encoded(document: Document) -> Encoded:
    return Encoded(
        "",
        np.array(document["tokens"], np.int32),
        np.array(document["loss"], bool),
        0,
        splittable=False,
    )


def _question_stream(tokenizer: Any, vocab_size: int, exam: str):
    if tokenizer is None:
        rng = random.Random(_SEED)
        while True:
            tokens = _made_up(vocab_size, rng.randint(*_MADE_UP_LENGTHS), rng)
            yield {"tokens": tokens, "loss": [0] * (len(tokens) - 2) + [1, 1]}
    if exam == EMBEDDED:
        questions = embedded.questions("train", "ko")
    else:
        questions = list(load_questions(Source("bench", "exam", exam), drop_bad=True).rows)
    random.Random(_SEED).shuffle(questions)
    for question in questions:
        encoded = encode(example(question), Plain(tokenizer))
        yield {"tokens": encoded.tokens.tolist(), "loss": encoded.loss.astype(int).tolist()}


def _made_up(vocab_size: int, n: int, rng: random.Random) -> list[int]:
    return [rng.randrange(3, vocab_size) for _ in range(n)]
