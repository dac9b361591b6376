import numpy as np

from medkor_jax.data.packing import PackedRows, encode, find_too_long
from medkor_jax.data.rows import Example
from medkor_jax.data.style import Plain

PAD, EOS, BOS = 0, 1, 2


def rows_of(batch_size, seq_len, loss_positions=None):
    return PackedRows(
        batch_size=batch_size,
        seq_len=seq_len,
        loss_positions=loss_positions or seq_len,
        bos_id=BOS,
        pad_id=PAD,
    )


def text(name, words, language="en"):
    return Example(name, ((words, True),), language, splittable=True)


def question(name, asked, answer):
    return Example(name, ((asked, False), (answer, True)), "en", splittable=False)


def test_encode_marks_the_answer_and_the_eos(byte_tokenizer):
    encoded = encode(question("q", "ab", "c"), Plain(byte_tokenizer))
    b = byte_tokenizer.encode
    assert encoded.tokens.tolist() == b("ab") + b("c") + [EOS]
    assert encoded.loss.tolist() == [False, False, True, True]
    assert encode(
        Example("t", (("ab", True), ("c", False)), "ko", True), Plain(byte_tokenizer)
    ).loss.tolist() == [True, True, False, False]
    assert (
        EOS
        not in encode(
            Example("t", (("ab", True),), "ko", True, eos=False), Plain(byte_tokenizer)
        ).tokens
    )


def test_one_row_by_hand(byte_tokenizer):
    rows = rows_of(1, 10, 3)
    document = encode(question("q", "ab", "c"), Plain(byte_tokenizer))
    assert (
        rows.place(document) == 4
        and rows.place(encode(question("r", "a", ""), Plain(byte_tokenizer))) == 2
    )
    batch = rows.arrays(byte_tokenizer, language_unit="token")
    a, b, c = byte_tokenizer.encode("abc")
    assert batch["tokens"].tolist() == [[BOS, a, b, c, EOS, BOS, a, EOS, PAD, PAD]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 0, 0]]
    # c is predicted at b (2), eos at c (3), the second eos at its a (6).
    assert batch["loss_positions"].tolist() == [[2, 3, 6]] and batch["targets"].tolist() == [
        [c, EOS, EOS]
    ]
    assert batch["loss_weights"].tolist() == [[1, 1, 1]]
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "tokens": "int32",
        "positions": "int32",
        "segment_ids": "int32",
        "langs": "int32",
        "loss_positions": "int32",
        "targets": "int32",
        "loss_weights": "float32",
    }


def test_text_is_cut_to_fill_rows_and_every_token_is_predicted_once(byte_tokenizer):
    document = encode(text("t", "abcdefghijk"), Plain(byte_tokenizer))
    rows = rows_of(3, 5)
    placed = 0
    while placed < len(document.tokens):
        placed += rows.place(document, placed)
    assert rows.is_full() is True  # 12 tokens and three bos: 4 + 4 + 4
    batch = rows.arrays(byte_tokenizer, language_unit="token")
    assert (
        (batch["tokens"][:, 0] == BOS).all()
        and (batch["segment_ids"] == 1).all()
        and rows.tokens_placed == 15
    )
    used = batch["loss_weights"] > 0
    assert batch["targets"][used].tolist() == document.tokens.tolist()
    predicted_from = np.take_along_axis(batch["tokens"], batch["loss_positions"] + 1, axis=1)
    assert (predicted_from == batch["targets"])[used].all()


def test_what_may_not_be_cut_goes_to_the_first_row_with_room(byte_tokenizer):
    rows = rows_of(2, 8)
    assert (
        rows.place(encode(question("a", "abcd", "e"), Plain(byte_tokenizer))) == 6
    )  # row 0, one token left
    assert (
        rows.place(encode(question("b", "ab", "c"), Plain(byte_tokenizer))) == 4
    )  # row 1, three left
    assert rows.place(encode(question("c", "ab", "c"), Plain(byte_tokenizer))) == 0
    assert rows.place(encode(question("d", "", "c"), Plain(byte_tokenizer))) == 2
    assert rows.arrays(byte_tokenizer, language_unit="token")["segment_ids"].tolist() == [
        [1] * 7 + [0],
        [1] * 5 + [2] * 3,
    ]


def test_no_row_predicts_more_than_its_loss_positions(byte_tokenizer):
    rows = rows_of(2, 16, 3)
    assert rows.place(encode(question("a", "ab", "c"), Plain(byte_tokenizer))) == 4
    assert rows.place(encode(question("b", "ab", "c"), Plain(byte_tokenizer))) == 4
    assert (
        rows.place(encode(text("t", "abcdef"), Plain(byte_tokenizer))) == 1
    )  # one loss position is left in row 0
    assert rows.place(encode(text("t", "abcdef"), Plain(byte_tokenizer)), 1) == 1
    assert rows.is_full()
    assert rows.arrays(byte_tokenizer, language_unit="token")["loss_weights"].tolist() == [
        [1, 1, 1],
        [1, 1, 1],
    ]


def test_routes(byte_tokenizer):
    by = {}
    for language_unit in ("token", "document"):
        rows = rows_of(1, 10)
        rows.place(encode(text("t", "A열", "ko"), Plain(byte_tokenizer)))
        rows.place(encode(text("u", "A", "en"), Plain(byte_tokenizer)))
        by[language_unit] = rows.arrays(byte_tokenizer, language_unit=language_unit)[
            "langs"
        ].tolist()
    assert by["token"] == [
        [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    ]  # bos, A, three bytes of Hangul, eos | bos, A, eos
    assert by["document"] == [[1, 1, 1, 1, 1, 1, 0, 0, 0, 0]]


def test_documents_cut_inside_a_character_do_not_colour_each_other(byte_tokenizer):
    """Rows are routed in one walk: a row that ends inside a syllable must not change how the next begins."""
    rows = rows_of(2, 4)
    document = encode(text("t", "A열ab"), Plain(byte_tokenizer))
    assert rows.place(document) == 3 and rows.place(document, 3) == 3
    langs = rows.arrays(byte_tokenizer, language_unit="token")["langs"]
    alone = rows_of(1, 4)
    alone.place(document, 3)
    assert (langs[1] == alone.arrays(byte_tokenizer, language_unit="token")["langs"][0]).all()


def test_find_too_long(byte_tokenizer):
    examples = [
        question("short", "ab", "c"),
        text("text", "x" * 99),
        question("long", "abcdefg", "c"),
        question("wordy", "", "abcdef"),
    ]
    found = find_too_long("s", examples, Plain(byte_tokenizer), seq_len=9, loss_positions=6)
    assert {index: bad.reason for index, bad in found.items()} == {
        2: "long has 10 tokens and may not be cut, seq_len is 9",
        3: "wordy has 7 tokens with loss, loss_positions is 6",
    }
    assert found[2].row == 3
    # Fewer tokens than bytes: only the tokenizer knows that it fits.
    assert not find_too_long(
        "s", [question("q", "A", "A")], Plain(byte_tokenizer), seq_len=4, loss_positions=2
    )
