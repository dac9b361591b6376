import dataclasses
import json

import pytest

from medkor_jax.data import embedded
from medkor_jax.data.option_order import in_orders, keeps_order
from medkor_jax.data.sources import Source, load_examples, load_questions


@pytest.mark.parametrize(
    "option",
    [
        "Both A and B",
        "both A and B are correct",
        "A and C only",
        "A, B, and C",
        "neither A nor B",
        "Either (A) or (C)",
        "Options B and D",
        "all of the above",
        "All of the above.",
        "None of the above",
        "both of the above",
        "None of these",
        "All are correct",
        "only A",
        "위의 모두",
        "위 보기 모두",
        "이상 모두 옳다",
        "상기 모두",
        "모두 맞다",
        "모두 정답이다",
        "둘 다 맞다",
        "A와 B",
        "A와 B 모두",
        "A, C",
        "A 또는 C",
        "A와 B가 맞다",
        "①과 ③",
        "1번과 2번",
        "정답 없음",
        "보기 모두 해당한다",
        "위 항목 모두",
    ],
)
def test_an_option_that_speaks_of_others_keeps_the_order(option):
    assert keeps_order(("aspirin", option, "heparin"))


@pytest.mark.parametrize(
    "option",
    [
        "vitamins A and D",
        "hepatitis A and B",
        "A형과 B형",
        "비타민 A와 D",
        "A와 B형 간염",
        "A",
        "B",
        "None",
        "group A streptococcus",
        "both kidneys",
        "all four limbs",
        "모두 제거한다",
        "열팽창계수는 상아질의 8배 이상이다.",
        "13번 세염색체증",
        "7번응고인자결핍증",
        "요추 3번과 4번 사이",
        "Telescoping of 2 parts of the intestine into each other",
        "ㄱ, ㄷ",
    ],
)
def test_other_options_may_move(option):
    assert not keeps_order((option, "heparin"))


def test_exams_that_hold_few(shared_data):
    for split in embedded.SPLITS:
        assert not any(
            keeps_order(q.options)
            for language in ("ko", "en")
            for q in embedded.questions(split, language)
        )
    questions = load_questions(
        Source("d", "exam", str(shared_data / "kormedmcqa/doctor/train.csv")), drop_bad=True
    ).rows
    assert [q.options for q in questions if keeps_order(q.options)] == [
        ("키", "체중", "치아", "머리둘레", "해당 없음")
    ]
    english = load_questions(
        Source("m", "exam", str(shared_data / "english_exam/medqa-5-options-dev.jsonl")),
        drop_bad=True,
    ).rows
    assert (
        sum(keeps_order(q.options) for q in english) == 1
    )  # "A only", "B only", "C only", "A and B", "A, B, and C"


@pytest.mark.parametrize(
    "option",
    [
        "해당 없음",
        "해당사항 없음",
        "답 없음",
        "답이 없다",
        "모두 다",
        "모든 보기",
        "A~C 모두",
        "A-C",
        "A through C",
        "All except C",
        "All but D",
        "Everything above",
        "The first two options",
    ],
)
def test_spans_exceptions_and_nothing_speak_of_others(option):
    assert keeps_order(("aspirin", "heparin", option))


@pytest.mark.parametrize(
    "option",
    [
        "없음",
        "특이 소견 없음",
        "Vitamin A to be given",
        "None needed",
        "B-cell lymphoma",
        "A-V block",
        "a- c",
        "None",
        "C - 반응성 단백",
    ],
)
def test_findings_and_names_with_letters_do_not(option):
    assert not keeps_order(("aspirin", "heparin", option))


def test_a_question_is_taught_in_as_many_orders_as_asked_for_its_answer_always_under_its_letter():
    question = embedded.reasonings("train", "ko")[0]
    orders = in_orders(question, 6)
    assert orders[0] == question and len({one.options for one in orders}) == 6
    assert len({one.id for one in orders}) == 6
    assert {one.options[one.answer] for one in orders} == {question.options[question.answer]}
    assert {frozenset(one.options) for one in orders} == {frozenset(question.options)}
    assert len({one.answer for one in orders}) >= 3 and in_orders(question, 6) == orders
    assert in_orders(question, 1) == [question]


@pytest.mark.parametrize(
    "rationale",
    ["B is wrong, so D.", "정답은 3번이다.", "①은 아니다.", "(2) is right", "보기 C가 맞다"],
)
def test_reasoning_that_speaks_of_letters_keeps_the_order_that_it_speaks_of(rationale):
    question = dataclasses.replace(embedded.questions("train", "ko")[0], rationale=rationale)
    assert in_orders(question, 4) == [question]
    plain = dataclasses.replace(question, rationale="비타민이 모자란 병이다.")
    assert len(in_orders(plain, 4)) == 4


def test_a_source_teaches_its_questions_in_orders_and_says_which_it_cannot(tmp_path):
    rows = [
        dict(question=f"q{i}", A="a1", B="b1", C="c1", D="d1", E="e1", answer="B", cot=cot)
        for i, cot in enumerate(["it is b1", "A is wrong, 정답: B"])
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source("q", "reasoning", str(path), language="en", orders=3)
    loaded = load_examples(source, drop_bad=False)
    assert len(loaded.rows) == 3 + 1 and "1 of 2 questions are taught in fewer" in loaded.notes[-1]
    letters = [example.parts[1][0].split()[-1] for example in loaded.rows[:3]]
    shown = [example.parts[0][0] for example in loaded.rows[:3]]
    for letter, prompt in zip(letters, shown, strict=True):
        assert f"{letter}. b1" in prompt or f"{letter}: b1" in prompt or f"{letter}) b1" in prompt
    assert len(load_examples(dataclasses.replace(source, orders=1), drop_bad=False).rows) == 2


def test_orders_are_of_questions():
    with pytest.raises(ValueError, match="orders is 3 of kind 'text', expected 1"):
        Source("t", "text", "embedded", orders=3)
