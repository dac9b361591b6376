import pytest

from medkor_jax.data import rows, sources
from medkor_jax.data.rows import BadDataError, BadRow, Source
from medkor_jax.data.sources import load_examples, load_questions


def test_exam_becomes_prompt_and_letter(write_jsonl):
    path = write_jsonl("a.jsonl", [{"question": "Which?", "A": "x", "B": "y", "answer": "B"}])
    (example,) = load_examples(Source("e", "exam", path), drop_bad=False).rows
    assert example.parts == (("Which?\nA. x\nB. y\nAnswer:", False), (" B", True)) and not example.splittable
    with pytest.raises(ValueError, match="of kind 'text', expected 'exam'"):
        load_questions(Source("e", "text", path), drop_bad=False)


def test_nothing_usable_is_an_error_even_when_bad_rows_are_dropped(write_jsonl):
    with pytest.raises(BadDataError, match="no usable row: 0 good, 1 bad"):
        load_examples(Source("e", "text", write_jsonl("a.jsonl", [{"text": ""}])), drop_bad=True)


@pytest.fixture
def everything_is_large(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)


def test_large_sources_are_stored_and_give_the_same_examples(write_jsonl, monkeypatch, everything_is_large):
    said = [{"input": f"질문 {i}", "output": f"답 {i}"} for i in range(50)]
    said[7]["output"] = ""
    source = Source("s", "chat", write_jsonl("a.jsonl", said))
    stored = load_examples(source, drop_bad=True)
    assert isinstance(stored.rows, sources.StoredExamples) and stored.bad == [BadRow(source.path, 8, "output is empty")]
    with pytest.raises(BadDataError, match="row 8: output is empty"):
        load_examples(source, drop_bad=False)
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 2**20)
    assert list(stored.rows) == load_examples(source, drop_bad=True).rows and len(stored.rows) == 49
    assert stored.rows[-1].id == "s/49" and stored.rows[3:5] == list(stored.rows)[3:5]

    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(sources, "_read", lambda source: pytest.fail("converted again"))
    assert list(load_examples(source, drop_bad=True).rows) == list(stored.rows)


def test_a_changed_large_file_is_converted_again(write_jsonl, everything_is_large):
    source = Source("s", "text", write_jsonl("a.jsonl", [{"text": "old"}]))
    assert load_examples(source, drop_bad=False).rows[0].parts[0][0] == "old"
    write_jsonl("a.jsonl", [{"text": "newer"}])
    assert load_examples(source, drop_bad=False).rows[0].parts[0][0] == "newer"


def test_wrong_columns_of_a_large_file_are_still_a_sentence(write_jsonl, everything_is_large):
    with pytest.raises(BadDataError, match="no column 'text'"):
        load_examples(Source("s", "text", write_jsonl("a.jsonl", [{"body": "x"}])), drop_bad=False)


def test_text_from_a_hub_id(monkeypatch, everything_is_large):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": ["열", ""]}))
    loaded = load_examples(Source("s", "text", "someone/texts", split="train"), drop_bad=True)
    assert loaded.rows[0].parts == (("열", True),) and loaded.bad == [BadRow("someone/texts train", 2, "text is empty")]
    assert rows.is_hub_id("someone/texts") and not rows.is_hub_id("texts/a.jsonl") and not rows.is_hub_id("a/b/c")
