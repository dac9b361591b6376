"""What can be seen to be wrong with a translated question."""

import dataclasses

import pytest

from medkor_jax.data.exams import load
from medkor_jax.data.question import Question
from medkor_jax.data.rows import Source
from medkor_jax.data.translated_exam import TranslatedQuestion, find_faults

SOUND = Question("q", "x", 2020, "ko", "체온 37.5℃, 1,200 mL?", ("가 2", "나", "다"), 1)
TRANSLATED = TranslatedQuestion("q", "Temperature 37.5°C, 1200 mL?", ("two 2", "b", "c"), True)


@pytest.mark.parametrize(
    "change, to, reason",
    [
        ({}, "en", None),
        ({"question": "１２００ mL at 37.5?"}, "en", None),
        (
            {"question": "Temperature 37,5, 1200 mL?"},
            "en",
            "question has numbers 1200, 37,5, the original 1200, 37.5",
        ),
        (
            {"question": "Temperature 37.5°C?"},
            "en",
            "question has numbers 37.5, the original 1200, 37.5",
        ),
        ({"options": ("two 2 2", "b", "c")}, "en", "option A has numbers 2, 2, the original 2"),
        ({"options": ("two", "b", "c")}, "en", "option A has numbers none, the original 2"),
        ({"options": ("two 2", "b 1", "c")}, "en", "option B has numbers 1, the original none"),
        ({"options": ("two 2", "b")}, "en", "2 options, the original has 3"),
        ({"options": ("two 2", "b", " ")}, "en", "option C is empty"),
        ({"options": ("two 2", "b", "다 c")}, "en", "option C has Korean left: '다 c'"),
        ({"options": ("two 2", "b c.", "B  C")}, "en", "options B and C both say 'B  C'"),
        (
            {"options": ("two 2", "+", "-")},
            "en",
            "options B and C both say '-'",
        ),  # the originals are words
        ({"options": ("two 2", "b", "c \ufffd")}, "en", "option C holds U+FFFD"),
        ({"is_whole": False}, "en", "a text was cut by length"),
        ({}, "ko", "question has no Korean"),
        ({"question": "체온 37.5도, 1200 mL?"}, "ko", None),
    ],
)
def test_each_fault_is_found(change, to, reason):
    faults = find_faults(SOUND, dataclasses.replace(TRANSLATED, **change), to)
    assert faults == () if reason is None else len(faults) == 1 and faults[0].startswith(reason)


@pytest.mark.parametrize(
    "korean, english, is_same",
    [
        ("34만 명", "340,000 people", True),
        ("1.5억 원", "150000000 won", True),
        ("3천만", "30,000,000", True),
        ("100만", "1 million", False),
        ("2백만 개", "2,000,000 of them", True),
        ("5만성 질환", "5 chronic diseases", True),
        ("90만", "90", False),
        ("１２㎎", "12 mg", True),
    ],
)
def test_korean_counts_in_myriads(korean, english, is_same):
    faults = find_faults(
        dataclasses.replace(SOUND, question=korean),
        dataclasses.replace(TRANSLATED, question=english),
        "en",
    )
    assert (faults == ()) == is_same


def test_options_that_differ_in_signs_alone_may_do_so_again():
    signs = dataclasses.replace(SOUND, options=("2", "(+)", "(-)"))
    assert (
        find_faults(signs, dataclasses.replace(TRANSLATED, options=("2", "(+)", "(-)")), "en") == ()
    )
    assert find_faults(signs, dataclasses.replace(TRANSLATED, options=("2", "+", "+")), "en") == (
        "options B and C both say '+'",
    )


def test_hand_made_translations_pass(shared_data):
    """What a person translated fails in numbers alone: "four" for 4, or a myriad put another way."""
    korean = {
        q.id: q
        for q in load(
            Source("k", "exam", str(shared_data / "kormedmcqa/doctor/valid.csv")), drop_bad=False
        ).rows
    }
    english = load(
        Source("e", "exam", str(shared_data / "kormedmcqa_en/doctor-valid.jsonl")), drop_bad=False
    ).rows
    for to, sides in (("en", lambda q: (korean[q.id], q)), ("ko", lambda q: (q, korean[q.id]))):
        found = [
            find_faults(a, TranslatedQuestion(b.id, b.question, b.options, True), to)
            for a, b in map(sides, english)
        ]
        faults = [fault for faults in found for fault in faults]
        assert (
            len(found) == 164
            and sum(map(bool, found)) <= 11
            and all(" has numbers " in fault for fault in faults)
        )


def test_a_key_that_would_not_read_back_is_a_fault():
    seven = dataclasses.replace(SOUND, id="7", year=None)
    assert find_faults(seven, dataclasses.replace(TRANSLATED, id="7"), "en") == ()
    (fault,) = find_faults(dataclasses.replace(SOUND, id=""), TRANSLATED, "en")
    assert fault.startswith("reads back as")
