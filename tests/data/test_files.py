"""Files that say one thing and were read as another: encodings, line ends, quotes, separators, headers, composed text."""

import csv
import dataclasses
import json
import unicodedata

import pytest

from medkor_jax.data import sources
from medkor_jax.data.cells import composed
from medkor_jax.data.pairs import load_pairs
from medkor_jax.data.rows import BadDataError, Source
from medkor_jax.data.sources import load_examples, load_questions

HEADER = "question,A,B,C,D,E,answer,cot"
ROWS = [f"{i}번 문항은?,가,나,다,라,마,{i % 5 + 1},풀이 {i}" for i in range(6)]


def exam(path, *, drop_bad=False, **settings):
    return load_questions(Source("exam", "exam", str(path), **settings), drop_bad=drop_bad)


def pairs(path, *, drop_bad=False, **settings):
    return load_pairs(Source("p", "translation", str(path), **settings), drop_bad=drop_bad)


def both(loaded):
    return [(pair.en, pair.ko) for pair in loaded.rows]


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "exam.csv"
    path.write_text("\n".join([HEADER, *ROWS, ""]), "utf-8")
    return exam(path).rows


@pytest.mark.parametrize(
    "encoding, separator, end, noted",
    [
        ("utf-8-sig", ",", "\n", ""),
        ("utf-16", ",", "\r\n", "UTF-16"),
        ("utf-8", ";", "\r\n", "separated by ';'"),
        ("utf-8", "\t", "\n", "separated by tabs"),
        ("utf-16", "\t", "\n", "separated by tabs"),
        ("utf-8-sig", "|", "\n", "separated by '|'"),
    ],
)
def test_encoding_separator_and_line_ends_of_a_table(
    tmp_path, plain, encoding, separator, end, noted
):
    path = tmp_path / "exam.csv"
    path.write_bytes(end.join([HEADER, *ROWS, ""]).replace(",", separator).encode(encoding))
    loaded = exam(path)
    assert (
        loaded.rows == plain
        and noted in " ".join(loaded.notes)
        and bool(noted) == bool(loaded.notes)
    )


@pytest.mark.parametrize(
    "content, message",
    [
        ("a\n".encode("utf-32"), "is UTF-32"),
        ("question,A\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (b"question,A,B,answer\rx,y,z,A\rx,y,z,A", "ends its lines in CR alone"),
        ("문항,가\n".encode("cp949"), "not UTF-8.*CP949"),
        (b"question,A,A,answer\nx,y,z,A\n", "more than one column 'A'"),
        (b"", "is empty"),
    ],
)
def test_files_that_would_be_read_as_others_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "exam.csv"
    path.write_bytes(content)
    with pytest.raises(BadDataError, match=message):
        exam(path, drop_bad=True)


@pytest.mark.parametrize("column", [0, 2, 7])
@pytest.mark.parametrize("closed", [None, 2, 4])
def test_a_quote_that_swallows_rows_is_refused_at_its_row(tmp_path, column, closed):
    """In any column; never closed, or closed rows later in the same column."""
    rows = [row.split(",") for row in ROWS]
    rows[1][column] = '"' + rows[1][column]
    if closed:
        rows[closed][column] += '"'
    path = tmp_path / "exam.csv"
    path.write_text("\n".join([HEADER, *map(",".join, rows), ""]), "utf-8")
    with pytest.raises(BadDataError) as caught:
        exam(path)
    assert caught.value.bad[0].row == 2 and "line 3" in caught.value.bad[0].reason
    kept = exam(path, drop_bad=True).rows
    assert [q.question for q in kept] == [
        "0번 문항은?",
        *[f"{i}번 문항은?" for i in range((closed or 5) + 1, 6)],
    ]


@pytest.mark.parametrize(
    "content, good",
    [
        ('en,ko\n"One.,하나.\nTwo.,둘.\nThree.",셋.\nFour.,넷.\n', [("Four.", "넷.")]),
        ('en,ko\nOne.,"하나.\nTwo.,둘.\nThree.,셋."\nFour.,넷.\n', [("Four.", "넷.")]),
        ('en,ko\n"One.,하나.\nTwo.,둘.\nThree.,"셋."\nFour.,넷.\n', [("Four.", "넷.")]),
    ],
)
def test_a_quote_that_swallows_pairs(tmp_path, content, good):
    path = tmp_path / "a.csv"
    path.write_text(content, "utf-8")
    loaded = pairs(path, drop_bad=True)
    assert both(loaded) == good and [bad.row for bad in loaded.bad] == [1]


def test_quotes_that_are_not_doubled_are_refused_and_the_next_row_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,more\n"He said "no" to it",x\n"so ""be"" it",y\n', "utf-8")
    loaded = load_examples(Source("s", "text", str(path)), drop_bad=True)
    assert [bad.row for bad in loaded.bad] == [1] and "not doubled" in loaded.bad[0].reason
    assert [e.parts[0][0] for e in loaded.rows] == ['so "be" it']


def test_cells_of_several_lines_stay_good(tmp_path):
    texts = [
        "첫째, 둘째\n셋째, 넷째, 다섯째",
        "값\n1,000\n2,000",
        "One, two, three.\nFour, five, six, seven, eight, nine, ten, end.",
    ]
    for names in (["text", "b"], ["text", *"bcdefgh"]):
        path = tmp_path / "a.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *([text] * len(names) for text in texts)])
        loaded = load_examples(Source("s", "text", str(path)), drop_bad=False)
        assert [e.parts[0][0] for e in loaded.rows] == texts


def test_json_lines_by_another_name_and_fields_twice(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text('{"text": "one"}\n\n{"text": "two"}\n{"text": 3, "text": "three"}\n')
    loaded = load_examples(Source("s", "text", str(path)), drop_bad=True)
    assert [e.parts[0][0] for e in loaded.rows] == ["one", "two"] and "JSON Lines" in loaded.notes[
        0
    ]
    assert [(bad.row, bad.reason) for bad in loaded.bad] == [
        (4, "field 'text' is there more than once")
    ]
    assert "blank lines passed over: 1" in loaded.notes
    path.write_text('{"version": 2, "data": [{"text": "one"}]}')
    (note,) = load_examples(Source("s", "text", str(path)), drop_bad=True).notes
    assert "the list 'data'" in note and "left out: 'version'" in note


def test_a_carriage_return_ends_no_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n{"text": "b"}\r\n')
    (tmp_path / "a.csv").write_bytes(b"text,n\r\none\rline,1\r\ntwo,2\r\n")
    (tmp_path / "a.txt").write_bytes(b"one\rline\ntwo\r\n")
    assert (
        len(load_examples(Source("s", "text", str(tmp_path / "a.jsonl")), drop_bad=False).rows) == 2
    )
    for name in ("a.csv", "a.txt"):
        loaded = load_examples(Source("s", "text", str(tmp_path / name)), drop_bad=False)
        assert [e.parts[0][0] for e in loaded.rows] == ["one\rline", "two"]
        assert loaded.notes == ("rows with a carriage return inside a line, kept as it is: 1",)


def test_decomposed_text_is_that_of_composed_and_counted(tmp_path, plain, byte_tokenizer):
    path = tmp_path / "exam.csv"
    path.write_text(unicodedata.normalize("NFD", "\n".join([HEADER, *ROWS, ""])), "utf-8")
    loaded = exam(path)
    assert loaded.rows == plain
    assert loaded.notes == (
        "rows in decomposed form (macOS writes Hangul so), read as composed (NFC): 6",
    )
    nested = [{"question": "문항은?", "options": {"A": "가", "B": "나"}, "answer": "A"}]
    for form in ("NFC", "NFD"):
        (tmp_path / f"{form}.jsonl").write_text(
            unicodedata.normalize(form, json.dumps(nested[0], ensure_ascii=False)), "utf-8"
        )
    one, other = (exam(tmp_path / f"{form}.jsonl").rows[0] for form in ("NFC", "NFD"))
    assert (one.question, one.options) == (other.question, other.options)
    table = unicodedata.normalize("NFD", "물음,답\n뭐?,그것\n")
    (tmp_path / "names.csv").write_text(table, "utf-8")
    source = Source("s", "text", str(tmp_path / "names.csv"), fields=("물음", "답"))
    assert load_examples(source, drop_bad=False).rows[0].parts[0][0] == "뭐?\n그것"


def test_characters_that_only_look_composed_stay_those_of_the_published_prompts():
    for character in "\uf940\uf9c4\u2126\u212b\u212a":
        assert (
            composed(f"가{character}나")
            == f"가{character}나"
            != unicodedata.normalize("NFC", f"가{character}나")
        )
        assert composed(unicodedata.normalize("NFD", "한") + character) == f"한{character}"


def test_real_exams_keep_every_character(shared_data):
    for part in ("pharm/valid", "doctor/valid", "nurse/train"):
        path = shared_data / f"kormedmcqa/{part}.csv"
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        loaded = exam(path)
        assert [(q.question, *q.options) for q in loaded.rows] == [
            tuple(row[n] for n in ("question", *"ABCDE")) for row in rows
        ]
        assert loaded.notes == ()


def test_pairs_of_files_with_marks_stray_returns_and_blank_ends(tmp_path):
    english, korean = (
        ["He has a fever.", "The liver makes bile.", "Wash it."],
        ["그는 열이 난다.", "간은 담즙을 만든다.", "씻는다."],
    )
    for name, e, k in [
        ("bom", "\ufeff" + "\n".join(english), "\ufeff" + "\n".join(korean)),
        ("crlf", "\r\n".join(english) + "\r\n", "\n".join(korean)),
        ("ends", "\n".join(english) + "\n\n\n", "\n".join(korean) + "\n"),
    ]:
        (tmp_path / f"{name}.en").write_bytes(e.encode())
        (tmp_path / f"{name}.ko").write_bytes(k.encode())
        loaded = pairs(tmp_path / f"{name}.en")
        assert both(loaded) == list(zip(english, korean)), name
    assert pairs(tmp_path / "ends.en").notes == ("blank lines at the end of ends.en left out: 2",)
    for at in ((1,), (1, 2)):
        for suffix, lines in (("en", english), ("ko", korean)):
            marked = [
                line.replace(" ", "\r", 1) if i in at[: 1 if suffix == "en" else 2] else line
                for i, line in enumerate(lines)
            ]
            (tmp_path / f"cr.{suffix}").write_bytes("\n".join(marked).encode())
        loaded = pairs(tmp_path / "cr")
        assert [[text.replace("\r", " ") for text in pair] for pair in both(loaded)] == [
            list(pair) for pair in zip(english, korean)
        ]


@pytest.mark.parametrize(
    "content, expected",
    [
        ("en\tko\nOne.\t하나.\n", [("One.", "하나.")]),
        ("Korean\tEnglish\n하나.\tOne.\n", [("One.", "하나.")]),
        (
            '"He said ""no""."\t아니.\n"Yes."\t"응."\n',
            [('He said "no".', "아니."), ("Yes.", "응.")],
        ),
        (
            '"Two\nlines, ""so""."\t두 줄.\n"He ""x""."\t그.\n',
            [('Two\nlines, "so".', "두 줄."), ('He "x".', "그.")],
        ),
        (
            '"No."\t아니.\n"Yes," he said.\t응.\n',
            [('"No."', "아니."), ('"Yes," he said.', "응.")],
        ),  # quotes of the text
        ("Has\ra fever.\t열.\r\n", [("Has\ra fever.", "열.")]),
        ("\ufeffOne.\t하나.\n", [("One.", "하나.")]),
    ],
)
@pytest.mark.parametrize("suffix", ["tsv", "txt"])
def test_lines_of_tabs(tmp_path, content, expected, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content.encode())
    assert both(pairs(path)) == expected


def test_what_is_left_out_or_guessed_of_lines_of_tabs_is_counted(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("One.\t하나.\tCC-BY\n둘.\tTwo.\n\nThree.\t셋.\n", "utf-8")
    assert set(pairs(path).notes) == {
        "lines with more than two cells, the further ones left out: 1",
        "lines with the Korean sentence first, read as such: 1",
        "blank lines passed over: 1",
    }


def test_a_tsv_exam_has_its_header(tmp_path, plain):
    path = tmp_path / "exam.tsv"
    path.write_text("\n".join([HEADER, *ROWS]).replace(",", "\t"), "utf-8")
    assert exam(path).rows == plain


def test_notes_of_a_source_too_large_for_memory_are_kept(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "a.txt"
    path.write_text(unicodedata.normalize("NFD", "하나\n\n둘\n"), "utf-8")
    source = Source("s", "text", str(path))
    small = load_examples(source, drop_bad=False)
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    for _ in range(2):  # converted, then from the cache
        large = load_examples(dataclasses.replace(source), drop_bad=False)
        assert (
            list(large.rows) == small.rows and large.notes == small.notes and len(small.notes) == 2
        )
