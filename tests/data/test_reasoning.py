"""The written form of reasoning, and that what is taught is what the parser reads."""

import pytest

from medkor_jax.data import embedded
from medkor_jax.data.question import LETTERS, prompt
from medkor_jax.data.reasoning import (
    ReasoningFormat,
    reasoned_example,
    reasoned_text,
    reasoning_prompt,
)
from medkor_jax.eval.answers import parse_reasoned

FORM = ReasoningFormat()


@pytest.mark.parametrize("language", ["ko", "en"])
def test_every_embedded_reasoning_reads_back_as_its_own_answer(language):
    for question in embedded.reasonings("train", language):
        found = parse_reasoned(reasoned_text(question, FORM), len(question.options), FORM)
        assert (found.has_format, found.answer) == (True, question.answer)
        assert found.reasoning == " ".join(question.rationale.split())


def test_the_prompt_differs_from_the_exams_in_its_last_line_only():
    for language, last in (("ko", "풀이："), ("en", "Reasoning:")):
        question = embedded.reasonings("valid", language)[0]
        *head, end = reasoning_prompt(question).split("\n")
        assert (head, end) == (prompt(question).split("\n")[:-1], last)


def test_only_the_continuation_carries_loss():
    example = reasoned_example(embedded.reasonings("train", "ko")[0], FORM)
    assert (
        [loss for _, loss in example.parts] == [False, True]
        and example.eos
        and not example.splittable
    )


def test_what_cannot_be_learnt_is_refused():
    question = embedded.questions("train", "ko")[0]
    with pytest.raises(ValueError, match="no rationale"):
        reasoned_text(question, FORM)
    with pytest.raises(ValueError, match="choose other tags"):
        reasoned_text(embedded.reasonings("train", "ko")[0], ReasoningFormat(".", "</R>"))
    with pytest.raises(ValueError, match="two different"):
        ReasoningFormat("<R>", "<R>")


@pytest.mark.parametrize(
    "text, has_format, answer",
    [
        (" <R> 왜냐하면 <R/> C", True, 2),
        ("<R>a<R/>C", True, 2),
        ("<R> a <R/> C.", True, None),
        ("<R> a <R/> C or D", True, None),
        ("<R> a <R/> F", True, None),
        ("<R> a <R/>", True, None),
        ("<R> . <R/> C", False, 2),
        ("<R> a <R/> <R> b <R/> C", False, 2),
        ("so: <R> a <R/> C", False, 2),
        ("a <R/> C", False, 2),
        ("C", False, 2),
        ("<R> a C", False, None),
        ("", False, None),
    ],
)
def test_the_parser_is_strict(text, has_format, answer):
    found = parse_reasoned(text, 5, FORM)
    assert (found.has_format, found.answer) == (has_format, answer)


def test_a_letter_past_the_options_is_no_answer():
    assert parse_reasoned("<R> a <R/> E", 4, FORM).answer is None
    assert LETTERS[parse_reasoned("<R> a <R/> D", 4, FORM).answer] == "D"
