"""Large sources are read in parts, kept, and found again: the same documents as small ones in memory."""

import dataclasses
import json
import os
import pathlib
import random

import pytest

from medkor_jax.data import converting, sources
from medkor_jax.data.kept import cache_directory
from medkor_jax.data.rows import BadDataError, Source
from medkor_jax.data.sources import load_examples
from medkor_jax.data.stored import StoredExamples

RNG = random.Random(0)
WORDS = "fever cough 18µg ２５ 열이 난다 ﬁbrosis é\u0301 \u1112\u1161\u11ab b\rc".split(" ")


def words(n):
    return " ".join(RNG.choices(WORDS, k=n))


FIRST = {"text": "text", "chat": "input", "translation": "en"}
BESIDE = {"text": b"", "chat": b', "output": "b"', "translation": b', "ko": "\xea\xb0\x80"'}
ODD = [
    b"", b"   ", b"{broken", b'"text"', b"[1]", b"{%s: NaN}", b"{%s: \"\"}", b"{%s: \"a\", %s: \"b\"}", b"{%s: \"\\ud800\"}",
    b"{%s: \"\xb0\xa1\"}", "{%s: \"\ufffd\"}".encode(), b"\xef\xbb\xbf{%s: \"x\"}", b"{%s: 7}", b"{%s: true}", "{%s: \"\ufeffmark\"}".encode(),
]  # fmt: skip


def odd_lines(kind, rows):
    """The rows as lines, among them what a reader has something to say of."""
    lines = [json.dumps(row, ensure_ascii=RNG.random() < 0.5).encode() for row in rows]
    for line in ODD:
        line = line.replace(b"%s", f'"{FIRST[kind]}"'.encode())
        lines.insert(RNG.randrange(5, len(lines)), line[:-1] + BESIDE[kind] + line[-1:] if line.endswith(b"}") else line)
    return lines


ROWS = {
    "text": lambda i: {"text": f"{i} {words(30)}"},
    "chat": lambda i: {"input": f"{i} {words(9)}", "output": words(20)},
    "translation": lambda i: {"en": f"fever {i} {RNG.random()}", "ko": f"열 {i}"},
}
ENDS = {"\n": b"\n", "\r\n": b"\r\n"}


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Everything is large, and cut into many parts that two processes read."""
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDKOR_WORKERS", "2")
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(converting, "PART_BYTES", 1500)


def in_memory(source, monkeypatch, **more):
    with monkeypatch.context() as patch:
        patch.setattr(sources, "IN_MEMORY_BYTES", 2**40)
        return load_examples(source, drop_bad=True, **more)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("begins, ends", [(b"", True), (b"\xef\xbb\xbf", False)])
def test_a_file_read_in_parts_is_the_file_read_at_once(kind, end, begins, ends, large, monkeypatch, tmp_path):
    path = tmp_path / "a.jsonl"
    lines = odd_lines(kind, [ROWS[kind](i) for i in range(80)])
    path.write_bytes(begins + ENDS[end].join(lines) + ENDS[end] * ends)
    source = Source("s", kind, str(path))
    assert len(converting._cuts(source)) > 4
    whole, stored = in_memory(source, monkeypatch), load_examples(source, drop_bad=True)
    assert isinstance(stored.rows, StoredExamples) and list(stored.rows) == whole.rows and len(whole.rows) >= 80
    assert stored.bad == whole.bad and len(stored.bad) > 5 and stored.notes == whole.notes and len(stored.notes) > 1
    again = load_examples(dataclasses.replace(source, name="t"), drop_bad=True)
    assert [e.id.replace("t/", "s/", 1) for e in again.rows] == [e.id for e in whole.rows]
    assert len(list((cache_directory() / "rows").glob("*.lock"))) == 1  # under another name nothing is read again
    with pytest.raises(BadDataError) as refused:
        load_examples(source, drop_bad=False)
    with pytest.raises(BadDataError) as expected, monkeypatch.context() as patch:
        patch.setattr(sources, "IN_MEMORY_BYTES", 2**40)
        load_examples(source, drop_bad=False)
    assert str(refused.value) == str(expected.value)


def test_wrong_columns_in_a_later_part_are_the_same_sentence(large, monkeypatch, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text" if i < 50 else "body" if i < 60 else "corpus": words(20)}) + "\n" for i in range(99)), "utf-8")
    source, said = Source("s", "text", str(path)), []
    for load in (lambda: load_examples(source, drop_bad=True), lambda: in_memory(source, monkeypatch)):
        with pytest.raises(BadDataError, match="no column 'text'.*the columns are 'body'") as error:
            load()
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("name, text", [
    ("a.jsonl", lambda: ("\ufeff" + "".join(json.dumps({"text": words(20)}) + "\n" for _ in range(99))).encode("utf-16-le")),
    ("a.csv", ("text\n" + "".join(f'"{words(5)}"\n' for _ in range(99))).encode),
    ("a.txt", lambda: "".join(f"{words(20)}\n" for _ in range(99)).encode()),
    ("a.json", lambda: json.dumps([{"text": words(9)} for _ in range(99)]).encode()),
])  # fmt: skip
def test_other_forms_are_read_by_one_and_give_the_same(name, text, large, monkeypatch, tmp_path):
    path = tmp_path / name
    path.write_bytes(text())
    source = Source("s", "text", str(path))
    assert converting._cuts(source) == []
    whole, stored = in_memory(source, monkeypatch), load_examples(source, drop_bad=True)
    assert isinstance(stored.rows, StoredExamples) and list(stored.rows) == whole.rows and stored.notes == whole.notes
    assert len(whole.rows) >= 99


def test_a_file_that_is_refused_is_refused_in_the_same_words(large, monkeypatch, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\r' * 500)
    for load in (load_examples, lambda source, drop_bad: in_memory(source, monkeypatch)):
        with pytest.raises(BadDataError, match="ends its lines in CR alone"):
            load(Source("s", "text", str(path)), drop_bad=True)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} {words(20)}"}) + "\n" for i in range(60)), "utf-8")
    return path


def load(path, **more):
    return load_examples(Source("s", "text", str(path), **more), drop_bad=True).rows


def test_one_byte_of_the_source_is_seen_even_where_times_and_size_say_nothing(large, text_file):
    before = load(text_file)
    said = os.stat(text_file)
    raw = text_file.read_bytes()
    text_file.write_bytes(raw.replace(b'"59 ', b'"58 '))
    os.utime(text_file, ns=(said.st_atime_ns, said.st_mtime_ns))
    after = load(text_file)
    assert after.digest != before.digest and after[59].parts[0][0].startswith("58 ")
    text_file.write_bytes(raw)
    assert load(text_file).digest == before.digest and len([*(cache_directory() / "rows").glob("*/about.json")]) == 2


def test_how_it_is_read_is_part_of_what_is_kept(large, text_file):
    assert load(text_file).digest == load(text_file, weight=3.0, licence="x").digest
    assert load(text_file, language="ko").digest != load(text_file).digest
    assert len(load(text_file, limit=20_000)) == 60 and len([*(cache_directory() / "rows").glob("*/about.json")]) == 3


@pytest.mark.parametrize("file", ["0000.texts", "ends.npy", "about.json", "files.json"])
def test_what_is_damaged_is_made_anew(file, large, text_file):
    rows = load(text_file)
    expected, place = list(rows), rows.directory / file
    raw = bytearray(place.read_bytes())
    raw[len(raw) // 2] ^= 1
    place.write_bytes(raw)
    assert list(load(text_file)) == expected
    assert list(rows) == expected or file != "0000.texts"  # whoever has it open reads on, too


def test_a_file_that_changes_while_it_is_read_is_refused(large, text_file, monkeypatch):
    read = sources.convert

    def convert(source, directory, how):
        read(source, directory, how)
        text_file.write_bytes(text_file.read_bytes() + b'{"text": "late"}\n')

    monkeypatch.setattr(sources, "convert", convert)
    with pytest.raises(ValueError, match="was written to while it was read"):
        load(text_file)
    monkeypatch.undo()


def test_parts_end_where_lines_do_and_lose_nothing(large, text_file):
    source = Source("s", "text", str(text_file))
    cuts, raw = converting._cuts(source), pathlib.Path(text_file).read_bytes()
    assert cuts[0] == 0 and cuts[-1] == len(raw) and cuts == sorted(set(cuts))
    assert all(raw[cut - 1 : cut] == b"\n" for cut in cuts[1:])
    assert converting._cuts(dataclasses.replace(source, limit=20_000)) == []
