"""How a question's answer is taught: by its text, as cloze exams ask it, or behind its options, judged in turn."""

import dataclasses
import re

import pytest

from medkor_jax.data.chat import ChatTemplate
from medkor_jax.data.question import LETTERS, cloze_prompt, option_text
from medkor_jax.data.reasoning import ReasoningFormat, reasoned_text
from medkor_jax.data.source import Source
from medkor_jax.data.sources import load_examples, load_questions
from medkor_jax.data.style import Plain
from medkor_jax.data.thinking import THOUGHT_CLOSES, THOUGHT_OPENS
from medkor_jax.eval.answers import parse_reasoned

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
        (
            dict(answered_by="words"),
            "answered_by is 'words', expected one of letter, text, in_turn",
        ),
        (dict(kind="reasoning"), "is 'text' of kind 'reasoning'; it is for kind 'exam'"),
        (dict(kind="text"), "is 'text' of kind 'text'"),
        (dict(answered_by="in_turn"), "is 'in_turn' of kind 'exam'; it is for kind 'reasoning'"),
        (dict(orders=2), "in 2 orders; options are then not shown"),
    ],
)
def test_it_is_of_exams_without_options(wrong, said):
    with pytest.raises(ValueError, match=said):
        Source("q", **(OURS | dict(answered_by="text") | wrong))


REASONED = dict(path="embedded", kind="reasoning", licence="Apache-2.0", answered_by="in_turn")


@pytest.mark.parametrize(
    "form", [ReasoningFormat(), ReasoningFormat(THOUGHT_OPENS + "thought", THOUGHT_CLOSES)]
)
@pytest.mark.parametrize("language, no, yes", [("ko", "아니다", "맞다"), ("en", "no", "yes")])
def test_options_judged_in_turn_end_with_the_letter_to_be_written(language, no, yes, form):
    """In every order of the options, as reward and score read it, also as the model's own thought."""
    source = Source("q", language=language, orders=3, **REASONED)
    questions = {q.id: q for q in load_questions(source, drop_bad=False).rows}
    examples = load_examples(source, drop_bad=False, form=form).rows
    assert len(examples) > 2 * len(questions)
    keys = set()
    for example in examples:
        (asked, _), (told, is_learnt) = example.parts
        question = questions[example.id.partition("/order")[0]]
        options = dict(re.findall(r"^([A-E])\. (.*)$", asked, re.MULTILINE))
        key = next(c for c, one in options.items() if one == question.options[question.answer])
        read = parse_reasoned(told.strip(), len(options), form)
        assert is_learnt and read.has_format and LETTERS[read.answer] == key
        judged = [f"{c}. {one}: {yes if c == key else no}." for c, one in options.items()]
        assert read.reasoning.endswith(" ".join(judged[: LETTERS.index(key) + 1]))
        keys.add(key)
    assert keys == set("ABCDE")


def test_reasoning_of_the_embedded_exam_can_state_the_right_fact_alone():
    (whole, brief) = (
        load_questions(Source("q", language="en", rationale=named, **REASONED), drop_bad=False).rows
        for named in ((), ("right",))
    )
    for long, short in zip(whole, brief, strict=True):
        assert (long.id, long.options) == (short.id, short.options)
        statement, _, end = short.rationale.partition(" The answer is ")
        assert statement in long.rationale and len(short.rationale) < len(long.rationale)
        assert end == f"{short.options[short.answer]}."


@pytest.mark.parametrize("named", [("cot",), ("right", "rationale")])
def test_other_columns_of_it_are_refused(named):
    with pytest.raises(ValueError, match="rationale"):
        load_questions(Source("q", language="en", rationale=named, **REASONED), drop_bad=False)


def test_a_tag_among_the_options_is_refused():
    question = load_questions(Source("q", language="en", **REASONED), drop_bad=False).rows[0]
    marked = dataclasses.replace(question, options=("<R/> x", *question.options[1:]), answer=1)
    reasoned_text(marked, ReasoningFormat())
    with pytest.raises(ValueError, match="holds '<R>' or '<R/>'"):
        reasoned_text(marked, ReasoningFormat(), "in_turn")
