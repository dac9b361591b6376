import random

import pytest

from medkor_jax.data.question import LETTERS
from medkor_jax.eval.answers import extract_letter, parse_answer, patterns


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" B", "B"),
        ("정답: c", "C"),
        ("정답:\n  D", "D"),
        ("정답은 E 입니다", "E"),
        ("정답은 E입니다", "E"),
        ("정답 A, 다시 보니 정답 B", "B"),  # the last match of the first pattern that matches
        ("정답: A 그러나 C. 또는 D", "A"),  # a later pattern never overrules an earlier one
        ("B. 또는 C", "B"),
        ("A와 E", "E"),  # "A와" is one word to the patterns
        ("정답：B", "B"),  # full-width colon: found by the last pattern
        ("B입니다", ""),
        ("FAB", ""),
        ("", ""),
        ("2", ""),
    ],
)
def test_reads_the_letter_a_korean_text_chose(text, letter):
    assert extract_letter(text) == letter


def test_equals_the_harness_filter_and_metric_on_random_texts():
    filters = pytest.importorskip(
        "lm_eval.tasks.kormedmcqa.utils", reason="lm-eval is not installed"
    )
    from lm_eval.api.metrics import exact_match_hf_evaluate

    pieces = ["정답", "정답은", "입니다", *":：. \n()*_은F1Ａ", *"ABCDEabcde"]
    generator = random.Random(0)
    texts = ["".join(generator.choices(pieces, k=generator.randrange(12))) for _ in range(20_000)]
    theirs = filters.ExtractChoiceFilter().apply([texts], [{}])[0]
    assert [extract_letter(text) for text in texts] == theirs
    assert (
        0.1 < sum(letter == "" for letter in theirs) / len(theirs) < 0.9
    )  # both outcomes were really tried

    for text, letter in zip(texts[:2000], theirs[:2000]):
        key = generator.choice(LETTERS[:5])
        scored = exact_match_hf_evaluate(
            [letter],
            [key],
            regexes_to_ignore=[" ", "\n"],
            ignore_case=True,
            ignore_punctuation=True,
        )["exact_match"]
        assert (parse_answer(text, 5) == LETTERS.index(key)) == bool(scored)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" B", "B"),
        ("The answer is C because it is a beta blocker", "C"),
        ("Answer: D\nE is wrong", "D"),
        ("D is a good choice", "D"),  # "a" is a word, not option A
        (r"\boxed{E}", "E"),
        ("a beta blocker", ""),
    ],
)
def test_reads_the_letter_an_english_text_chose(text, letter):
    assert extract_letter(text, "en") == letter


def test_a_letter_beyond_the_options_is_no_answer():
    assert parse_answer("정답: D", 5) == 3
    assert parse_answer("정답: D", 4) == 3
    assert parse_answer("정답: D", 3) is None
    assert parse_answer("모름", 5) is None


@pytest.mark.parametrize("text, n_options, language, answer", [
    ("정답: H", 10, "ko", 7), ("정답은 j 입니다", 10, "ko", 9), ("정답: H", 7, "ko", None), ("답은 F.", 6, "ko", 5), ("정답: H. 아니, B", 10, "ko", 7),
    ("The answer is G", 8, "en", 6), ("Answer: I", 9, "en", 8), ("I think the answer is C, I'd say", 10, "en", 2), ("B, I think", 10, "en", 1),
    ("정답: F", 5, "ko", None), ("F. 그리고 B", 5, "ko", 1),
])  # fmt: skip
def test_more_than_five_options_have_their_own_letters(text, n_options, language, answer):
    assert parse_answer(text, n_options, language) == answer


def test_patterns_of_up_to_five_options_are_the_harnesss():
    for n_options in (2, 3, 4, 5):
        assert [p.pattern for p in patterns("ko", n_options)] == [
            r"정답[:\s]*([ABCDE])", r"정답은\s*([ABCDE])\s*입니다", r"\b([ABCDE])\.", r"\b([ABCDE])\b"]  # fmt: skip


def test_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="11 options"):
        parse_answer("A", 11)
    with pytest.raises(ValueError, match="'ja'"):
        extract_letter("A", "ja")
