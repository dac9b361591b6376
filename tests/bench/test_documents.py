import numpy as np
import pytest

from medkor_jax.bench import documents

DOCUMENTS = [
    {"tokens": [11, 12, 13, 14], "loss": [0, 0, 1, 1]},
    {"tokens": [21, 22], "loss": [0, 1]},
]


def test_both_layouts_predict_the_same_tokens_from_the_same_prefixes():
    packed = documents.pack(DOCUMENTS, batch_size=1, seq_len=16, bos_id=2)
    padded = documents.pad(DOCUMENTS, bos_id=2, pad_id=0)

    ours = set()
    for at, target, weight in zip(
        packed["loss_positions"][0], packed["targets"][0], packed["loss_weights"][0]
    ):
        if weight:
            start = at - packed["positions"][0, at]
            ours.add((tuple(packed["tokens"][0, start : at + 1].tolist()), int(target)))
    theirs = {
        (tuple(padded["input_ids"][row, :at].tolist()), int(padded["labels"][row, at]))
        for row, at in np.argwhere(padded["labels"] != -100)
    }
    assert ours == theirs == {((2, 11, 12), 13), ((2, 11, 12, 13), 14), ((2, 21), 22)}


def test_padding_counts_for_nothing():
    padded = documents.pad(DOCUMENTS, bos_id=2, pad_id=0)
    assert documents.n_tokens(DOCUMENTS) == padded["attention_mask"].sum() == 8
    assert padded["labels"][1].tolist() == [-100, -100, 22, -100, -100]


def test_loss_positions_are_cut_to_the_fullest_row():
    packed = documents.pack(DOCUMENTS, batch_size=1, seq_len=16, bos_id=2)
    assert packed["targets"].shape == (1, 8)
    assert packed["loss_weights"].sum() == 3


def test_text_fills_every_position():
    rows = documents.text_rows(None, 500, n_rows=3, seq_len=32)
    batch = documents.pack(rows, batch_size=3, seq_len=32, bos_id=2)
    assert (batch["segment_ids"] == 1).all()
    assert batch["targets"].shape == (3, 32)
    assert batch["loss_weights"].sum() == 3 * 31


def test_questions_fill_the_batch_and_fit_it():
    chosen = documents.exam_questions(None, 500, batch_size=2, seq_len=300)
    batch = documents.pack(chosen, batch_size=2, seq_len=300, bos_id=2)
    assert batch["loss_weights"].sum() == 2 * len(chosen)
    assert documents.n_tokens(chosen) > 0.5 * 2 * 300


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 documents do not fit 1 rows of 6"):
        documents.pack(DOCUMENTS, batch_size=1, seq_len=6, bos_id=2)
