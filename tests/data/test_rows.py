import dataclasses

import pytest

from medkor_jax.data.cells import text_language
from medkor_jax.data.rows import BadDataError, BadRow, Source, part_name, read_rows


def test_source_refuses_what_it_cannot_mean():
    with pytest.raises(
        ValueError, match="kind is 'txt', expected one of text, chat, exam, reasoning, translation"
    ):
        Source("s", "txt", "a.txt")
    with pytest.raises(ValueError, match="weight is 0"):
        Source("s", "text", "a.txt", weight=0)
    with pytest.raises(ValueError, match="language is 'kr'"):
        Source("s", "text", "a.txt", language="kr")


def test_error_shows_twenty_rows_and_counts_the_rest():
    error = BadDataError([BadRow("f.csv", row, "option A is empty") for row in range(1, 24)])
    assert (
        str(error).startswith("23 bad rows")
        and "row 20:" in str(error)
        and "row 21:" not in str(error)
    )
    assert str(error).endswith("... and 3 more") and len(error.bad) == 23


def test_json_document_with_one_list_gives_its_rows(tmp_path):
    path = tmp_path / "terms.json"
    path.write_text('{"total": 2, "results": [{"a": 1}, {"a": 2}]}')
    assert list(read_rows(Source("s", "text", str(path)))) == [(1, {"a": 1}), (2, {"a": 2})]


def test_lines_that_are_not_json_objects_are_reasons(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n[1]\n')
    rows = dict(read_rows(Source("s", "text", str(path))))
    assert (
        rows[1] == {"a": 1} and rows[2].startswith("not JSON") and rows[3].startswith("a JSON list")
    )


def test_limit_byte_order_mark_and_unknown_suffix(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufefftext\none\ntwo\n".encode())
    source = Source("s", "text", str(path), limit=1)
    assert list(read_rows(source)) == [(1, {"text": "one"})] and part_name(source) == "a"
    other = tmp_path / "a.xlsx"
    other.write_text("")
    with pytest.raises(BadDataError, match="'.xlsx', expected one of .csv"):
        list(read_rows(dataclasses.replace(source, path=str(other))))


def test_broken_gzip_is_a_sentence(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00broken")
    with pytest.raises(BadDataError, match="cannot be read"):
        list(read_rows(Source("s", "text", str(path))))


def test_language_of_mixed_text():
    assert text_language("급성 심근경색(acute myocardial infarction)의 치료는 무엇입니까?") == "ko"
    assert (
        text_language(
            "The term 심근경색 means myocardial infarction, that is, death of heart muscle."
        )
        == "en"
    )
    assert text_language("12.5 mg/dL") == "en"
