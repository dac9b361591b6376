"""Parts of the embedded exam: other wordings, and a cut whose every option its texts state."""

import collections

import pytest

from medkor_jax.data import embedded

CUT = "valid+test/deficiency,transmission,antidote,hormone"


@pytest.mark.parametrize("language", embedded.LANGUAGES)
def test_a_part_of_the_exam_offers_nothing_that_its_texts_do_not_state(language):
    """To prefer what one has read gains nothing there: every option is a fact that the texts state, as often as the right one."""
    questions = embedded.questions(CUT, language, "both")
    told = {fact.id: fact for fact in embedded.facts() if fact.split != "train"}
    taught = {q.fact for q in questions}
    assert len(questions) == 96 and len(taught) == 24
    names = {side for i in taught for side in getattr(told[i], language)}
    assert {option for q in questions for option in q.options} <= names
    texts = " ".join(text for _, text in embedded.texts(language, CUT)).casefold()
    counts = {i: texts.count(getattr(told[i], language)[0].casefold()) for i in taught}
    assert min(counts.values()) >= 7
    others = embedded.questions("valid+test/pathogen,sign,nerve", language, "both")
    assert not taught & {q.fact for q in others}


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no relation 'hormones'"):
        embedded.texts("ko", "valid/hormones")
    with pytest.raises(ValueError, match="no split 'validation'"):
        embedded.questions("valid+validation", "en")

    with pytest.raises(ValueError, match="no split 'all'; expected one of train, valid, test"):
        embedded.texts("ko", "valid+all")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_another_wording_asks_the_same_facts_and_repeats_no_question(split):
    first, other = embedded.questions(split, "ko"), embedded.questions(split, "ko", "other")
    assert len(other) >= 48 and {q.fact for q in other} == {q.fact for q in first}
    assert not {q.question for q in other} & {q.question for q in first}
    assert not {q.id for q in other} & {q.id for q in first}
    counts = collections.Counter(q.answer for q in other)
    assert max(counts.values()) - min(counts.values()) <= 1
    twins = embedded.questions(split, "en", "other")
    assert [(q.id, q.answer) for q in twins] == [(q.id, q.answer) for q in other]


def test_wordings_of_training_questions_are_not_told_apart():
    with pytest.raises(ValueError, match="every wording at once; subset 'other' is of valid and"):
        embedded.questions("train", "ko", "other")
    with pytest.raises(ValueError, match="no wording .subset. 'another'"):
        embedded.questions("valid", "ko", "another")
