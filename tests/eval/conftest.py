"""A tokenizer and answers small enough to reason about by hand."""

import re

import pytest

from medkor_jax.data.question import LETTERS, Question
from medkor_jax.eval.report import Report
from medkor_jax.eval.scores import Answer


class CharacterTokenizer:
    """One token a character, except that " A" to " J" are one each, as they are in Gemma's vocabulary."""

    bos_id = 2
    _letters = {f" {letter}": 0x120000 + i for i, letter in enumerate(LETTERS)}

    def encode(self, text):
        return [
            self._letters.get(piece) or ord(piece)
            for piece in re.findall(r" [A-J](?!\w)|(?s:.)", text)
        ]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        pieces = {i: piece for piece, i in self._letters.items()}
        return "".join(pieces.get(i) or chr(i) for i in ids if i != self.bos_id)


@pytest.fixture
def tokenizer():
    return CharacterTokenizer()


@pytest.fixture
def make_question():
    def make(number, *, n_options=5, answer=0, language="ko", exam="unit", year=2020):
        word = "선택" if language == "ko" else "choice"
        options = tuple(f"{word} {number}-{i}" for i in range(n_options))
        return Question(
            f"{language}/{number}", exam, year, language, f"문항 {number}은?", options, answer
        )

    return make


@pytest.fixture
def make_report():
    """make_report("AB.C", key="ABBB"): one answer a letter, "." for one that could not be read."""

    def make(
        predicted,
        key=None,
        *,
        n_options=5,
        mode="letter",
        shots=0,
        exam="unit",
        year=2020,
        first_id=0,
    ):
        key = key or "A" * len(predicted)
        answers = tuple(
            Answer(
                id=f"q{first_id + i}", key=k, predicted=None if p == "." else p, correct=p == k, text=p, exam=exam,
                year=year, language="ko", n_options=n_options,
            )
            for i, (p, k) in enumerate(zip(predicted, key, strict=True))
        )  # fmt: skip
        return Report(mode=mode, shots=shots, source="unit exam", split="valid", answers=answers)

    return make
