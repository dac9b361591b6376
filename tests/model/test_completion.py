import numpy as np

from medkor_jax.model.completion import (
    LENGTH,
    NOTHING,
    STOP_STRING,
    STOP_TOKEN,
    Completion,
    Row,
    find_stop,
)


def spell(ids):
    """Three characters a token, unlike those of any other."""
    return "".join(f"{i:03d}" for i in ids)


def test_a_stop_does_not_depend_on_how_often_the_text_is_looked_at():
    tokens = np.arange(100, 140)
    expected = Completion(tuple(range(100, 109)), spell(range(100, 107)) + "1", STOP_STRING)
    for n in (1, 2, 7, 8, 40):
        row = Row(
            spell, ("071", "119", "0710", "0810"), ()
        )  # "0710" begins first, "0810" ends later
        for at in range(0, 40, n):
            row.take(tokens[at : at + n])
        assert row.completion() == expected


def test_the_stop_string_that_ends_first_counts():
    assert find_stop("one. two\n\nthree", ("\n\n", ".")) == 3
    assert find_stop("xabcd", ("abcd", "bc")) == 2
    assert find_stop("xabc", ("c", "abc")) == 1
    assert find_stop("nothing", (".",)) is None


def test_nothing_is_taken_after_the_end():
    row = Row(spell, (), stop_ids=(7,))
    for tokens in ([5, 6], [7, NOTHING], [8, 9]):
        row.take(np.array(tokens))
    assert row.completion() == Completion((5, 6, 7), "005006007", STOP_TOKEN)
    assert Row(None, (), ()).completion() == Completion((), "", LENGTH)
