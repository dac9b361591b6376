"""The embedded exam: the table is sound, the splits are apart, and the languages say the same."""

import collections
import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

from medkor_jax.data import embedded
from medkor_jax.data.embedded import exam, table
from medkor_jax.data.embedded.particles import final_consonant, particle, settle_particles

HANGUL = re.compile("[가-힣]")
FACTS = {fact.id: fact for fact in embedded.facts()}
BOTH = [(split, language) for split in embedded.SPLITS for language in embedded.LANGUAGES]


def related(fact):
    return [other for other in FACTS.values() if other.relation == fact.relation]


def is_inverse(question, fact):
    return question.options[question.answer] == fact.subject(question.language)


def offered(question):
    """The facts that an option may stand for, for each option."""
    fact = FACTS[question.fact]
    side = 0 if is_inverse(question, fact) else 1
    return [
        [other for other in related(fact) if getattr(other, question.language)[side] == option]
        for option in question.options
    ]


def test_the_table_holds_about_two_hundred_facts_split_three_ways():
    assert len(FACTS) == len(embedded.facts()) >= 200
    share = collections.Counter(fact.split for fact in FACTS.values())
    assert set(share) == set(embedded.SPLITS)
    assert share["train"] / len(FACTS) == pytest.approx(0.6, abs=0.02)
    assert share["valid"] / len(FACTS) == pytest.approx(0.2, abs=0.02)


def test_every_relation_has_enough_answers_to_choose_from_and_no_subject_twice():
    assert {fact.relation for fact in FACTS.values()} == set(embedded.relations())
    for name in embedded.relations():
        members = table.facts_of(name)
        for language in embedded.LANGUAGES:
            subjects = [fact.subject(language) for fact in members]
            assert len(set(subjects)) == len(subjects), name
        answers = {fact.en[1]: fact.ko[1] for fact in members}
        # Korean law knows four classes; with "not notifiable" that is every option there is.
        assert len(answers) >= (5 if name == "notifiable" else 6), name
        assert len(set(answers.values())) == len(answers), (
            f"{name}: two English answers share a Korean one"
        )
        assert all(fact.ko[1] == answers[fact.en[1]] for fact in members), (
            f"{name}: one English answer has two Korean ones"
        )
        for fact in members:
            assert fact.also <= set(answers) - {fact.en[1]}, (
                f"{fact.id}: `also` names answers that are not offered"
            )


def test_every_template_names_what_it_should():
    for name, relation in embedded.relations().items():
        assert (
            len(relation.statements) >= 4
            and len(relation.forward) >= 3
            and len(relation.inverse) >= 3
        ), name
        for template in relation.statements:
            assert all("{s}" in side and "{a}" in side for side in template), (name, template)
        for template in relation.forward:
            assert all("{s}" in side and "{a}" not in side for side in template), (name, template)
        for template in relation.inverse:
            assert all("{a}" in side and "{s}" not in side for side in template), (name, template)


@pytest.mark.parametrize(("split", "language"), BOTH)
def test_questions_are_five_options_with_balanced_keys(split, language):
    asked = embedded.questions(split, language)
    assert len(asked) >= (300 if split == "train" else 80)
    assert len({question.id for question in asked}) == len(asked)
    assert len(
        {(question.question, frozenset(question.options), question.fact) for question in asked}
    ) == len(asked)
    keys = collections.Counter(question.answer for question in asked)
    assert set(keys) == set(range(5))
    assert max(keys.values()) - min(keys.values()) <= 1
    for question in asked:
        fact = FACTS[question.fact]
        assert len(set(question.options)) == 5 == len(question.options)
        assert (
            question.language == language
            and question.exam == "embedded"
            and question.rationale == ""
        )
        assert question.options[question.answer] in getattr(fact, language)
    about = collections.Counter(question.fact for question in asked)
    assert set(about) == {fact.id for fact in FACTS.values() if fact.split == split}
    assert set(about.values()) == ({6} if split == "train" else {2})


def test_a_training_fact_is_asked_under_several_letters_and_with_different_options():
    letters, options = collections.defaultdict(set), collections.defaultdict(set)
    for question in embedded.questions("train", "ko"):
        letters[question.fact].add(question.answer)
        options[question.fact].add(frozenset(question.options))
    assert min(map(len, letters.values())) >= 3
    assert min(len(seen) for fact, seen in options.items()) >= 2


@pytest.mark.parametrize(("split", "language"), BOTH)
def test_no_wrong_option_is_true(split, language):
    for question in embedded.questions(split, language):
        fact = FACTS[question.fact]
        for number, candidates in enumerate(offered(question)):
            assert candidates, (question.id, question.options[number])
            if number == question.answer:
                continue
            for other in candidates:
                right = (
                    other.allows(fact.en[1])
                    if is_inverse(question, fact)
                    else fact.allows(other.en[1])
                )
                assert not right, f"{question.id} offers {question.options[number]!r} as wrong"


def test_a_true_option_would_be_left_out():
    fact = FACTS["pathogen/croup"]
    virus, disease = "respiratory syncytial virus", "bronchiolitis"
    assert fact.allows(virus) and not fact.allows("Coxiella burnetii")
    for seed in range(50):
        rng = exam.random.Random(seed)
        assert virus not in [other.en[1] for other in exam._wrong_options(fact, False, rng)]
        assert disease not in [other.en[0] for other in exam._wrong_options(fact, True, rng)]


@pytest.mark.parametrize("language", embedded.LANGUAGES)
def test_splits_share_no_fact_and_no_question_and_training_offers_training_facts_only(language):
    stems, asked = {}, {}
    for split in embedded.SPLITS:
        asked[split] = embedded.questions(split, language)
        for question in asked[split]:
            assert FACTS[question.fact].split == split
            assert stems.setdefault(question.question, split) == split, (
                f"{question.question!r} is asked in two splits"
            )
    for question in asked["train"]:
        for candidates in offered(question):
            assert any(other.split == "train" for other in candidates), question.id
    held_out = [question.question for split in ("valid", "test") for question in asked[split]]
    assert len(set(held_out)) == len(held_out)


@pytest.mark.parametrize("split", embedded.SPLITS)
def test_english_is_the_exact_translation_of_korean(split):
    for ask in (embedded.questions, embedded.reasonings):
        english, korean = ask(split, "en"), ask(split, "ko")
        assert len(english) == len(korean)
        for en, ko in zip(english, korean):
            assert (en.id, en.fact, en.answer) == (ko.id, ko.fact, ko.answer)
            fact = FACTS[en.fact]
            side = 0 if is_inverse(en, fact) else 1
            translated = {other.en[side]: other.ko[side] for other in related(fact)}
            assert tuple(translated[option] for option in en.options) == ko.options
            relation = embedded.relations()[fact.relation]
            wordings = relation.forward if side else relation.inverse
            assert (en.question, ko.question) in [
                tuple(table.fill(w, fact, lang) for lang in ("en", "ko")) for w in wordings
            ]


@pytest.mark.parametrize(("split", "language"), BOTH)
def test_reasonings_place_every_option_and_end_in_the_right_one(split, language):
    for question, bare in zip(
        embedded.reasonings(split, language), embedded.questions(split, language), strict=True
    ):
        assert dataclasses.replace(question, rationale="") == bare
        for option in question.options:
            assert option.lower() in question.rationale.lower(), (question.id, option)
        last = re.split(r"(?<=\.) ", question.rationale)[-1]
        right = question.options[question.answer]
        assert last.endswith(f"{right}." if language == "en" else f"정답은 {right}이다."), (
            question.rationale
        )
        assert not re.search(
            r"\b[A-E][.)]|[(][A-E]\b|\b(?:option|answer is|정답은) [A-E]\.", question.rationale
        )


def everything(language):
    for split in embedded.SPLITS:
        for question in embedded.reasonings(split, language):
            yield from (question.question, question.rationale)
    yield from (text for _, text in embedded.texts(language))


def test_each_text_is_in_its_language_and_fully_filled():
    for text in everything("en"):
        assert not HANGUL.search(text), text
        assert not re.search(r"[{}]|  ", text) and not re.match("[a-z]{2}", text), text
    for text in everything("ko"):
        assert HANGUL.search(text), text
        assert not re.search(r"[{}]|  |[가-힣]/[가-힣]", text), text


@pytest.mark.parametrize("language", embedded.LANGUAGES)
def test_every_fact_is_told_in_its_exam_wording(language):
    told = embedded.texts(language)
    assert len({name for name, _ in told}) == len({text for _, text in told}) == len(told)
    for fact in FACTS.values():
        own = [text for name, text in told if name.startswith(f"embedded/{language}/{fact.id}/")]
        subject, answer = fact.subject(language).lower(), fact.answer(language).lower()
        assert len(own) >= 4
        lowered = [text.lower() for text in own]
        assert all(subject in text and answer in text for text in lowered)
        # A subject may hold its answer's words, so look for each where the other is cut out.
        first = [
            text.replace(answer, "@", 1).find("@") < text.replace(subject, "#", 1).find("#")
            for text in lowered
        ]
        assert len(set(first)) == 2, f"{fact.id} is told in one direction only"
        paragraphs = [
            text
            for name, text in told
            if re.fullmatch(rf"embedded/{language}/{fact.relation}/all/\w+/\d+", name)
        ]
        assert sum(own[0] in text for text in paragraphs) == 1
        assert sum(own[-1] in text for text in paragraphs) == 1


def test_texts_of_a_split_tell_its_facts_only():
    for split in embedded.SPLITS:
        told = embedded.texts("en", split)
        ids = {
            name.removeprefix("embedded/en/").rsplit("/", 1)[0]
            for name, _ in told
            if f"/{split}/" not in name
        }
        assert ids == {fact.id for fact in FACTS.values() if fact.split == split}
        known = {text for name, text in embedded.texts("en") if "/all/" not in name}
        own = {text for name, text in told if f"/{split}/" not in name}
        assert own <= known
        whole = " ".join(text for name, text in told if f"/{split}/" in name)
        assert not [text for text in known - own if text in whole]


def test_pairs_are_the_texts_side_by_side():
    english, korean = dict(embedded.texts("en")), dict(embedded.texts("ko"))
    rows = embedded.pairs()
    assert len({name for name, _, _ in rows}) == len(rows) >= 4 * len(FACTS)
    for name, en, ko in rows:
        key = name.removeprefix("embedded/pair/")
        assert en == english[f"embedded/en/{key}"] and ko == korean[f"embedded/ko/{key}"]
    parts = [embedded.pairs(split) for split in embedded.SPLITS]
    assert sorted(pair for part in parts for pair in part) == sorted(rows) and all(parts)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no split 'dev'; expected one of train, valid, test"):
        embedded.questions("dev", "ko")
    with pytest.raises(ValueError, match="no language 'fr'"):
        embedded.texts("fr")


def test_another_process_generates_the_same():
    script = (
        "import hashlib; from medkor_jax.data import embedded as e;"
        "made = [[e.reasonings(s, l) for s in e.SPLITS] + e.texts(l) for l in e.LANGUAGES] + e.pairs();"
        "print(hashlib.sha256(repr(made).encode()).hexdigest())"
    )
    root = str(pathlib.Path(embedded.__file__).parents[3])
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": root,
                "PYTHONHASHSEED": seed,
                "PYTHONIOENCODING": "utf-8",
            },
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("word", "pair", "expected"),
    [
        ("와파린", "은/는", "은"),
        ("비타민 K", "을/를", "를"),
        ("매독", "이/가", "이"),
        ("콜레라", "이/가", "가"),
        ("혈액", "으로/로", "으로"),
        ("알코올", "으로/로", "로"),
        ("연앙인구", "으로/로", "로"),
        ("황체", "과/와", "와"),
        ("CA 125", "은/는", "는"),
        ("trisomy 21", "이/가", "이"),
        ("파르보바이러스 B19", "은/는", "는"),
        ("콕사키바이러스 A16", "은/는", "은"),
        ("t(9;22)", "이/가", "가"),
        ("TSH", "을/를", "를"),
        ("EGFR", "은/는", "은"),
        ("DNA", "이/가", "가"),
        ("IgM", "이/가", "이"),
        ("비타민 B1", "으로/로", "로"),
        ("virus", "을/를", "를"),
        ("protein", "은/는", "은"),
        ("펠라그라(pellagra)", "은/는", "는"),
        ("각기병 (beriberi)", "이/가", "이"),
    ],
)
def test_particles_follow_how_the_word_is_read(word, pair, expected):
    assert particle(word, pair) == expected


def test_settling_particles_in_a_sentence():
    assert (
        settle_particles("와파린은/는 비타민 K을/를 억제한다.") == "와파린은 비타민 K를 억제한다."
    )
    assert (
        settle_particles("치료는 산소으로/로, 예방은 백신으로/로 한다.")
        == "치료는 산소로, 예방은 백신으로 한다."
    )
    assert settle_particles("다음 중 콜레라은/는?") == "다음 중 콜레라는?"
    assert final_consonant("") == 0
