import dataclasses

import numpy as np
import pytest

from medkor_jax.data.question import LETTERS, answer_text, prompt
from medkor_jax.data.reasoning import ReasoningFormat, reasoning_prompt
from medkor_jax.data.style import Plain
from medkor_jax.eval import exam, harness
from medkor_jax.eval.scoring import Continuation


class FakeScorer:
    """Prefers a chosen option of each question, which it recognises by the end of the prompt."""

    max_positions = None

    def __init__(self, tokenizer, questions, chosen, texts=None):
        self.tokenizer, self.style, self.texts = tokenizer, Plain(tokenizer), texts or {}
        self.chosen = {prompt(q): (q, c) for q, c in zip(questions, chosen, strict=True)}
        self.batches = []

    def _known(self, ids):
        text = self.tokenizer.decode(ids)
        return next(pair for asked, pair in self.chosen.items() if text.endswith(asked))

    def next_logits(self, prompts, token_ids):
        self.batches.append([len(p) for p in prompts])
        logits = np.zeros((len(prompts), len(token_ids)), np.float32)
        for row, ids in zip(logits, prompts):
            question, option = self._known(ids)
            (token,) = self.tokenizer.encode(
                answer_text(dataclasses.replace(question, answer=option))
            )
            row[token_ids.index(token)] = np.log(3.0)
            row[len(question.options) :] = (
                50.0  # a letter the question does not have must never win
            )
        return logits

    def generate(self, prompts, *, max_new_tokens, stop):
        assert (max_new_tokens, stop) == (1024, harness.STOP)
        self.batches.append([len(p) for p in prompts])
        known = [self._known(ids) for ids in prompts]
        return [self.texts.get(q.id, f" {LETTERS[option]}") for q, option in known]


@pytest.fixture
def mixed(make_question):
    """Two languages, two to five options, prompts of different length."""
    return [
        dataclasses.replace(
            make_question(i, n_options=2 + i % 4, answer=i % 2, language=language),
            question="가" * i,
        )
        for language in ("ko", "en")
        for i in range(9)
    ]


@pytest.mark.parametrize("mode", ["letter", "harness"])
def test_each_question_gets_its_own_answer(mixed, tokenizer, mode):
    chosen = [(q.answer + (i % 3 == 0)) % len(q.options) for i, q in enumerate(mixed)]
    scorer, seen = FakeScorer(tokenizer, mixed, chosen), []
    report = exam.evaluate(
        scorer, mixed, mode=mode, shots=mixed[:2], source="unit", split="valid", batch_size=4,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert [a.id for a in report.answers] == [q.id for q in mixed]
    assert [a.predicted for a in report.answers] == [LETTERS[c] for c in chosen]
    assert [a.correct for a in report.answers] == [c == q.answer for c, q in zip(chosen, mixed)]
    assert [a.key for a in report.answers] == [LETTERS[q.answer] for q in mixed]
    assert (report.mode, report.shots, report.source, report.split) == (mode, 2, "unit", "valid")
    assert [a.among_shots for a in report.answers] == [True, True] + [False] * 16
    assert all(len(batch) <= 4 and batch == sorted(batch, reverse=True) for batch in scorer.batches)
    assert seen[-1] == (18, 18)


def test_letter_probabilities_are_over_the_own_options(make_question, tokenizer):
    question = make_question(1, n_options=3)
    (answer,) = exam.evaluate(
        FakeScorer(tokenizer, [question], [2]), [question], mode="letter"
    ).answers
    assert answer.probabilities == pytest.approx((0.2, 0.2, 0.6))
    assert answer.text == "C"


@pytest.mark.parametrize("mode", ["letter", "harness"])
def test_ten_options_have_their_own_letters(make_question, tokenizer, mode):
    questions = [
        make_question(i, n_options=10, answer=i, language=language)
        for language in ("ko", "en")
        for i in range(10)
    ]
    chosen = [*range(10), *reversed(range(10))]
    report = exam.evaluate(
        FakeScorer(tokenizer, questions, chosen), questions, mode=mode, batch_size=4
    )
    assert [a.predicted for a in report.answers] == [LETTERS[c] for c in chosen]
    assert report.overall.correct == 10 and report.overall.chance == pytest.approx(0.1)
    assert mode == "harness" or {len(a.probabilities) for a in report.answers} == {10}


def test_harness_text_is_cut_and_parsed_for_the_question(make_question, tokenizer):
    questions = [make_question(i, n_options=3, answer=1) for i in range(3)]
    texts = {"ko/0": " 정답: B\n\nQ: 정답: A", "ko/1": " D", "ko/2": "모름"}
    report = exam.evaluate(
        FakeScorer(tokenizer, questions, [0] * 3, texts), questions, mode="harness"
    )
    assert [(a.text, a.predicted, a.correct) for a in report.answers] == [
        (" 정답: B", "B", True), (" D", None, False), ("모름", None, False),
    ]  # fmt: skip
    assert report.overall.unparsed == 2 and report.answers[0].probabilities is None


def test_letter_mode_compares_the_token_that_training_teaches(make_question, tokenizer):
    asked = []

    class Spy(FakeScorer):
        def next_logits(self, prompts, token_ids):
            asked.append(token_ids)
            return super().next_logits(prompts, token_ids)

    questions = [make_question(1, n_options=2), make_question(2, n_options=4)]
    exam.evaluate(Spy(tokenizer, questions, [0, 0]), questions, mode="letter")
    assert asked == [[tokenizer.encode(f" {letter}")[0] for letter in "ABCD"]]


def test_a_letter_of_two_tokens_is_refused(make_question, tokenizer):
    tokenizer.encode = lambda text: [
        ord(character) for character in text
    ]  # now " A" is a space and an "A"
    question = make_question(1)
    with pytest.raises(ValueError, match="must be one token.*'harness'"):
        exam.evaluate(FakeScorer(tokenizer, [question], [0]), [question], mode="letter")


def test_a_letter_that_melts_into_its_prompt_is_refused(make_question, tokenizer):
    plain = tokenizer.encode
    tokenizer.encode = lambda text: [*plain(text[:-3]), 7] if text[-3:-1] == "： " else plain(text)
    question = make_question(1)
    with pytest.raises(ValueError, match="must be one token"):
        exam.evaluate(FakeScorer(tokenizer, [question], [0]), [question], mode="letter")


def test_a_letter_that_is_another_token_alone_is_refused(make_question, tokenizer):
    """As when a tokenizer puts a space before each text: what training appends is then not what is compared."""
    plain = tokenizer.encode
    tokenizer.encode = lambda text: [7] if len(text) == 2 else plain(text)
    question = make_question(1)
    with pytest.raises(ValueError, match="alone is .7."):
        exam.evaluate(FakeScorer(tokenizer, [question], [0]), [question], mode="letter")


def test_logits_that_are_not_finite_are_refused(make_question, tokenizer):
    question = make_question(1)

    class Broken(FakeScorer):
        def next_logits(self, prompts, token_ids):
            return super().next_logits(prompts, token_ids) * np.nan

    with pytest.raises(ValueError, match="'ko/1' has option logits"):
        exam.evaluate(Broken(tokenizer, [question], [0]), [question], mode="letter")


def test_a_scorer_that_answers_too_few_is_caught(make_question, tokenizer):
    class Short(FakeScorer):
        def generate(self, prompts, **settings):
            return super().generate(prompts, **settings)[1:]

    questions = [make_question(i) for i in range(3)]
    with pytest.raises(ValueError, match="shorter"):
        exam.evaluate(Short(tokenizer, questions, [0] * 3), questions, mode="harness")


def test_cut_prompts_are_marked(make_question, tokenizer):
    questions = [make_question(1), make_question(2)]
    scorer = FakeScorer(tokenizer, questions, [0, 0])
    length = len(tokenizer.encode(harness.context(questions[1], questions[:1])))
    scorer.max_positions = length
    report = exam.evaluate(scorer, questions, mode="letter", shots=questions[:1])
    assert [a.truncated for a in report.answers] == [True, True] and scorer.batches == [
        [length - 1] * 2
    ]


class ReasoningScorer:
    """Writes the given continuation for each question, recognised by its whole prompt."""

    max_positions = None

    def __init__(self, tokenizer, questions, written):
        self.style = Plain(tokenizer)
        self.written = {
            (tokenizer.bos_id, *tokenizer.encode(reasoning_prompt(q))): w
            for q, w in zip(questions, written)
        }
        self.asked = []

    def complete(self, prompts, *, max_new_tokens, stop):
        self.asked.append((max_new_tokens, stop, [len(p) for p in prompts]))
        return [self.written[tuple(p)] for p in prompts]


def whole(text, n_tokens=7):
    return Continuation(text, n_tokens, True)


def test_reasoned_answers_are_read_by_the_strict_parser(mixed, tokenizer):
    texts = [
        f" <R> because <R/> {LETTERS[(q.answer + i % 2) % len(q.options)]}"
        for i, q in enumerate(mixed)
    ]
    scorer = ReasoningScorer(tokenizer, mixed, map(whole, texts))
    report = exam.evaluate(scorer, mixed, mode="reason", batch_size=4, max_new_tokens=99)
    assert [a.text for a in report.answers] == texts
    assert [a.predicted for a in report.answers] == [text[-1] for text in texts]
    assert [a.correct for a in report.answers] == [i % 2 == 0 for i in range(18)]
    assert all(
        (a.has_format, a.is_whole, a.n_tokens, a.probabilities) == (True, True, 7, None)
        for a in report.answers
    )
    assert all(
        asked[:2] == (99, ()) and asked[2] == sorted(asked[2], reverse=True)
        for asked in scorer.asked
    )
    assert (report.mode, report.shots, report.max_new_tokens) == ("reason", 0, 99)


@pytest.mark.parametrize(
    "written, predicted, has_format",
    [
        (whole(" <R> because <R/> B"), "B", True),
        (whole("B"), "B", False),
        (whole(" <R> because <R/> B or C"), None, True),
        (whole(" <R> because <R/> E"), None, True),  # the question has three options
        (whole(""), None, False),
        (Continuation(" <R> because <R/> B", 9, False), None, False),
        (Continuation("B", 9, False), None, False),
    ],
)
def test_a_half_finished_answer_is_never_right(
    make_question, tokenizer, written, predicted, has_format
):
    question = make_question(1, n_options=3, answer=1)
    scorer = ReasoningScorer(tokenizer, [question], [written])
    (answer,) = exam.evaluate(scorer, [question], mode="reason").answers
    assert (answer.predicted, answer.correct, answer.has_format) == (
        predicted,
        predicted == "B",
        has_format,
    )
    assert (answer.text, answer.is_whole, answer.n_tokens) == (
        written.text,
        written.is_whole,
        written.n_tokens,
    )


def test_reason_mode_takes_other_tags_and_no_shots(make_question, tokenizer):
    question = make_question(1, answer=2)
    scorer = ReasoningScorer(tokenizer, [question], [whole("[why] C")])
    tags = ReasoningFormat("[", "]")
    (answer,) = exam.evaluate(scorer, [question], mode="reason", form=tags).answers
    assert answer.correct and answer.has_format
    with pytest.raises(ValueError, match="without shots, and 1 were given"):
        exam.evaluate(scorer, [question], mode="reason", shots=[question])
    scorer.max_positions = 512
    with pytest.raises(ValueError, match="512 positions cannot hold"):
        exam.evaluate(scorer, [question], mode="reason")


def test_refuses_unknown_modes_and_empty_exams(make_question, tokenizer):
    with pytest.raises(ValueError, match="letter, harness, reason"):
        exam.evaluate(None, [make_question(1)], mode="likelihood")
    with pytest.raises(ValueError, match="nothing to evaluate"):
        exam.evaluate(None, [], mode="letter")


class ByLength(FakeScorer):
    """Each character costs one nat, but those of the longest option half of one."""

    def continuation_nats(self, prompts, continuations):
        longest = max(len(ids) for ids in continuations[0])
        return [
            np.array([len(ids) * (0.5 if len(ids) == longest else 1.0) for ids in options])
            for options in continuations
        ]


def test_normalising_by_length_changes_the_choice_and_keeps_the_probabilities_in_scale(
    make_question, tokenizer
):
    options = ("가", "가나다라마바", "가나")
    questions = [
        dataclasses.replace(make_question(i, n_options=3), options=options) for i in range(2)
    ]
    scorer = ByLength(tokenizer, questions, [0, 0])
    summed, normalised = (
        exam.evaluate(scorer, questions, mode=mode).answers[0] for mode in ("cloze", "cloze_norm")
    )
    assert (summed.predicted, normalised.predicted) == ("A", "B") and summed.option_lengths == (
        1,
        6,
        2,
    )
    nats = np.array([2.0, 3.5, 3.0])  # the space before an option is scored and not counted
    for answer, cost in ((summed, nats), (normalised, nats / [1, 6, 2] * 3)):
        np.testing.assert_allclose(answer.probabilities, np.exp(-cost) / np.exp(-cost).sum())


@pytest.mark.parametrize("mode", ["cloze", "cloze_norm"])
def test_cloze_has_no_shots(make_question, tokenizer, mode):
    questions = [make_question(i) for i in range(2)]
    with pytest.raises(ValueError, match="no shots"):
        exam.evaluate(
            FakeScorer(tokenizer, questions, [0, 0]), questions, mode=mode, shots=questions[:1]
        )
