"""A model sits an exam.

    report = evaluate(scorer, questions, mode="letter", source="embedded", split="valid")
    print(report.table())

Modes. `letter`: one forward pass a question; the logits of the option letters right after the prompt
are compared. `harness`: greedy text up to a stop string, then the answer is read out of it, as
lm-evaluation-harness 0.4.13 does for `kormedmcqa` v3.0. `reason`: greedy text that ends where the model ends
it, reasoning between its tags and then one letter (`data.reasoning`); a text cut by length is never right.
`cloze`: the options are not shown; the one whose text is most likely after the question is taken, by the summed
log-likelihood of its tokens (lm-evaluation-harness calls it `acc`). A sum favours short options. `cloze_norm`: the same
divided by the option's characters (`acc_norm` there). Where options differ much in length, neither is right by itself,
and an alarm says which of them the score follows.
A model may be asked to think first (`data.thinking`), where it writes: its thought has a limit of its own, is counted apart and
is never read as an answer. Letter scores are steadier and cheaper; only harness scores may be set beside published ones; a model of a few
hundred million parameters often knows an answer that it cannot bind to a letter (Robinson & Wingate 2023,
arXiv:2210.12353), and cloze shows that. Modes are never mixed in a comparison.

Knows nothing of weights or devices: a `Scorer` (`scoring`) answers questions about token ids.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from medkor_jax.data.question import LETTERS, Question, answer_text, option_text, prompt
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.style import Style
from medkor_jax.data.thinking import check_thinking, switch
from medkor_jax.eval import harness
from medkor_jax.eval.asked import CLOZE, contexts, systems
from medkor_jax.eval.found import (
    Found,
    Limits,
    read_cloze,
    read_logits,
    read_reasoned,
    read_text,
    read_thoughtful,
)
from medkor_jax.eval.report import Report
from medkor_jax.eval.scores import MODES, Answer
from medkor_jax.eval.scoring import Scorer

MAX_REASONING_TOKENS = 512
READ_VERSION = 2  # raise it when answers are read otherwise out of the same text: stored ones are then asked for again


def evaluate(
    scorer: Scorer,
    questions: Sequence[Question],
    *,
    mode: str,
    shots: Sequence[Question] = (),
    source: str = "",
    split: str = "",
    batch_size: int = 16,
    confidence: float = 0.95,
    max_new_tokens: int = MAX_REASONING_TOKENS,
    max_thinking_tokens: int = 0,
    form: ReasoningFormat = ReasoningFormat(),
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Returns every answer, in the order of `questions`, and the scores drawn from them.

    Questions go to the scorer longest first, `batch_size` at a time, so that neighbours pad little and a
    batch that does not fit fails at once. `on_progress(done, total)` is called after each. max_new_tokens and
    form are read in reason mode only; the other modes have theirs fixed. max_thinking_tokens: above 0, the model is asked to
    think first, in that many tokens besides.

    Raises: ValueError for an unknown mode, no questions, shots in reason mode, a letter that is not one token
    after its prompt, logits that are not finite, or thinking in a mode or form that has none.
    """
    _check_asked(questions, mode, shots, f"{source or 'this exam'} {split}")
    check_thinking(max_thinking_tokens, mode)
    new_tokens = {"harness": harness.MAX_NEW_TOKENS, "reason": max_new_tokens}.get(mode, 1)
    limits = Limits(new_tokens, max_thinking_tokens)
    requests = harness.bounded(
        questions,
        contexts(questions, mode, shots),
        scorer.style,
        max_positions=scorer.max_positions,
        max_new_tokens=limits.total,
        systems=systems(questions, mode, switch(max_thinking_tokens, scorer.style.name)),
    )
    read = _reader(scorer, questions, requests, mode, limits, form)
    shown = {prompt(shot) for shot in shots}

    answered: dict[int, Answer] = {}
    for batch in _batches(questions, requests, batch_size):
        found = read([list(requests[i].token_ids) for i in batch], [questions[i] for i in batch])
        for i, one in zip(batch, found, strict=True):
            is_shown = prompt(questions[i]) in shown
            answered[i] = _answer(questions[i], one, is_shown, requests[i].truncated)
        if on_progress is not None:
            on_progress(len(answered), len(questions))
    return Report(
        mode=mode,
        shots=len(shots),
        source=source,
        split=split,
        answers=tuple(answered[i] for i in range(len(questions))),
        confidence=confidence,
        max_new_tokens=max_new_tokens if mode == "reason" else None,
        max_thinking_tokens=max_thinking_tokens or None,
        style=scorer.style.name,
    )


def _check_asked(
    questions: Sequence[Question], mode: str, shots: Sequence[Question], where: str
) -> None:
    """Raises: ValueError for an unknown mode, no questions, or shots in a mode that has none."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown; it is one of {', '.join(MODES)}")
    if mode == "reason" and shots:
        raise ValueError(
            f"reason mode is asked without shots, and {len(shots)} were given; a shot would show no reasoning"
        )
    if not questions:
        raise ValueError(f"no questions in {where}: nothing to evaluate")
    if mode in CLOZE and shots:
        raise ValueError(f"{mode} mode shows no options, so it has no shots; set shots to 0")


_Read = Callable[[list[list[int]], list[Question]], list[Found]]


def _reader(
    scorer: Scorer,
    questions: Sequence[Question],
    requests: Sequence[harness.Request],
    mode: str,
    limits: Limits,
    form: ReasoningFormat,
) -> _Read:
    """Returns what asks the model a batch of prompts in this mode, and reads what each question got.

    A batch is of one language. questions, requests: all of them, since letters must be the same tokens after every prompt.
    """
    style = scorer.style
    letters = _letter_tokens(style, questions, requests) if mode == "letter" else {}

    def ask_letters(prompts: list[list[int]], asked: list[Question]) -> list[Found]:
        logits = scorer.next_logits(prompts, letters[asked[0].language])
        return [read_logits(row, question) for question, row in zip(asked, logits, strict=True)]

    def ask_cloze(prompts: list[list[int]], asked: list[Question]) -> list[Found]:
        options = [
            [style.answer(option_text(option)) for option in question.options] for question in asked
        ]
        nats = scorer.continuation_nats(prompts, options)
        return [read_cloze(row, question, mode) for question, row in zip(asked, nats, strict=True)]

    def ask_reasoned(prompts: list[list[int]], asked: list[Question]) -> list[Found]:
        written = scorer.complete(prompts, max_new_tokens=limits.total, stop=())
        return [
            read_reasoned(one, question, limits, form)
            for question, one in zip(asked, written, strict=True)
        ]

    def ask_texts(prompts: list[list[int]], asked: list[Question]) -> list[Found]:
        asked_for: Any = dict(max_new_tokens=limits.total, stop=harness.STOP)
        if limits.thought:
            written = scorer.complete(prompts, **asked_for)
            return [
                read_thoughtful(one, question, limits)
                for question, one in zip(asked, written, strict=True)
            ]
        texts = scorer.generate(prompts, **asked_for)
        return [read_text(text, question) for question, text in zip(asked, texts, strict=True)]

    return {"letter": ask_letters, "reason": ask_reasoned, "harness": ask_texts}.get(
        mode, ask_cloze
    )


def _answer(question: Question, found: Found, among_shots: bool, truncated: bool) -> Answer:
    predicted, text, further = found
    return Answer(
        id=question.id,
        key=LETTERS[question.answer],
        predicted=None if predicted is None else LETTERS[predicted],
        correct=predicted == question.answer,
        text=text,
        exam=question.exam,
        year=question.year,
        language=question.language,
        n_options=len(question.options),
        among_shots=among_shots,
        truncated=truncated,
        **further,
    )


def _batches(
    questions: Sequence[Question], requests: Sequence[harness.Request], batch_size: int
) -> list[list[int]]:
    """Returns indices in batches of one language each, longest prompt first."""
    by_language = collections.defaultdict(list)
    for i in sorted(range(len(questions)), key=lambda i: -len(requests[i].token_ids)):
        by_language[questions[i].language].append(i)
    return [
        group[at : at + batch_size]
        for group in by_language.values()
        for at in range(0, len(group), batch_size)
    ]


def _letter_tokens(
    style: Style, questions: Sequence[Question], requests: Sequence[harness.Request]
) -> dict[str, list[int]]:
    """Returns for each language the token of each letter after a prompt, "A" first, as many as any question needs.

    The token must be the one that training teaches: the same whether prompt and answer are encoded together
    or apart, and exactly one. What stands before the prompt's last token cannot change that, so one question
    is tried for each last token that occurs.
    """
    found: dict[str, list[int]] = {}
    tried = set()
    widest_first = sorted(range(len(questions)), key=lambda i: -len(questions[i].options))
    for i in widest_first:
        question, request = questions[i], requests[i]
        if (question.language, request.token_ids[-1]) in tried:
            continue
        tried.add((question.language, request.token_ids[-1]))
        answered = [dataclasses.replace(question, answer=c) for c in range(len(question.options))]
        tokens = [_letter_token(style, one, request.context) for one in answered]
        known = found.setdefault(question.language, tokens)
        if known[: len(tokens)] != tokens:
            raise ValueError(
                f"the letters after {request.context[-12:]!r} are tokens {tokens}, after other prompts {known}; "
                "letter mode needs the same ones, so use mode 'harness'"
            )
    return found


def _letter_token(style: Style, question: Question, context: str) -> int:
    asked, answer = prompt(question), answer_text(question)
    before, together, apart = (
        style.prompt(asked),
        style.answered(asked, answer),
        style.answer(answer),
    )
    if together[:-1] != before or together[-1:] != apart:
        raise ValueError(
            f"the answer {answer!r} after {context[-12:]!r} must be one token, the same with its prompt and alone; "
            f"the prompt ends in {before[-3:]}, with the answer in {together[-4:]}, and the answer alone is {apart}. "
            "Use mode 'harness', or a tokenizer that keeps a letter whole"
        )
    return apart[0]
