"""Batches of documents that lie on disk are those of the same documents in memory, wherever they are taken up again."""

import itertools
import json

import numpy as np
import pytest

from medkor_jax.data import converting, sources
from medkor_jax.data.batches import Batches, one_pass
from medkor_jax.data.packing import encode, find_too_long
from medkor_jax.data.rows import BadDataError, Source
from medkor_jax.data.sources import load_examples
from medkor_jax.data.stored import StoredExamples
from medkor_jax.data.style import Plain

ROWS = {
    "text": [{"text": f"t{i:03d}" + "x열" * (7 * i % 13)} for i in range(40)],
    "chat": [{"input": f"c{i}" + "?" * (i % 5), "output": "yes" * (i % 7 + 1)} for i in range(30)],
    "translation": [
        {"en": f"It is {i}." + " so" * (i % 4), "ko": "그렇다" * (i % 3 + 1)} for i in range(25)
    ],
}


@pytest.fixture
def both(monkeypatch, write_jsonl):
    """both(kinds): [(source, documents)] in memory, and on disk."""

    def load(kinds, is_large):
        with monkeypatch.context() as patch:
            patch.setattr(sources, "IN_MEMORY_BYTES", 0 if is_large else 2**40)
            patch.setattr(converting, "PART_BYTES", 500)
            found = [
                Source(kind, kind, write_jsonl(f"{kind}.jsonl", ROWS[kind]), weight=weight)
                for kind, weight in kinds.items()
            ]
            return [(source, load_examples(source, drop_bad=False).rows) for source in found]

    def make(**kinds):
        held, stored = load(kinds, False), load(kinds, True)
        assert all(isinstance(rows, StoredExamples) for _, rows in stored) and not any(
            isinstance(rows, StoredExamples) for _, rows in held
        )
        return held, stored

    return make


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in {*a, *b})


@pytest.mark.parametrize("stop", [0, 3, 11])
def test_the_same_batches_for_the_same_seed_and_after_a_resume(stop, both, byte_tokenizer):
    held, stored = both(text=0.5, chat=0.3, translation=0.2)
    settings = dict(batch_size=2, seq_len=96, seed=5)
    expected = list(itertools.islice(Batches(held, Plain(byte_tokenizer), **settings), 20))
    first = Batches(stored, Plain(byte_tokenizer), **settings)
    for batch in expected[:stop]:
        assert same(next(first), batch)
    cursor = json.loads(json.dumps(first.get_state()))
    again = Batches(
        [(source, load_again(rows)) for source, rows in stored], Plain(byte_tokenizer), **settings
    )
    again.set_state(cursor)
    for batch in expected[stop:]:
        assert same(next(again), batch)


def load_again(rows):
    return StoredExamples(rows.directory, rows.name)


def test_one_pass_and_what_is_derived_are_the_same(both, byte_tokenizer):
    for kinds in (dict(text=1.0), dict(translation=1.0), dict(text=1.0, chat=1.0)):
        held, stored = both(**kinds)
        passes = [
            list(one_pass(found, Plain(byte_tokenizer), batch_size=2, seq_len=96))
            for found in (held, stored)
        ]
        assert len(passes[0]) == len(passes[1]) > 2 and all(map(same, *passes))
    longest = max(int(encode(example, Plain(byte_tokenizer)).loss.sum()) for example in held[0][1])
    made = [
        Batches(found, Plain(byte_tokenizer), batch_size=2, seq_len=96).loss_positions
        for found in both(translation=1.0)
    ]
    assert made[0] == made[1] >= min(8, longest)


def test_what_is_too_long_is_the_same(both, byte_tokenizer):
    (held,), (stored,) = both(translation=1.0)
    found = [
        find_too_long("s", rows, Plain(byte_tokenizer), seq_len=seq_len, loss_positions=loss_positions)
        for seq_len, loss_positions in ((50, 50), (96, 12)) for rows in (held[1], stored[1])
    ]  # fmt: skip
    assert (
        found[0] == found[1]
        and found[2] == found[3]
        and 0 < len(found[0]) < 50
        and 0 < len(found[2]) < 50
    )
    said = []
    for one in (held, stored):
        with pytest.raises(BadDataError, match="may not be cut, seq_len is 50") as error:
            Batches([one], Plain(byte_tokenizer), batch_size=2, seq_len=50)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_texts_that_may_be_cut_are_not_read_before_the_first_batch(
    both, byte_tokenizer, monkeypatch
):
    _, stored = both(text=1.0)
    read = []
    monkeypatch.setattr(
        StoredExamples,
        "_read",
        lambda self, index, of=StoredExamples._read: read.append(index) or of(self, index),
    )
    batches = Batches(stored, Plain(byte_tokenizer), batch_size=2, seq_len=32)
    assert len(read) <= 1  # one, which says that they may be cut
    next(batches)
    assert len(read) < 12
