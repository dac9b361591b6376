"""What is held out is chosen by a hash of each row: equal rows together, no row twice, none by its place."""

import dataclasses
import unicodedata

import pytest

from medkor_jax.data import converting, sources
from medkor_jax.data.parts import check_parts, is_held_out
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_examples, load_questions

BOTH = ("train", "held_out")
ROWS = [{"id": i, "text": f"열이 나는 환자 {i % 40}번의 기록이다."} for i in range(120)]


def parts_of(path, kind="text", **settings):
    source = Source("s", kind, path, held_share=0.3, part="train", **settings)
    return [dataclasses.replace(source, part=part) for part in BOTH]


def texts(source):
    return [row.parts[0][0] for row in load_examples(source, drop_bad=False).rows]


def test_two_parts_share_no_row_and_are_all_of_them(write_jsonl):
    path = write_jsonl("a.jsonl", ROWS)
    train, held = (load_examples(source, drop_bad=False).rows for source in parts_of(path))
    assert 60 < len(train) < 108 and len(train) + len(held) == 120
    assert {row.id for row in train} | {row.id for row in held} == {f"s/{i}" for i in range(120)}
    # Under another id the same text is another row; `part_by` keeps it together.
    assert set(texts(parts_of(path)[0])) & set(texts(parts_of(path)[1]))
    train, held = (set(texts(source)) for source in parts_of(path, part_by=("text",)))
    assert train and held and not train & held


def test_a_row_stays_on_its_side_wherever_it_stands_and_however_it_is_written(write_jsonl):
    first = set(texts(parts_of(write_jsonl("a.jsonl", ROWS), part_by=("text",))[1]))
    more = [{"id": -i, "text": f"다른 기록 {i}"} for i in range(50)]
    decomposed = [
        {"id": 7, "text": unicodedata.normalize("NFD", row["text"]).replace(" ", "  ")}
        for row in reversed(ROWS)
    ]
    again = texts(parts_of(write_jsonl("b.jsonl", more + decomposed), part_by=("text",))[1])
    assert {" ".join(text.split()) for text in again} - {row["text"] for row in more} == first


def test_what_a_file_format_makes_of_a_row_moves_it_not(tmp_path, write_jsonl):
    rows = [{"n": i, "text": f"record {i}", "none": None} for i in range(40)]
    (tmp_path / "a.csv").write_text(
        "n,text,none\n" + "".join(f"{i}.0,record {i},\n" for i in range(40))
    )
    assert texts(parts_of(write_jsonl("a.jsonl", rows))[1]) == texts(
        parts_of(str(tmp_path / "a.csv"))[1]
    )


def test_a_large_file_read_by_several_is_cut_alike(write_jsonl, monkeypatch):
    path = write_jsonl("a.jsonl", ROWS)
    small = [texts(source) for source in parts_of(path)]
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 1)
    monkeypatch.setattr(converting, "PART_BYTES", 2000)
    assert [texts(source) for source in parts_of(path)] == small and all(small)


def test_questions_and_pairs_have_parts_and_limit_counts_them(tmp_path, write_jsonl):
    letters = {letter: letter.lower() * 3 for letter in "ABCD"}
    rows = [{"question": f"Which {i % 20}?", "answer": i % 4, **letters} for i in range(60)]
    exam = write_jsonl("exam.jsonl", rows)
    train, held = (
        load_questions(source, drop_bad=False).rows
        for source in parts_of(exam, "exam", part_by=("question",))
    )
    assert len(train) + len(held) == 60 and held
    assert not {q.question for q in train} & {q.question for q in held}
    # How keys count is decided over the whole file, of which this part alone might not tell.
    assert all(q.answer == rows[int(q.id.rpartition("/")[2])]["answer"] for q in [*train, *held])
    few = parts_of(exam, "exam", part_by=("question",), limit=3)[1]
    assert load_questions(few, drop_bad=False).rows == held[:3]

    for language in ("en", "ko"):
        (tmp_path / f"t.{language}").write_text("".join(f"{language}, {i}.\n" for i in range(40)))
    pairs = [texts(source) for source in parts_of(str(tmp_path / "t"), "translation")]
    assert sum(map(len, pairs)) == 80 and not set(pairs[0]) & set(pairs[1]) and all(pairs)


def test_settings_that_cut_otherwise_are_refused(write_jsonl):
    path = write_jsonl("a.jsonl", ROWS)
    train, held = parts_of(path)
    check_parts([train, held, Source("whole", "text", path)])
    for other in (
        dataclasses.replace(held, held_share=0.2),
        dataclasses.replace(held, part_by=("text",)),
    ):
        with pytest.raises(ValueError, match="cut otherwise .* they could share rows"):
            check_parts([train, other])
    with pytest.raises(ValueError, match="part_by names 'txt', which is no column; the columns"):
        is_held_out(ROWS[0], dataclasses.replace(train, part_by=("txt",)))
    for wrong, words in (
        (dict(part="test", held_share=0.1), "part is 'test', expected 'train', 'held_out' or ''"),
        (dict(part="train"), "part is 'train' and held_share 0: give both"),
        (dict(held_share=0.1), "part is '' and held_share 0.1: give both"),
        (dict(rationale=("cot",)), "rationale is .* of kind 'text'; only questions have one"),
    ):
        with pytest.raises(ValueError, match=words):
            Source("s", "text", path, **wrong)
    with pytest.raises(ValueError, match="what is embedded has its own splits"):
        Source("s", "text", "embedded", held_share=0.1, part="train")


def test_settings_that_are_off_say_what_they_said_before_they_existed(write_jsonl):
    source = Source("s", "text", "a.jsonl", revision="abc")
    assert not {"rationale", "held_share", "part", "part_by", "revision"} & set(source.settings())
    part = dataclasses.replace(source, held_share=0.1, part="train", part_by=("text",)).settings()
    assert (part["held_share"], part["part"], part["part_by"]) == (0.1, "train", ("text",))
    assert Source.from_json(dataclasses.asdict(source)) == source
