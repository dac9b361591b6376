"""The same thing trained on in one form and judged in another: every form against every form."""

import dataclasses

import pytest

from medkor_jax.data.leakage import find_leaks
from medkor_jax.data.likeness import content_key
from medkor_jax.data.pairs import Pair, both_ways, pair_of
from medkor_jax.data.question import Question, answer_text, example, prompt
from medkor_jax.data.rows import Example, Source
from medkor_jax.data.sources import load_examples, load_questions

STEM = "58세 여자가 3개월 전부터 몸무게가 늘고 추위를 탄다며 병원에 왔다. 맥박 52회/분이다. 진단은?"
ASKED = Question(
    "q", "exam", None, "ko", STEM, ("갑상샘저하증", "부신겉질기능저하증", "뇌하수체선종"), 0
)
OTHER = Question(
    "o",
    "exam",
    None,
    "ko",
    "폐기종에서 줄어드는 것으로 알맞은 검사값은 무엇인가?",
    ("일초량", "전폐용량", "잔기량"),
    0,
)
PAIR = Pair(
    "p",
    "The patient was given aspirin and felt better within an hour.",
    "환자는 아스피린을 복용하고 한 시간 안에 나아졌다.",
)


def text(words, name="t", language="ko"):
    return Example(name, ((words, True),), language, splittable=True)


ASKED_AS = {
    "question": ASKED,
    "prompt and letter": example(ASKED),
    "text": text(STEM),
    "text with options": text(prompt(ASKED) + answer_text(ASKED)),
    "text around it": text(
        "다음을 풀어 보자.\n"
        + prompt(ASKED)
        + answer_text(ASKED)
        + "\n해설: "
        + "몸이 붓고 느려지면 이 병을 먼저 생각한다. " * 12
    ),
}


LARGER = {
    "text": ("prompt and letter", "text with options", "text around it"),
    "prompt and letter": ("text around it",),
    "text with options": ("text around it",),
}
A_PART_ALONE = {
    (small, large) for small in LARGER for large in LARGER[small]
}  # of a judged text is trained on: not found, as `leakage` says


@pytest.mark.parametrize("judged", ASKED_AS)
@pytest.mark.parametrize("trained", ASKED_AS)
def test_a_question_is_found_in_whatever_form_it_is_trained_on_and_judged(trained, judged):
    leaks = find_leaks(
        [("a", [OTHER, text("다른 글이다.")]), ("train", [ASKED_AS[trained]])],
        [("judged", [ASKED_AS[judged], OTHER])],
    )
    found = {(leak.trained_source, leak.judged_id) for leak in leaks}
    if (trained, judged) in A_PART_ALONE:
        found.add(("train", ASKED_AS[judged].id))
    assert found == {("train", ASKED_AS[judged].id), ("a", "o")}


def test_a_question_whose_stem_says_nothing_is_found_inside_a_text_by_its_options():
    asked = Question(
        "q",
        "exam",
        None,
        "ko",
        "옳은 것은?",
        (
            "갑상샘저하증에서는 맥박이 빨라진다",
            "쿠싱증후군에서는 얼굴이 둥글어진다",
            "당뇨병에서는 혈당이 낮다",
        ),
        1,
    )
    around = text("문제. " + prompt(asked) + answer_text(asked) + " 끝.")
    for trained, judged in ((asked, around), (around, asked)):
        assert [leak.which for leak in find_leaks([("a", [trained])], [("b", [judged])])] == [
            "whole"
        ]
    other = dataclasses.replace(asked, options=("가", "나", "다"))
    assert (
        find_leaks([("a", [around])], [("b", [other])])
        == []
        == find_leaks([("a", [other])], [("b", [around])])
    )


ENGLISH, KOREAN = text(PAIR.en, "e", "en"), text(f"처음에. {PAIR.ko} 그리고 나서.", "k")


@pytest.mark.parametrize("trained, found", [
    ([("en", [ENGLISH]), ("ko", [KOREAN])], ["en:e ~ held:p", "ko:k ~ held:p"]),
    ([("both", [ENGLISH, KOREAN])], ["both:e ~ held:p"]),
    ([("pairs", both_ways(PAIR))], ["pairs:p/en-ko ~ held:p"]),
    ([("one", [text(f"{PAIR.ko}\t{PAIR.en}")])], ["one:t ~ held:p"]),
    ([("en", [ENGLISH])], []),
    ([("ko", [KOREAN])], []),
], ids=["each in a source", "each a text of one", "a pair", "one line", "the English side alone", "the Korean side alone"])  # fmt: skip
def test_a_judged_pair_is_found_by_its_two_sides_wherever_they_are_trained_on(trained, found):
    other = Pair("x", "He has had a fever since Monday morning.", "그는 월요일 아침부터 열이 났다.")
    leaks = find_leaks(
        [("zero", [text("아무 말도 아니다."), *both_ways(other)[:0]]), *trained],
        [("held", [PAIR, other])],
    )
    assert [leak.key for leak in leaks] == found
    if len(found) == 2:
        assert {(leak.kind, leak.which) for leak in leaks} == {("exact", "sides")}


def test_a_judged_pair_is_the_same_as_the_examples_it_teaches():
    examples = both_ways(PAIR)
    assert [(pair.en, pair.ko) for pair in map(pair_of, examples)] == [(PAIR.en, PAIR.ko)] * 2
    assert pair_of(ENGLISH) is None is pair_of(example(ASKED))
    leaks = find_leaks([("en", [ENGLISH]), ("ko", [KOREAN])], [("held", examples)])
    assert [leak.key for leak in leaks] == [
        f"{name} ~ held:p/{way}" for name in ("en:e", "ko:k") for way in ("en-ko", "ko-en")
    ]


def test_short_sides_that_anybody_says_are_no_leak():
    assert (
        find_leaks(
            [("t", [text("Yes.", "a", "en"), text("네.", "b")])],
            [("held", [Pair("p", "Yes.", "네.")])],
        )
        == []
    )
    short = Pair("p", "He has a fever.", "그는 열이 난다.")
    assert [
        leak.key
        for leak in find_leaks(
            [("t", [text("He has a fever.", "a", "en")]), ("u", [text("그는 열이 난다.", "b")])],
            [("held", [short])],
        )
    ] == ["t:a ~ held:p", "u:b ~ held:p"]
    together = text(
        "참고: He has a fever. (그는 열이 난다.) 그리고 약을 먹었다.", "c"
    )  # each is too short to be looked for inside a text; both are not
    assert [
        (leak.key, leak.which) for leak in find_leaks([("t", [together])], [("held", [short])])
    ] == [("t:c ~ held:p", "sides")]
    assert (
        find_leaks(
            [("t", [text("참고: He has a fever. 그리고 약을 먹었다.", "c")])], [("held", [short])]
        )
        == []
    )


VIGNETTE = "62세 남자가 가슴이 아파 왔다. 혈압 95/60 mmHg, 맥박 118회/분, troponin I 2.35 ng/mL, CK-MB 48 ng/mL이다. 처치는?"
TRANSLATED = (
    "A 62-year-old man comes in with chest pain. Blood pressure is 95/60 mmHg, pulse 118/min, troponin I 2.35 ng/mL, CK-MB 48 ng/mL. "
    "What is the treatment?"
)
KO = Question("k", "kormedmcqa/doctor", 2021, "ko", VIGNETTE, ("수액", "관상동맥중재술", "관찰"), 1)
EN = Question(
    "e", "elsewhere", None, "en", TRANSLATED, ("fluids", "coronary intervention", "observation"), 1
)
PLAIN_KO = Question(
    "k",
    "kormedmcqa/doctor",
    2021,
    "ko",
    "폐기종의 원인은 무엇인가?",
    ("흡연", "운동", "수면"),
    0,
    number="1/12",
)
PLAIN_EN = Question(
    "e",
    "elsewhere",
    None,
    "en",
    "What is the cause of emphysema?",
    ("smoking", "exercise", "sleep"),
    0,
)


@pytest.mark.parametrize("korean, english, which", [
    (PLAIN_KO, PLAIN_EN, None),
    (PLAIN_KO, dataclasses.replace(PLAIN_EN, origin=content_key(PLAIN_KO)), "origin"),
    (PLAIN_KO, dataclasses.replace(PLAIN_EN, exam="kormedmcqa/doctor", year=2021, number="1/12"), "number"),
    (PLAIN_KO, dataclasses.replace(PLAIN_EN, exam="kormedmcqa/doctor", year=2021, number="1/13"), None),
    (PLAIN_KO, dataclasses.replace(PLAIN_EN, exam="kormedmcqa/nurse", year=2021, number="1/12"), None),
    (PLAIN_KO, dataclasses.replace(PLAIN_EN, exam="kormedmcqa/doctor", year=2020, number="1/12"), None),
    (KO, EN, "marks"),
    (KO, dataclasses.replace(EN, question=TRANSLATED.replace("2.35", "0.02").replace("118", "71").replace("48", "3")), None),
    (KO, dataclasses.replace(EN, question=TRANSLATED * 3), None),
])  # fmt: skip
def test_a_question_is_found_in_the_other_language_either_way(korean, english, which):
    for trained, judged in ((english, korean), (korean, english)):
        leaks = find_leaks([("t", [trained])], [("j", [judged])])
        assert [(leak.kind, leak.which) for leak in leaks] == (
            [("translated", which)] if which else []
        )


def test_two_translations_of_one_question_are_one():
    one = dataclasses.replace(PLAIN_EN, origin=content_key(PLAIN_KO))
    other = Question(
        "f",
        "elsewhere",
        None,
        "en",
        "Why does emphysema come about?",
        ("tobacco", "sport", "rest"),
        0,
        origin=content_key(PLAIN_KO),
    )
    assert [leak.which for leak in find_leaks([("t", [one])], [("j", [other])])] == ["origin"]


def test_a_text_that_asks_a_judged_question_in_the_other_language_is_found():
    assert [
        leak.which for leak in find_leaks([("t", [text(prompt(EN), "e", "en")])], [("j", [KO])])
    ] == ["marks"]


@pytest.fixture(scope="module")
def load(shared_data):
    return lambda path: (
        load_questions(Source("x", "exam", str(shared_data / path)), drop_bad=True).rows
    )


@pytest.fixture(scope="module")
def doctor(load):
    return {
        "ko": [
            ("train", load("kormedmcqa/doctor/train.csv")),
            ("valid", load("kormedmcqa/doctor/valid.csv")),
            ("test", load("kormedmcqa/doctor/test.csv")),
        ],
        "en": [
            ("en-valid", load("kormedmcqa_en/doctor-valid.jsonl")),
            ("en-train", load("kormedmcqa_en/doctor-train-sample.jsonl")),
        ],
    }


def test_real_translations_are_found_by_year_and_number(doctor):
    for trained, judged in ((doctor["en"], doctor["ko"]), (doctor["ko"], doctor["en"])):
        leaks = find_leaks(trained, judged)
        assert len(leaks) == 290 and all(
            leak.which == "number" and leak.trained_id == leak.judged_id for leak in leaks
        )


def test_real_translations_without_a_number_are_found_by_their_marks_and_nothing_else_is(doctor):
    """What `translated` says it finds."""
    bare = [
        (name, [dataclasses.replace(question, number="") for question in questions])
        for name, questions in doctor["en"]
    ]
    leaks = find_leaks(bare, doctor["ko"])
    assert all(leak.which == "marks" and leak.trained_id == leak.judged_id for leak in leaks)
    assert {name: sum(leak.trained_source == name for leak in leaks) for name, _ in bare} == {
        "en-valid": 101,
        "en-train": 89,
    }


def test_real_questions_and_texts_of_elsewhere_are_hardly_ever_taken_for_translations(
    doctor, load, shared_data
):
    """The figures of docs/LEAKS.md."""
    medqa = [
        (
            "medqa",
            [
                *load("english_exam/medqa-5-options-dev.jsonl"),
                *load("english_exam/medqa-train-cot-458.jsonl"),
            ],
        )
    ]
    others = [
        (
            subject,
            [*load(f"kormedmcqa/{subject}/train.csv"), *load(f"kormedmcqa/{subject}/valid.csv")],
        )
        for subject in ("nurse", "pharm", "dentist")
    ]
    leaks = find_leaks(medqa, [*doctor["ko"], *others])
    assert len(medqa[0][1]) == 1730 and [leak.judged_id for leak in leaks] == [
        "nurse/train/342",
        "pharm/train/366",
        "pharm/valid/70",
    ]
    paths = {
        "text": ("english_text/medquad-5k.jsonl.gz", "korean_text/genmedgpt-5k-ko.csv", "korean_text/korquad-dev-paragraphs.jsonl"),
        "translation": ("parallel_ko_en/tatoeba-kor.txt", "parallel_ko_en/jhe-dev", "parallel_ko_en/news-dev"),
    }  # fmt: skip
    texts = [
        (path, load_examples(Source("x", kind, str(shared_data / path)), drop_bad=True).rows)
        for kind in paths
        for path in paths[kind]
    ]
    assert [
        leak for leak in find_leaks(texts, [*doctor["ko"], *others]) if leak.kind == "translated"
    ] == []


def test_every_real_question_is_found_in_a_judged_text_that_holds_it(doctor):
    (_, asked) = doctor["ko"][2]
    texts = [text(prompt(question) + answer_text(question), question.id) for question in asked]
    for trained, judged in ((asked, texts), (texts, asked)):
        leaks = find_leaks([("t", trained)], [("j", judged)])
        assert len(leaks) == 435 and all(leak.trained_id == leak.judged_id for leak in leaks)


def test_real_held_out_pairs_are_found_by_their_sides(shared_data):
    examples = load_examples(
        Source("news", "translation", str(shared_data / "parallel_ko_en/news-dev")), drop_bad=True
    ).rows
    pairs = [
        Pair(f"{i}", *(examples[at].parts[1][0].strip() for at in (2 * i + 1, 2 * i)))
        for i in range(100)
    ]
    english, korean = (
        [text(getattr(pair, code), pair.id, code) for pair in pairs] for code in ("en", "ko")
    )
    leaks = find_leaks([("en", english), ("ko", korean)], [("held", pairs)])
    assert {leak.judged_id for leak in leaks} == {pair.id for pair in pairs} and all(
        leak.trained_id == leak.judged_id for leak in leaks
    )
    assert find_leaks([("en", english)], [("held", pairs)]) == []
