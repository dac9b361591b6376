import dataclasses
import random

import pytest

from medkor_jax.data.leakage import find_leaks, unexcused
from medkor_jax.data.likeness import normalise, says_nothing
from medkor_jax.data.question import Question, example
from medkor_jax.data.rows import Example, Source
from medkor_jax.data.sources import load_examples, load_questions

OPTIONS = ("갑상샘저하증", "부신겉질기능저하증", "뇌하수체선종", "갑상샘암", "쿠싱증후군")
VIGNETTE = (
    "58세 여자가 3개월 전부터 몸무게가 늘고 추위를 탄다며 병원에 왔다. 혈압 110/70 mmHg, 맥박 52회/분이다. 피부는 건조하고 "
    "다리에 함요부종이 있다. 갑상샘자극호르몬은 32 mIU/L이고 유리 티록신은 0.3 ng/dL이다. 진단은?"
)


def question(stem, options=OPTIONS, answer=0, name="q"):
    return Question(name, "exam", None, "ko", stem, tuple(options), answer)


def text(words):
    return Example("t", ((words, True),), "ko", splittable=True)


def found(trained, judged):
    leaks = find_leaks([("train", [trained])], [("test", [judged])])
    assert len(leaks) <= 1
    return (leaks[0].kind, leaks[0].which) if leaks else None


JUDGED = question(VIGNETTE)


@pytest.mark.parametrize(
    "trained, expected",
    [
        (JUDGED, ("exact", "whole")),
        (question(VIGNETTE, OPTIONS[::-1], answer=4), ("exact", "whole")),
        (question(VIGNETTE, ["가", "나", "다", "라", "마"]), ("exact", "stem")),
        (question(VIGNETTE.replace(" ", "").replace("mmHg", "ＭＭＨＧ")), ("normalised", "whole")),
        (question(VIGNETTE.replace("58세", "59세"), OPTIONS), ("near", "whole")),
        (
            question(VIGNETTE.replace("58세", "59세"), ["가", "나", "다", "라", "마"]),
            ("near", "stem"),
        ),
        (
            question("58세 남자가 어제부터 배가 아프다며 병원에 왔다. 맥박 110회/분이다. 진단은?"),
            None,
        ),
        (text("다음을 풀어라.\n" + VIGNETTE + "\n답을 쓰라."), ("exact", "stem")),
        (example(JUDGED), ("exact", "whole")),
        (
            text(VIGNETTE.replace("추위를 탄다며", "추위를 많이 탄다며") + " 갑상샘저하증이다."),
            ("near", "stem"),
        ),
        (
            text(
                "갑상샘저하증에서는 몸무게가 늘고 추위를 타며 맥박이 느려진다. 갑상샘자극호르몬이 오르고 유리 티록신이 내린다."
            ),
            None,
        ),
    ],
)
def test_kinds(trained, expected):
    assert found(trained, JUDGED) == expected


def test_short_stems_need_their_options():
    for stem in (
        "옳은 것은?",
        "다음 중 옳지 않은 것은?",
        "Which of the following is correct?",
        "What is the most likely diagnosis?",
    ):
        assert says_nothing(stem), stem
        assert found(question(stem, ["가", "나", "다"]), question(stem)) is None
        assert found(question(stem), question(stem)) == ("exact", "whole")
    for stem in (
        "폐기종의 원인은?",
        "의사가 될 수 있는 사람은?",
        "간호단위 환경관리 방법으로 옳은 것은?",
        "Which drug inhibits ACE?",
    ):
        assert not says_nothing(stem), stem
        assert found(question(stem, ["가", "나", "다"]), question(stem)) == ("exact", "stem")


def test_one_template_on_two_facts_is_no_leak():
    syndromes = ("Cri du chat", "Wolf-Hirschhorn", "Patau", "Edwards", "Down")
    asked = "{} deletion is the chromosomal abnormality of which of the following?"
    assert (
        found(
            question(asked.format("5p"), syndromes, 0), question(asked.format("4p"), syndromes, 1)
        )
        is None
    )
    blood = "The blood test of a patient shows {} antibody. Which diagnosis does it support?"
    assert (
        found(
            question(blood.format("anti-Ro"), syndromes, 0),
            question(blood.format("anti-TPO"), syndromes[::-1], 0),
        )
        is None
    )
    classes = ("제1급", "제2급", "제3급", "제4급")
    law = "한국에서 {}의 법적 분류는?"
    assert (
        found(
            question(law.format("수족구병"), classes, 3), question(law.format("임질"), classes, 3)
        )
        is None
    )


def test_a_text_that_states_the_fact_is_no_leak_but_one_that_asks_it_is():
    judged = question(
        "소세포폐암과 신경내분비종양의 종양표지자는?", ("CA 15-3", "CEA", "AFP", "NSE", "PSA"), 3
    )
    assert found(text("소세포폐암과 신경내분비종양의 종양표지자는 NSE이다."), judged) is None
    assert found(text("문제: 소세포폐암과 신경내분비종양의 종양표지자는? NSE."), judged) == (
        "exact",
        "stem",
    )
    assert (
        found(
            text(
                "소세포폐암과 신경내분비종양의 종양표지자는 CEA, AFP, PSA, CA 15-3이 아니라 NSE이다."
            ),
            judged,
        )[1]
        == "whole"
    )


def test_judged_texts():
    paragraph = " ".join(f"문장 {i}은 서로 다른 말을 한다." for i in range(12))
    assert found(text(paragraph), text(paragraph)) == ("exact", "text")
    assert found(text("머리말. " + paragraph.replace(" ", "")), text(paragraph)) == (
        "normalised",
        "text",
    )
    assert found(text(paragraph.replace("문장 3은", "글월 3은")), text(paragraph)) == (
        "near",
        "text",
    )
    assert found(text(paragraph[:60]), text(paragraph)) is None


def test_long_documents_are_found_through_their_sample():
    """Far longer than the sample of runs that the index holds, with one word in thirty changed."""
    rng = random.Random(0)
    words = [
        "".join(rng.choices("가나다라마바사아자차카타파하", k=rng.randint(2, 5)))
        for _ in range(900)
    ]
    judged = text(" ".join(words))
    for i in range(0, 900, 30):
        words[i] = "바뀜"
    other = text(" ".join(rng.sample(words, 900)))
    assert found(text(" ".join(words)), judged) == ("near", "text")
    assert found(other, judged) is None


def test_one_leak_for_each_judged_document_and_source_at_its_closest():
    near = dataclasses.replace(question(VIGNETTE.replace("58세", "59세")), id="near")
    exact = dataclasses.replace(JUDGED, id="same")
    leaks = find_leaks(
        [("a", [near, exact]), ("b", [near])],
        [("test", [JUDGED, question("다른 병의 원인이 되는 것은?", name="r")])],
    )
    assert [(leak.key, leak.kind, leak.more) for leak in leaks] == [
        ("a:same ~ test:q", "exact", 1),
        ("b:near ~ test:q", "near", 0),
    ]
    assert (
        leaks[0].similarity == 1
        and 0.8 <= leaks[1].similarity < 1
        and leaks[0].judged_excerpt.endswith("...")
    )


def test_naming_a_leak_excuses_it():
    leaks = find_leaks([("a", [JUDGED]), ("b", [JUDGED])], [("test", [JUDGED])])
    assert unexcused(leaks, []) == leaks
    assert [leak.trained_source for leak in unexcused(leaks, ["a ~ test"])] == ["b"]
    assert unexcused(leaks, ["b:q ~ test:q", "a ~ test"]) == []


def test_nothing_judged_or_trained():
    assert find_leaks([("a", [JUDGED])], []) == [] and find_leaks([], [("a", [JUDGED])]) == []
    assert normalise("Ａ_b-１ 가.") == "ab1가"


def test_the_embedded_exam_does_not_leak():
    for language in ("ko", "en"):

        def exam(split):
            source = Source(split, "exam", "embedded", split=split, language=language)
            return split, load_questions(source, drop_bad=False).rows

        texts = load_examples(
            Source("texts", "text", "embedded", language=language), drop_bad=False
        ).rows
        pairs = load_examples(Source("pairs", "translation", "embedded"), drop_bad=False).rows
        assert (
            find_leaks(
                [exam("train"), ("texts", texts), ("pairs", pairs)], [exam("valid"), exam("test")]
            )
            == []
        )


@pytest.fixture(scope="module")
def real(shared_data):
    def load(part):
        path = shared_data / f"kormedmcqa/{part}.csv"
        return part, load_questions(Source(part, "exam", str(path)), drop_bad=True).rows

    return load


SUBJECTS = ("doctor", "nurse", "pharm", "dentist")


def test_real_stem_that_recurs_with_other_options(real):
    """Of the known recurring stems, the one whose two splits are both in the folder, and no false one beside it."""
    trained = [real(f"{subject}/train") for subject in SUBJECTS]
    leaks = find_leaks(
        trained, [real(f"{subject}/valid") for subject in SUBJECTS] + [real("doctor/test")]
    )
    assert [(leak.key, leak.kind, leak.which) for leak in leaks] == [
        ("nurse/train:nurse/train/530 ~ nurse/valid:nurse/valid/239", "exact", "stem")
    ]


def test_real_fewshot_is_found_in_valid(real):
    valid, shots = (
        [real(f"{subject}/valid") for subject in SUBJECTS],
        [real(f"{subject}/fewshot") for subject in SUBJECTS],
    )
    leaks = find_leaks(valid, shots)
    assert len(leaks) == 20 and {(leak.kind, leak.which) for leak in leaks} == {("exact", "whole")}
    assert find_leaks([real("doctor/train")], shots) == []


def test_real_questions_are_found_again_after_edits(real):
    """One word of the stem misspelt: at least 95 % are found, and never another question in their place."""
    rng = random.Random(0)
    judged = real("doctor/test")[1] + real("nurse/valid")[1]

    def misspelt(q):
        words = q.question.split(" ")
        i = rng.randrange(len(words))
        words[i] = words[i][:1] + "ㅇ" + words[i][1:]
        return dataclasses.replace(q, question=" ".join(words))

    leaks = find_leaks([("edited", [misspelt(q) for q in judged])], [("judged", judged)])
    assert all(leak.trained_id == leak.judged_id for leak in leaks) and len(leaks) >= 0.95 * len(
        judged
    )


def test_real_texts_hold_no_question(real, shared_data):
    texts = [
        load_examples(Source(name, "text", str(shared_data / path)), drop_bad=False).rows
        for name, path in (
            ("medquad", "english_text/medquad-5k.jsonl.gz"),
            ("genmed", "korean_text/genmedgpt-5k-ko.csv"),
        )
    ]
    english = load_questions(
        Source("en", "exam", str(shared_data / "kormedmcqa_en/doctor-valid.jsonl")), drop_bad=False
    ).rows
    assert (
        find_leaks([("texts", texts[0]), ("ko", texts[1])], [real("doctor/test"), ("en", english)])
        == []
    )
