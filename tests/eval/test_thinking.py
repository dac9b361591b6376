"""What a model thinks before it answers: never read as an answer, limited and counted apart, in exams and in rewards."""

import dataclasses
import json

import numpy as np
import pytest

from medkor_jax.data.contents import checksum
from medkor_jax.data.question import prompt
from medkor_jax.data.reasoning import ReasoningFormat, reasoning_prompt
from medkor_jax.data.style import Plain
from medkor_jax.data.thinking import SWITCH, hide_thought
from medkor_jax.eval import asked, exam, harness
from medkor_jax.eval.answers import parse_answer, parse_reasoned
from medkor_jax.eval.metric import pairing
from medkor_jax.eval.report import Report
from medkor_jax.eval.scoring import Continuation
from medkor_jax.model.completion import STOP_STRING, Row
from medkor_jax.train.rewards import Reward

OPENS, CLOSES = "<unused94>", "<unused95>"
THOUGHT = f"{OPENS}thought\nThe answer is A. 정답: A. Then <R> x <R/> A\n\nQ: so A{CLOSES}"
UNFINISHED = THOUGHT.removesuffix(CLOSES)
OWN = ReasoningFormat("<unused94>thought", CLOSES)


class Chat(Plain):
    """A chat's name and a place for the system's text; the rest is plain."""

    name = "chat"


class ThinkingScorer:
    """Writes the given continuation for each question, recognised by its whole prompt."""

    max_positions = None

    def __init__(self, tokenizer, questions, written, ask, style=Chat):
        self.style, self.asked = style(tokenizer), []
        prompts = [tuple(self.style.prompt(ask(q), system=SWITCH)) for q in questions]
        self.written = dict(zip(prompts, written, strict=True))

    def complete(self, prompts, *, max_new_tokens, stop):
        self.asked.append((max_new_tokens, stop))
        return [self.written[tuple(p)] for p in prompts]


def whole(text, n_tokens=30, n_thought=20):
    return Continuation(text, n_tokens, True, n_thought)


@pytest.mark.parametrize("language", ["ko", "en"])
def test_only_what_is_said_behind_the_block_is_read(language):
    assert parse_answer(f"{THOUGHT}B", 5, language) == 1
    assert parse_answer(f"{THOUGHT}", 5, language) is None
    assert parse_answer(UNFINISHED, 5, language) is None
    assert parse_answer(f"{THOUGHT}B {OPENS} B", 5, language) is None
    found = parse_reasoned(f"{THOUGHT}<R> because <R/> B", 5)
    assert (found.answer, found.has_format, found.reasoning) == (1, True, "because")
    assert parse_reasoned(f"{THOUGHT}B", 5).answer == 1
    unfinished = parse_reasoned(f"{UNFINISHED} <R> because <R/> B", 5)
    assert (unfinished.answer, unfinished.has_format) == (None, False)


def test_the_own_tags_are_read_as_tags():
    found = parse_reasoned(f"{OPENS}thought\nbecause{CLOSES}B", 5, OWN)
    assert (found.answer, found.has_format, found.reasoning) == (1, True, "because")
    for text in (
        f"{OPENS}thought\nbecause B",
        f"{OPENS}thought\n B",
        f"{OPENS}thought\na{CLOSES}{OPENS}B",
    ):
        unfinished = parse_reasoned(text, 5, OWN)
        assert (unfinished.answer, unfinished.has_format) == (None, False), text


def test_unfinished_thinking_earns_nothing(make_question):
    question = make_question(1, answer=1)
    for form, text in (
        (ReasoningFormat(), f"{OPENS}thought\nso <R> because <R/> B"),
        (OWN, f"{OPENS}thought\nso B"),
    ):
        earned = Reward(form=form).score(text, question, n_tokens=9, is_finished=True)
        assert earned.total == 0 and not (earned.is_right or earned.is_parsed or earned.has_format)
        closed = text.replace("so ", f"so{CLOSES}")
        earned = Reward(form=form).score(closed, question, n_tokens=9, is_finished=True)
        assert earned.is_right and earned.has_format


def test_a_stop_string_inside_a_thought_ends_nothing():
    text = f"{THOUGHT} B. more"
    for n in (1, 3, 1000):  # however many tokens are looked at at once
        row = Row(lambda ids: "".join(map(chr, ids)), harness.STOP, (), hide_thought)
        tokens = np.array([ord(c) for c in text])
        for at in range(0, len(tokens), n):
            row.take(tokens[at : at + n])
        done = row.completion()
        assert (done.text, done.finish) == (f"{THOUGHT} B", STOP_STRING)
        assert len(done.tokens) == len(f"{THOUGHT} B.")
    row = Row(lambda ids: "".join(map(chr, ids)), harness.STOP, (), hide_thought)
    row.take(np.array([ord(c) for c in UNFINISHED]))
    assert row.finish is None and row.completion().text == UNFINISHED
    row = Row(lambda ids: "".join(map(chr, ids)), (CLOSES,), (), hide_thought)
    row.take(np.array([ord(c) for c in text]))
    assert row.completion().text == UNFINISHED  # the mark itself can be waited for


def test_harness_texts_are_cut_outside_of_a_thought_alone():
    assert harness.cut_at_stop(f"{THOUGHT} B. more") == f"{THOUGHT} B"
    assert harness.cut_at_stop(UNFINISHED) == UNFINISHED
    assert harness.cut_at_stop(f"C. {THOUGHT}") == "C"


CASES = [
    (whole(f"{THOUGHT}<R> because <R/> B"), "B", True),
    (whole(f"{THOUGHT}<R> because <R/> B", 30, 21), None, False),  # thought too long
    (whole(f"{THOUGHT}<R> because <R/> B", 31, 20), None, False),  # said too much
    (Continuation(f"{THOUGHT}<R> because <R/> B", 30, False, 20), None, False),  # cut
    (whole(UNFINISHED, 30, 30), None, False),
    (whole(UNFINISHED, 12, 12), None, True),  # ended its turn while it thought
    (whole("<R> because <R/> B", 9, 0), "B", True),
]


@pytest.mark.parametrize("mode", ["reason", "harness"])
@pytest.mark.parametrize("written, predicted, is_whole", CASES)
def test_a_thought_or_answer_beyond_its_limit_is_never_right(
    make_question, tokenizer, monkeypatch, mode, written, predicted, is_whole
):
    monkeypatch.setattr(harness, "MAX_NEW_TOKENS", 10)
    question = make_question(1, answer=1)
    ask = reasoning_prompt if mode == "reason" else prompt
    scorer = ThinkingScorer(tokenizer, [question], [written], ask)
    report = exam.evaluate(scorer, [question], mode=mode, max_new_tokens=10, max_thinking_tokens=20)
    (answer,) = report.answers
    assert scorer.asked == [(30, () if mode == "reason" else harness.STOP)]
    assert (answer.predicted, answer.correct) == (predicted, predicted == "B")
    assert (answer.is_whole, answer.n_tokens) == (is_whole, written.n_tokens)
    assert answer.n_thought == written.n_thought


@pytest.fixture
def thoughtful(make_question, tokenizer):
    """thoughtful(mode): five questions, one of whose thoughts is not closed and one too long."""

    def sit(mode="reason", **settings):
        questions = [make_question(i, answer=1) for i in range(5)]
        written = [
            whole(f"{THOUGHT}<R> because <R/> B", 25, 20), whole(f"{THOUGHT}<R> because <R/> C", 25, 20),
            whole(f"{THOUGHT}<R> because <R/> B", 26, 21), whole(UNFINISHED, 19, 19), whole("<R> so <R/> B", 10, 0),
        ]  # fmt: skip
        scorer = ThinkingScorer(
            tokenizer, questions, written, reasoning_prompt if mode == "reason" else prompt
        )
        limits = dict(max_new_tokens=10, max_thinking_tokens=20)
        return exam.evaluate(scorer, questions, mode=mode, **limits | settings)

    return sit


@pytest.mark.parametrize("mode", ["reason", "harness"])
def test_a_report_counts_thought_and_said_apart(thoughtful, tmp_path, mode):
    report = thoughtful(mode)
    thinking = report.summary()["thinking"]
    assert thinking == {
        "mean_thought": 16.0, "mean_said": 5.0, "thought_at_all": 0.8, "unfinished": 0.4, "max_thinking_tokens": 20,
    }  # fmt: skip
    assert "16 tokens thought and 5 said on average" in report.table()
    assert "40.0% did not finish thinking within 20 tokens" in report.table()
    assert any("40% of all did not finish thinking" in alarm for alarm in report.alarms)
    report.write(tmp_path / "a.jsonl")
    again = Report.read(tmp_path / "a.jsonl")
    assert again == report and again.max_thinking_tokens == 20
    assert again.answers[3].text == UNFINISHED


def test_answers_of_before_are_read_back_and_say_nothing_of_thinking(
    thoughtful, make_report, tmp_path
):
    make_report("AB").write(tmp_path / "a.jsonl")
    line = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert not {"n_thought", "max_thinking_tokens", "is_whole"} & line.keys()
    report = Report.read(tmp_path / "a.jsonl")
    assert report.thinking is None and "thinking" not in report.summary()
    assert report.max_thinking_tokens is None and "thinking" not in report.table()
    thoughtful().write(tmp_path / "b.jsonl")
    rows = [json.loads(row) for row in (tmp_path / "b.jsonl").read_text().splitlines()]
    old = [{k: v for k, v in row.items() if k not in ("n_thought", "max_thinking_tokens")} for row in rows]  # fmt: skip
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    assert Report.read(tmp_path / "old.jsonl").thinking is None


def test_reports_of_other_limits_are_not_compared(thoughtful):
    report = thoughtful()
    assert pairing(report, thoughtful()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="max_thinking_tokens 20, its reference 40"):
        pairing(report, thoughtful(max_thinking_tokens=40))
    with pytest.raises(ValueError, match="max_thinking_tokens 20, its reference None"):
        pairing(report, dataclasses.replace(thoughtful(), max_thinking_tokens=None))


def test_who_is_not_asked_to_think_says_nothing_of_it(make_question, tokenizer):
    question = make_question(1, answer=1)
    scorer = ThinkingScorer(tokenizer, [question], [whole("<R> x <R/> B")], reasoning_prompt)
    scorer.written = {tuple(scorer.style.prompt(reasoning_prompt(question))): whole("B", 7, 0)}
    report = exam.evaluate(scorer, [question], mode="reason", max_new_tokens=10)
    assert report.answers[0].correct and report.answers[0].n_thought is None
    scorer.written = dict.fromkeys(scorer.written, whole(f"{OPENS}thought\nx{CLOSES}B", 7, 6))
    report = exam.evaluate(scorer, [question], mode="reason", max_new_tokens=10, form=OWN)
    assert report.answers[0].n_thought == 6 and report.thinking.unfinished == 0
    assert report.answers[0].correct and report.max_thinking_tokens is None


def test_thinking_needs_a_mode_that_writes_and_a_chat(make_question, tokenizer):
    question = make_question(1)
    for mode in ("letter", "cloze", "cloze_norm"):
        with pytest.raises(ValueError, match=f"{mode!r} mode reads the model right behind"):
            exam.evaluate(None, [question], mode=mode, max_thinking_tokens=5)
    scorer = ThinkingScorer(tokenizer, [question], [whole("B")], reasoning_prompt, style=Plain)
    with pytest.raises(ValueError, match="asked in 'plain' form"):
        exam.evaluate(scorer, [question], mode="reason", max_thinking_tokens=5)


def test_room_is_kept_for_the_thought(make_question, tokenizer):
    question = make_question(1)
    scorer = ThinkingScorer(tokenizer, [question], [whole("B")], reasoning_prompt)
    scorer.max_positions = 30
    with pytest.raises(ValueError, match="30 positions cannot hold a prompt and 30 new tokens"):
        exam.evaluate(scorer, [question], mode="reason", max_new_tokens=10, max_thinking_tokens=20)


def test_the_digest_of_the_prompts_tells_the_switch(make_question, tokenizer):
    questions, style = [make_question(1)], Chat(tokenizer)
    plain = asked.contexts_digest(questions, "reason", (), style)
    assert plain == checksum([reasoning_prompt(questions[0])])  # as it was
    assert plain != asked.contexts_digest(questions, "reason", (), style, SWITCH)


def test_what_a_named_exam_puts_in_front_stands_behind_the_switch(make_question, monkeypatch):
    monkeypatch.setattr(asked, "preamble", lambda question: "About anatomy.")
    questions = [make_question(1)]
    assert asked.systems(questions, "harness", SWITCH) == [f"{SWITCH} About anatomy."]
    assert asked.systems(questions, "harness") == ["About anatomy."]
    assert asked.systems(questions, "reason", SWITCH) == [SWITCH]
