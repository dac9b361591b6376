import collections
import itertools
import json

import numpy as np
import pytest

from medkor_jax.data import batches as batches_module
from medkor_jax.data.batches import Batches, one_pass
from medkor_jax.data.rows import BadDataError, Example, Source
from medkor_jax.data.style import Plain

BOS = 2


def source(name, kind="text", **settings):
    return Source(name, kind, "made-up", **settings)


def texts(count, mark="t"):
    """Texts of 1 to 30 letters, each with a length and a beginning of its own."""
    return [
        Example(
            f"{mark}{i}", ((f"{mark}{i:03d}" + "x" * (7 * i % 27), True),), "en", splittable=True
        )
        for i in range(count)
    ]


def questions(count, mark="q"):
    return [
        Example(
            f"{mark}{i}",
            ((f"{mark}{i:03d}" + "x" * (5 * i % 17), False), (" B", True)),
            "en",
            splittable=False,
        )
        for i in range(count)
    ]


def make(sources, tokenizer, **settings):
    return Batches(sources, Plain(tokenizer), **{"batch_size": 2, "seq_len": 32, **settings})


def documents(batch, tokenizer):
    """The text of each segment of a batch, eos as a bar."""
    found = []
    for tokens, segments in zip(batch["tokens"], batch["segment_ids"]):
        for segment in range(1, segments.max() + 1):
            assert tokens[segments == segment][0] == BOS
            ids = tokens[segments == segment][1:]
            found.append(
                tokenizer.decode(ids[ids != tokenizer.eos_id])
                + "|" * int((ids == tokenizer.eos_id).sum())
            )
    return found


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in {*a, *b})


MIXED = [
    (source("texts", weight=0.6), texts(9)),
    (source("exam", "exam", weight=0.4), questions(11)),
]


def test_an_epoch_shows_every_token_of_every_document_once(byte_tokenizer):
    sources = [(s.__class__(**{**s.__dict__, "weight": 1.0}), e) for s, e in MIXED]
    seen = [
        d
        for batch in make(sources, byte_tokenizer, epochs=1)
        for d in documents(batch, byte_tokenizer)
    ]
    whole = {
        e.id: "".join(text for text, _ in e.parts) + "|"
        for _, examples in sources
        for e in examples
    }
    assert sum(map(len, seen)) == sum(map(len, whole.values()))
    assert sorted("".join(seen)) == sorted("".join(whole.values()))
    for e in questions(11):
        assert seen.count(whole[e.id]) == 1  # never cut


def test_two_epochs_come_in_different_orders(byte_tokenizer):
    stream = make(
        [(source("exam", "exam"), questions(40))],
        byte_tokenizer,
        epochs=2,
        batch_size=1,
        seq_len=30,
    )
    seen = [d for batch in stream for d in documents(batch, byte_tokenizer)]
    assert len(seen) == 80 and set(collections.Counter(seen).values()) == {2}
    first, second = list(dict.fromkeys(seen)), list(dict.fromkeys(reversed(seen)))[::-1]
    assert first != second and first != sorted(first)


def test_the_seed_decides_the_order(byte_tokenizer):
    a, b, c = (next(make(MIXED, byte_tokenizer, seed=seed)) for seed in (1, 1, 2))
    assert same(a, b) and not same(a, c)


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 17])
def test_resuming_anywhere_equals_never_stopping(byte_tokenizer, stop):
    whole = make(MIXED, byte_tokenizer, seed=3)
    expected = list(itertools.islice(whole, 25))
    first = make(MIXED, byte_tokenizer, seed=3)
    for _ in range(stop):
        next(first)
    cursor = json.dumps(first.get_state())
    resumed = make(MIXED, byte_tokenizer, seed=3)
    next(resumed)  # wherever it stood before
    resumed.set_state(json.loads(cursor))
    for batch in expected[stop:]:
        assert same(next(resumed), batch)
    assert resumed.get_state() == whole.get_state()


def test_resuming_keeps_documents_that_wait(byte_tokenizer):
    """The cursor must hold a text cut in the middle and questions that did not fit, or this test tests nothing."""
    stream = make(MIXED, byte_tokenizer, seed=3)
    kinds = set()
    for _ in range(25):
        next(stream)
        kinds |= {start > 0 for _, start in stream.get_state()["waiting"]}
    assert kinds == {True, False}
    assert len(json.dumps(stream.get_state())) < 2000


def test_a_cursor_of_other_batches_is_refused(byte_tokenizer):
    cursor = make(MIXED, byte_tokenizer, seed=3).get_state()
    with pytest.raises(ValueError, match="seed was 3, is 4"):
        make(MIXED, byte_tokenizer, seed=4).set_state(cursor)
    other = [(MIXED[0][0], texts(9, mark="u")), MIXED[1]]
    with pytest.raises(ValueError, match="content was"):
        make(other, byte_tokenizer, seed=3).set_state(cursor)


def test_weights_are_shares_of_documents(byte_tokenizer):
    sources = [
        (source("a", "exam", weight=3), questions(7, "a")),
        (source("b", "exam", weight=1), questions(50, "b")),
    ]
    seen = [
        d[0]
        for batch in itertools.islice(make(sources, byte_tokenizer), 120)
        for d in documents(batch, byte_tokenizer)
    ]
    assert len(seen) > 250 and seen.count("a") / len(seen) == pytest.approx(0.75, abs=0.03)


def test_text_wastes_nothing_and_waiting_fills_gaps(byte_tokenizer, monkeypatch):
    stream = make([(source("t"), texts(30))], byte_tokenizer)
    for batch in itertools.islice(stream, 20):
        assert (batch["segment_ids"] == 0).sum() <= 2  # bos and a token need two
    assert stream.packing_efficiency > 0.97

    def efficiency(most):
        monkeypatch.setattr(batches_module, "MAX_WAITING", most)
        stream = make([(source("q", "exam"), questions(40))], byte_tokenizer)
        placed = sum((batch["segment_ids"] > 0).sum() for batch in itertools.islice(stream, 40))
        assert stream.packing_efficiency == pytest.approx(placed / (40 * 2 * 32))
        return stream.packing_efficiency

    assert efficiency(32) > efficiency(1) + 0.05


def test_loss_positions_are_derived(byte_tokenizer):
    exam = (source("q", "exam"), questions(40))
    assert (
        make([exam], byte_tokenizer).loss_positions == 8
        and make([exam, (source("t"), texts(3))], byte_tokenizer).loss_positions == 32
    )
    # One answer longer than the average asks for must still fit.
    wordy = Example("w", (("x", False), ("y" * 20, True)), "en", splittable=False)
    assert make([(exam[0], exam[1] + [wordy])], byte_tokenizer).loss_positions == 24
    for batch in itertools.islice(make([exam], byte_tokenizer), 5):
        segments = sum(int(row.max()) for row in batch["segment_ids"])
        assert batch["loss_weights"].sum() == 3 * segments  # " ", "B" and eos


def test_one_pass_is_in_order_padded_and_ends(byte_tokenizer):
    stream = one_pass([(source("t"), texts(5))], Plain(byte_tokenizer), batch_size=2, seq_len=32)
    found = list(stream)
    whole = "".join(e.parts[0][0] + "|" for e in texts(5))
    assert "".join(d for batch in found for d in documents(batch, byte_tokenizer)) == whole
    assert {batch["tokens"].shape for batch in found} == {(2, 32)} and (
        found[-1]["segment_ids"] == 0
    ).any()
    assert sum(batch["loss_weights"].sum() for batch in found) == len(whole)
    assert next(stream, None) is None


def test_too_long_is_reported_before_training_or_dropped(byte_tokenizer):
    long = Example("q/long", (("x" * 40, False), (" B", True)), "en", splittable=False)
    sources = [(source("exam", "exam"), [*questions(3), long])]
    with pytest.raises(
        BadDataError, match="exam, row 4: q/long has 44 tokens and may not be cut, seq_len is 32"
    ):
        make(sources, byte_tokenizer)
    stream = make(sources, byte_tokenizer, epochs=1, drop_bad=True)
    assert [bad.row for bad in stream.dropped] == [4]
    assert len([d for batch in stream for d in documents(batch, byte_tokenizer)]) == 3
    with pytest.raises(BadDataError, match="has 1 rows and none fits"):
        make([(source("exam", "exam"), [long])], byte_tokenizer, drop_bad=True)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"language_unit": "word"}, "language_unit is 'word', expected one of token, document"),
        ({"loss_positions": 33}, "loss_positions is 33, expected 1 to seq_len"),
        ({"epochs": 1}, "weights differ \\(texts 0.6, exam 0.4\\)"),
    ],
)
def test_settings_that_contradict_are_refused(byte_tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        make(MIXED, byte_tokenizer, **settings)
    with pytest.raises(ValueError, match="source 'a' has no examples"):
        make([(source("a"), [])], byte_tokenizer)


def test_a_source_says_which_losses_its_tokens_carry(byte_tokenizer):
    """Weights tell what is learnt and what is held to the reference; without such a source there is one kind of weight."""
    both = [
        (source("learnt", loss="next_token"), texts(9, "a")),
        (source("held", loss="each_layer"), texts(9, "b")),
        (source("all"), texts(9, "c")),
    ]
    seen = collections.Counter()
    for batch in itertools.islice(make(both, byte_tokenizer, batch_size=4, seq_len=64), 6):
        for b, (positions, weights, held) in enumerate(
            zip(batch["loss_positions"], batch["loss_weights"], batch["held_weights"])
        ):
            for m in np.flatnonzero(np.maximum(weights, held)):
                segment = batch["segment_ids"][b, positions[m]]
                first = np.flatnonzero(batch["segment_ids"][b] == segment)[1]  # behind bos
                mark = byte_tokenizer.decode(batch["tokens"][b, first : first + 1].tolist())[:1]
                seen[mark, weights[m], held[m]] += 1
    kinds = {key: n for key, n in seen.items() if key[0] in "abc"}
    wanted = {("a", 1.0, 0.0), ("b", 0.0, 1.0), ("c", 1.0, 1.0)}
    assert wanted <= set(kinds) and {k[1:] for k in kinds if k[0] == "c"} == {(1.0, 1.0)}
    plain = next(make([(source("a"), texts(9))], byte_tokenizer))
    assert "held_weights" not in plain


def test_held_out_text_is_measured_whole_whatever_its_loss(byte_tokenizer):
    named, plain = (
        next(
            one_pass(
                [(source("t", loss=loss), texts(3))],
                Plain(byte_tokenizer),
                batch_size=2,
                seq_len=64,
            )
        )
        for loss in ("each_layer", "")
    )
    np.testing.assert_array_equal(named["loss_weights"], plain["loss_weights"])
    assert named["loss_weights"].any() and "held_weights" not in named


def test_a_cursor_of_other_losses_is_refused(byte_tokenizer):
    batches = make([(source("a", loss="next_token"), texts(9))], byte_tokenizer)
    with pytest.raises(ValueError, match="belongs to other batches"):
        make([(source("a"), texts(9))], byte_tokenizer).set_state(batches.get_state())
