import numpy as np
import pytest

from medkor_jax.data.rows import BadRow, Example
from medkor_jax.data.stored import DamagedError, RowsWriter, Segment, StoredExamples, join_segments

EXAMPLES = [
    Example("s/0", (("one", True),), "en", splittable=True),
    Example(
        "s/2",
        (("열이 ", False), ("난다.", True), ("\n끝", False)),
        "ko",
        splittable=True,
        eos=False,
    ),
    Example("s/3/en-ko", (("English: a\n한국어:", False), (" 가", True)), "ko", splittable=False),
    Example("s/3/ko-en", (("한국어: 가\nEnglish:", False), (" a", True)), "en", splittable=False),
    Example("s/9", (("last 🩺", True),), "en", splittable=True),
]


def store(directory, groups, rows=10, **more):
    """Each group a segment of `rows` rows; the ids of the examples count over all."""
    directory.mkdir()
    segments = []
    for n, group in enumerate(groups):
        writer = RowsWriter(directory, f"{n:04d}", "s")
        for example in group:
            writer.add(example)
        writer.close()
        segments.append(Segment(f"{n:04d}", rows, **more))
    join_segments(directory, segments, notes=["a note"])
    return StoredExamples(directory, "s")


def test_examples_come_back_as_they_were(tmp_path):
    stored = store(tmp_path / "a", [EXAMPLES])
    assert (
        list(stored) == EXAMPLES
        and len(stored) == 5
        and stored[-1] == EXAMPLES[-1]
        and stored[np.int64(1)] == EXAMPLES[1]
    )
    assert stored[1:3] == EXAMPLES[1:3] and stored.notes == ("a note",)
    with pytest.raises(IndexError):
        stored[5]
    assert [example.id for example in StoredExamples(tmp_path / "a", "s@weights")][2:] == [
        "s@weights/3/en-ko",
        "s@weights/3/ko-en",
        "s@weights/9",
    ]
    sizes = [sum(len(text.encode()) for text, _ in example.parts) for example in EXAMPLES]
    assert np.diff(stored.row_ends).tolist() == sizes
    assert stored.loss_bytes.tolist() == [
        sum(len(text.encode()) for text, loss in e.parts if loss) for e in EXAMPLES
    ]
    assert stored.is_splittable.tolist() == [
        e.splittable for e in EXAMPLES
    ] and stored.languages.tolist() == [0, 1, 1, 0, 0]
    assert stored.texts(1, 4).decode() == "".join(
        text for example in EXAMPLES[1:4] for text, _ in example.parts
    )


def test_segments_are_put_together_with_numbers_that_count_over_all(tmp_path):
    second = [Example("s/0", (("more", True),), "en", True)]
    stored = store(tmp_path / "a", [EXAMPLES, [], second], bad=[(4, "empty")])
    assert [example.id for example in stored][-2:] == ["s/9", "s/20"] and stored[5].parts == (
        ("more", True),
    )
    assert stored.bad("f") == [BadRow("f", row, "empty") for row in (4, 14, 24)]
    assert stored.texts(3, 6).decode().endswith("last 🩺more")
    whole = store(tmp_path / "b", [[*EXAMPLES, Example("s/20", (("more", True),), "en", True)]])
    assert whole.digest == stored.digest  # however it was cut


@pytest.mark.parametrize("change", [
    dict(parts=(("onf", True),)), dict(parts=(("one", False),)), dict(parts=(("o", True), ("ne", True))), dict(language="ko"),
    dict(splittable=False), dict(eos=False), dict(id="s/1"),
])  # fmt: skip
def test_the_digest_changes_with_anything_a_document_says(change, tmp_path):
    other = [Example(**{**EXAMPLES[0].__dict__, **change}), *EXAMPLES[1:]]
    assert store(tmp_path / "a", [EXAMPLES]).digest != store(tmp_path / "b", [other]).digest


def test_a_row_that_is_not_what_was_written_is_never_given_out(tmp_path):
    stored = store(tmp_path / "a", [EXAMPLES])
    path = tmp_path / "a" / "0000.texts"
    path.write_bytes(path.read_bytes().replace(b"last", b"lost"))
    assert stored[0] == EXAMPLES[0]
    with pytest.raises(DamagedError, match="delete it"):
        stored[4]
    with pytest.raises(DamagedError, match="row 4"):
        stored.check(0, 5, stored.texts(0, 5))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedError):
        stored[4]
    mended = StoredExamples(
        tmp_path / "a", "s", lambda: store(tmp_path / "b", [EXAMPLES]).directory
    )
    assert mended[4] == EXAMPLES[4] and list(mended) == EXAMPLES
    other = StoredExamples(
        tmp_path / "a", "s", lambda: store(tmp_path / "c", [EXAMPLES[:4]]).directory
    )
    with pytest.raises(DamagedError, match="its source is not what it was"):
        other[4]


def test_a_source_without_good_rows(tmp_path):
    stored = store(tmp_path / "a", [[], []], bad=[(1, "x")])
    assert (
        len(stored) == 0
        and list(stored) == []
        and len(stored.bad("f")) == 2
        and stored.row_ends.tolist() == [0]
    )
