import pytest

from medkor_jax.data.check import FEWSHOT, JUDGED, TRAINED, Use, check
from medkor_jax.data.rows import Source
from medkor_jax.data.style import Plain

STEM = "신경내분비종양에서 올라가는 종양표지자로 알맞은 것은?"


@pytest.fixture
def uses(write_jsonl):
    row = {"question": STEM, "A": "NSE", "B": "CEA", "answer": "A"}
    train = write_jsonl(
        "train.jsonl",
        [
            {"question": "폐기종의 원인은?", "A": "흡연", "B": "운동", "answer": "A"},
            {**row, "B": ""},
        ],
    )
    valid = write_jsonl("valid.jsonl", [row])
    words = write_jsonl("words.jsonl", [{"text": "Fever."}, {"text": "열이 난다."}, {"text": STEM}])
    return [
        Use(TRAINED, Source("train", "exam", train, licence="CC BY-NC 2.0")),
        Use(TRAINED, Source("words", "text", words)),
        Use(JUDGED, Source("valid", "exam", valid)),
        Use(FEWSHOT, Source("shots", "exam", valid)),
    ]


def test_report(uses, byte_tokenizer):
    report = check(uses, Plain(byte_tokenizer))
    train, words, _valid, _shots = report.sources
    assert (train.rows, train.languages, train.source.licence, train.purpose) == (
        1,
        {"ko": 1},
        "CC BY-NC 2.0",
        "trained",
    )
    assert [(bad.row, bad.reason) for bad in train.bad] == [
        (2, "option B is empty")
    ] and not words.bad
    assert words.rows == 3 and words.languages == {"en": 1, "ko": 2}
    # Tokens are bytes here; bos and eos add two. The texts: 6, 14 and the stem's bytes; a space is one token.
    stem = len(STEM.replace(" ", "").encode()) + STEM.count(" ") + 2
    assert (words.tokens.median, words.tokens.longest, words.tokens.total) == (
        16,
        stem,
        8 + 16 + stem,
    )
    assert words.tokens.p95 == round(16 + 0.9 * (stem - 16))
    assert [(leak.trained_source, leak.judged_source, leak.which) for leak in report.leaks] == [
        ("words", "valid", "stem"),
        ("shots", "valid", "whole"),
    ]
    assert not report.is_clean and report.allowed_leaks == []


def test_named_leaks_and_no_tokenizer(uses):
    report = check(uses[1:], allowed=["words ~ valid", "shots ~ valid"])
    assert report.is_clean and len(report.allowed_leaks) == 2 and report.sources[0].tokens is None


def test_reasoning_on_a_judged_question_is_a_leak(write_jsonl, byte_tokenizer):
    row = {
        "question": "열의 원인은?",
        "A": "NSE",
        "B": "CEA",
        "answer": "A",
    }  # too short to be looked for inside a text
    path = write_jsonl("r.jsonl", [{**row, "cot": "NSE이다."}, row])
    report = check(
        [Use(TRAINED, Source("r", "reasoning", path)), Use(JUDGED, Source("valid", "exam", path))],
        Plain(byte_tokenizer),
    )
    reasoned, valid = report.sources
    assert reasoned.rows == 1 and reasoned.notes == (
        "1 of 2 questions left out: without a rationale that leads to its key",
    )
    assert [(leak.kind, leak.which, leak.trained_id) for leak in report.leaks] == [
        ("exact", "whole", "r/r/0")
    ] * 2
    added = len("풀이： <R> NSE이다. <R/> A".encode()) - len("정답： A".encode())
    assert reasoned.tokens.longest - valid.tokens.longest == added


def test_a_source_that_cannot_be_read_is_reported_not_raised(uses):
    report = check([Use(TRAINED, Source("gone", "text", "gone.jsonl")), *uses[2:3]])
    assert (
        report.sources[0].rows == 0
        and "no such file" in report.sources[0].bad[0].reason
        and report.sources[1].rows == 1
    )
    with pytest.raises(
        ValueError, match="purpose is 'train', expected 'trained', 'judged' or 'few-shot'"
    ):
        Use("train", uses[0].source)
