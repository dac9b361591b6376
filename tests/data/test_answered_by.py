"""A question can be taught as cloze exams ask it: its right option's text behind the question alone."""

import pytest

from medkor_jax.data.chat import ChatTemplate
from medkor_jax.data.question import cloze_prompt, option_text
from medkor_jax.data.source import Source
from medkor_jax.data.sources import load_examples, load_questions
from medkor_jax.data.style import Plain

from .test_chat import GEMMA3, both  # noqa: F401

OURS = dict(kind="exam", path="embedded", split="train", licence="Apache-2.0")


@pytest.mark.parametrize("language", ["ko", "en"])
def test_what_is_taught_is_token_for_token_what_a_cloze_exam_scores(byte_tokenizer, language):
    source = Source("q", language=language, answered_by="text", **OURS)
    questions = load_questions(source, drop_bad=False).rows
    examples = load_examples(source, drop_bad=False).rows
    style = Plain(byte_tokenizer)
    assert len(questions) == len(examples) > 100
    for question, example in zip(questions, examples):
        ids, loss = style.dialogue(example.parts)
        asked = style.prompt(cloze_prompt(question))[1:]  # without <bos>
        scored = style.answer(option_text(question.options[question.answer]))
        assert ids == [*asked, *scored, byte_tokenizer.eos_id]
        assert loss == [False] * len(asked) + [True] * (len(scored) + 1)


@pytest.mark.parametrize("language", ["ko", "en"])
def test_so_it_is_in_chat(both, language):  # noqa: F811
    """A turn of the model, that begins as a cloze exam's option does."""
    chat = ChatTemplate(GEMMA3, both[0])
    source = Source("q", language=language, answered_by="text", **OURS)
    questions = load_questions(source, drop_bad=False).rows[:30]
    for question, example in zip(questions, load_examples(source, drop_bad=False).rows):
        ids, loss = chat.dialogue(example.parts)
        asked = chat.prompt(cloze_prompt(question))[1:]
        scored = chat.answer(option_text(question.options[question.answer]))
        assert ids[: len(asked) + len(scored)] == [*asked, *scored]
        assert loss[: len(asked)] == [False] * len(asked) and all(loss[len(asked) :][: len(scored)])


def test_the_other_options_are_not_shown():
    source = Source("q", language="en", answered_by="text", **OURS)
    question = load_questions(source, drop_bad=False).rows[0]
    told = "".join(text for text, _ in load_examples(source, drop_bad=False).rows[0].parts)
    wrong = [option for i, option in enumerate(question.options) if i != question.answer]
    assert question.options[question.answer] in told and not any(one in told for one in wrong)


def test_its_records_say_nothing_new_where_it_is_off():
    assert "answered_by" not in Source("q", language="en", **OURS).settings()
    assert (
        Source("q", language="en", answered_by="text", **OURS).settings()["answered_by"] == "text"
    )


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(answered_by="words"), "answered_by is 'words', expected 'letter' or 'text'"),
        (dict(kind="reasoning"), "is 'text' of kind 'reasoning' in 1 orders"),
        (dict(kind="text"), "is 'text' of kind 'text'"),
        (dict(orders=2), "in 2 orders; it is for kind 'exam', whose options are then not shown"),
    ],
)
def test_it_is_of_exams_without_options(wrong, said):
    with pytest.raises(ValueError, match=said):
        Source("q", **(OURS | dict(answered_by="text") | wrong))
