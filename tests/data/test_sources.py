import pytest

from medkor_jax.data import embedded, rows, sources
from medkor_jax.data.exams import stated_letter
from medkor_jax.data.question import LETTERS
from medkor_jax.data.reasoning import ReasoningFormat, reasoned_example
from medkor_jax.data.rows import BadDataError, BadRow, Source
from medkor_jax.data.sources import load_examples, load_questions


def test_exam_becomes_prompt_and_letter(write_jsonl):
    path = write_jsonl("a.jsonl", [{"question": "Which?", "A": "x", "B": "y", "answer": "B"}])
    (example,) = load_examples(Source("e", "exam", path), drop_bad=False).rows
    assert (
        example.parts == (("Which?\nA. x\nB. y\nAnswer:", False), (" B", True))
        and not example.splittable
    )
    with pytest.raises(ValueError, match="of kind 'text', expected 'exam' or 'reasoning'"):
        load_questions(Source("e", "text", path), drop_bad=False)


def test_nothing_usable_is_an_error_even_when_bad_rows_are_dropped(write_jsonl):
    with pytest.raises(BadDataError, match="no usable row: 0 good, 1 bad"):
        load_examples(Source("e", "text", write_jsonl("a.jsonl", [{"text": ""}])), drop_bad=True)


QUESTION = {"question": "Which?", "A": "x", "B": "y", "answer": "B"}


def test_reasoning_is_learnt_where_its_answer_is_the_key(write_jsonl):
    rationales = [
        "Because. The answer is B.",
        "",
        "The answer is A.",
        "Since <R/>, y.",
        "So y it is.",
    ]
    path = write_jsonl(
        "r.jsonl", [{**QUESTION, "id": str(i), "cot": text} for i, text in enumerate(rationales)]
    )
    source = Source("r", "reasoning", path)
    loaded = load_examples(source, drop_bad=False)
    assert (
        [e.id for e in loaded.rows]
        == ["0", "4"]
        == [q.id for q in load_questions(source, drop_bad=False).rows]
    )
    assert loaded.rows[1].parts == (
        ("Which?\nA. x\nB. y\nReasoning:", False),
        (" <R> So y it is. <R/> B", True),
    )
    assert (
        loaded.notes
        == (
            "2 of 5 questions left out: without a rationale that leads to its key",
            "1 of 5 questions left out: with '<R>' or '<R/>' in the rationale",
        )
        and not loaded.bad
    )
    other = load_examples(source, drop_bad=False, form=ReasoningFormat("[", "]"))
    assert [e.id for e in other.rows] == ["0", "3", "4"] and other.rows[0].parts[1][0].startswith(
        " [ Because."
    )


def test_bad_rows_of_a_reasoning_source_stay_bad_and_nothing_usable_is_an_error(write_jsonl):
    path = write_jsonl("r.jsonl", [{**QUESTION, "cot": "Because."}, {**QUESTION, "answer": "C"}])
    with pytest.raises(BadDataError, match="row 2: answer out of range"):
        load_examples(Source("r", "reasoning", path), drop_bad=False)
    assert len(load_examples(Source("r", "reasoning", path), drop_bad=True).bad) == 1
    with pytest.raises(
        BadDataError, match="0 good, 0 bad; 1 of 1 questions left out: without a rationale"
    ):
        load_examples(
            Source("r", "reasoning", write_jsonl("none.jsonl", [QUESTION])), drop_bad=True
        )


@pytest.mark.parametrize("language", ["ko", "en"])
def test_embedded_reasoning_is_that_of_its_split(language):
    source = Source("r", "reasoning", "embedded", split="valid", language=language)
    loaded = load_examples(source, drop_bad=False)
    assert loaded.rows == [
        reasoned_example(q, ReasoningFormat()) for q in embedded.reasonings("valid", language)
    ]
    assert not loaded.notes


def test_real_reasoning_leads_to_its_key(shared_data):
    """The file was filtered by its makers; where the reasoning states a letter in plain words, it is the key."""
    loaded = load_questions(
        Source("cot", "reasoning", str(shared_data / "kormedmcqa_cot/train-r1.jsonl.gz")),
        drop_bad=True,
    )
    assert len(loaded.rows) == 2000 and not loaded.notes
    stated = [(stated_letter(q.rationale), LETTERS[q.answer]) for q in loaded.rows]
    assert (
        all(said in ("", key) for said, key in stated)
        and sum(said == key for said, key in stated) > 1400
    )
    medqa = Source("cot", "reasoning", str(shared_data / "english_exam/medqa-train-cot-458.jsonl"))
    assert load_questions(medqa, drop_bad=False).notes == (
        "24 of 458 questions left out: without a rationale that leads to its key",
    )


@pytest.fixture
def everything_is_large(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)


def test_large_sources_are_stored_and_give_the_same_examples(
    write_jsonl, monkeypatch, everything_is_large
):
    said = [{"input": f"질문 {i}", "output": f"답 {i}"} for i in range(50)]
    said[7]["output"] = ""
    source = Source("s", "chat", write_jsonl("a.jsonl", said))
    stored = load_examples(source, drop_bad=True)
    assert isinstance(stored.rows, sources.StoredExamples) and stored.bad == [
        BadRow(source.path, 8, "output is empty")
    ]
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

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": ["열", ""]})
    )
    loaded = load_examples(Source("s", "text", "someone/texts", split="train"), drop_bad=True)
    assert loaded.rows[0].parts == (("열", True),) and loaded.bad == [
        BadRow("someone/texts train", 2, "text is empty")
    ]
    assert (
        rows.is_hub_id("someone/texts")
        and not rows.is_hub_id("texts/a.jsonl")
        and not rows.is_hub_id("a/b/c")
    )
