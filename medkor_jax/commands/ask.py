"""`medkor ask`: one question to one model, in the terminal.

    ask("runs/quickstart", exam_question("exam.csv", 3), mode="reason", write=print_part)

Mode `reason`: the reasoning streams as it is written, then come the letters' probabilities right behind its
closing tag. Mode `letter`: the probabilities alone, right behind the exam's prompt, as `medkor eval` compares
them. A question without options is only continued. What the model thinks first, asked to or not, is shown apart, under a
heading. Greedy, one question at a time; an exam is `medkor eval`'s.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import cast

import jax
import numpy as np
from scipy.special import softmax

from medkor_jax.commands.arguments import (
    WEIGHTS,
    add_dtype,
    add_mesh,
    add_part,
    add_style,
    add_tags,
    add_thinking,
    whole,
)
from medkor_jax.commands.opening import asking_mesh, check_mesh
from medkor_jax.commands.posed import exam_question, typed_question
from medkor_jax.commands.stream import ANSWER, Stream, goes_in_circles
from medkor_jax.data.language import ENGLISH, KOREAN, has_hangul
from medkor_jax.data.question import LETTERS, Question, prompt
from medkor_jax.data.reasoning import ReasoningFormat, reasoning_prompt
from medkor_jax.data.style import AUTO, CHAT
from medkor_jax.data.thinking import (
    check_thinking,
    count_thought,
    hide_thought,
    split_thought,
    switch,
)
from medkor_jax.eval.exam import evaluate
from medkor_jax.eval.scorer import ModelScorer
from medkor_jax.io.loaded_model import LoadedModel, load, style_of
from medkor_jax.model.completion import STOP_STRING, Completion
from medkor_jax.model.decode import Decoder
from medkor_jax.model.dtypes import slow_here
from medkor_jax.model.prompts import make_routing
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.run.named_model import open_model

MODES = ("reason", "letter")
_BAR = 24  # characters of a probability of 1
_QUESTION = 'a text, its options as lines "A. ..."; without it and --exam, standard input'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help=WEIGHTS)
    parser.add_argument("--exam", help="a file, a hub id, or embedded; with --row")
    words = "which question of the exam, from 1 (default 1)"
    parser.add_argument("--row", type=whole(1), default=1, help=words)
    add_part(parser, "valid")
    parser.add_argument("--language", default="", choices=("", "ko", "en"), help="for embedded")
    parser.add_argument("--question", help=_QUESTION)
    parser.add_argument("--mode", default="reason", choices=MODES)
    parser.add_argument("--max-new-tokens", type=whole(1), default=512)
    add_thinking(parser)
    add_tags(parser)
    add_style(parser)
    add_dtype(parser)
    add_mesh(parser)


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    check_mesh(arguments.mesh)
    if arguments.exam:
        names = ("split", "subset", "language")
        where = {name: getattr(arguments, name) for name in names}
        question: Question | str = exam_question(arguments.exam, arguments.row, **where)
    else:
        given = sys.stdin.read() if arguments.question is None else arguments.question
        question = typed_question(given)
    print(shown_prompt(question, arguments.mode), end="", flush=True)
    asked = ask(
        arguments.weights,
        question,
        mode=arguments.mode,
        max_new_tokens=arguments.max_new_tokens,
        max_thinking_tokens=arguments.max_thinking_tokens,
        form=ReasoningFormat(*arguments.tags or ()),
        dtype=arguments.dtype,
        style=arguments.style,
        mesh=arguments.mesh,
        write=lambda part: print(part, end="", flush=True),
    )
    print()
    if asked.probabilities:
        print(answer_table(cast("Question", question), asked, has_key=bool(arguments.exam)))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What came back. text: what was said after the prompt, without the closing tag; probabilities: a letter each, () without
    options or where thinking did not end; thought: what it thought before."""

    text: str
    probabilities: tuple[float, ...]
    is_closed: bool  # the reasoning ended with its tag, by itself
    thought: str = ""


def ask(
    weights: str,
    question: Question | str,
    *,
    mode: str,
    write: Callable[[str], None],
    max_new_tokens: int = 512,
    max_thinking_tokens: int = 0,
    form: ReasoningFormat = ReasoningFormat(),
    dtype: str = "float32",
    style: str = AUTO,
    mesh: MeshShape | None = None,
) -> Asked:
    """Returns the answer; its text goes to `write` in parts while it is being written.

    max_thinking_tokens: above 0, it is asked to think first, in that many tokens besides.

    Raises: ValueError, before the weights are read, on another mode, on a question without options in letter mode, or on
    thinking in a mode or form that has none.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown; it is one of {', '.join(MODES)}")
    if mode == "letter" and isinstance(question, str):
        raise ValueError(
            'letter mode compares options and this question has none; write them as lines "A. ...", or use mode reason'
        )
    check_thinking(max_thinking_tokens, mode)
    check_mesh(mesh)
    model = open_model(weights)
    system = switch(max_thinking_tokens, style_of(model, style).name) if max_thinking_tokens else ""
    made = asking_mesh(model, dtype, mesh)
    if words := slow_here(dtype, "--dtype float32"):
        print(words, file=sys.stderr)  # what is written is an answer
    with jax.set_mesh(made):
        loaded = load(model, dtype, made, style=style)
        if (
            loaded.style.name == CHAT
        ):  # the answer is a turn of its own, and does not go on with the prompt
            write("\n")
        scorer = ModelScorer(loaded, dtype=dtype, mesh=made, batch_size=1)
        if mode == "letter":
            report = evaluate(scorer, [cast("Question", question)], mode="letter", batch_size=1)
            return Asked("", report.answers[0].probabilities, is_closed=False)
        asked = question if isinstance(question, str) else reasoning_prompt(question)
        ids = loaded.style.prompt(asked, system=system)
        stop = () if isinstance(question, str) else (form.closing,)
        by_token = model.language_unit == "token"
        stream = Stream(write, stop)
        (written,) = _decoder(loaded, dtype).generate(
            loaded.params,
            [ids],
            max_new_tokens=max_new_tokens + max_thinking_tokens,
            stop=stop,
            on_text=lambda texts: stream.show(texts[0]),
            languages=None if by_token else [KOREAN if has_hangul(asked) else ENGLISH],
        )
        stream.finish(written.text)
        if goes_in_circles(written.text):
            write(f"\n(it goes in circles: stopped after {len(written.tokens)} tokens)")
        return _read(scorer, question, ids, written, form, max_thinking_tokens, write)


def _read(
    scorer: ModelScorer,
    question: Question | str,
    ids: list[int],
    written: Completion,
    form: ReasoningFormat,
    max_thinking_tokens: int,
    write: Callable[[str], None],
) -> Asked:
    """Returns what was written in its parts, with the letters' probabilities where there are options and thinking has ended."""
    of_tags = form.is_own and not isinstance(question, str)
    is_closed = written.finish == STOP_STRING
    parts = split_thought(written.text + (form.closing if of_tags and is_closed else ""))
    n_thought = count_thought(written.tokens, scorer.tokenizer)
    if not parts.is_closed or n_thought > (max_thinking_tokens or n_thought):
        write(
            f"\n(thinking did not end within its {max_thinking_tokens or len(written.tokens)} tokens)"
        )
        return Asked(parts.said, (), is_closed=False, thought=parts.thought)
    if isinstance(question, str):
        return Asked(parts.said, (), is_closed=False, thought=parts.thought)
    letters = _letters(scorer, question, ids, written, form, write)
    return Asked(parts.said, letters, is_closed, parts.thought)


def _decoder(loaded: LoadedModel, dtype: str) -> Decoder:
    tokenizer, by_token = loaded.tokenizer, loaded.language_unit == "token"
    return Decoder(
        loaded.config,
        dtype=dtype,
        stop_ids=tokenizer.stop_ids,
        check_every=1,
        decode=tokenizer.decode,
        to_search=hide_thought,
        routing=make_routing(tokenizer, loaded.config.vocab_size, by_token=by_token),
    )


def answer_table(question: Question, asked: Asked, *, has_key: bool) -> str:
    """Returns the letters with their probabilities as bars, most of the option's text, and the key where there is one."""
    best = int(np.argmax(asked.probabilities))
    lines = []
    for i, (letter, option, share) in enumerate(
        zip(LETTERS, question.options, asked.probabilities)
    ):
        marks = [
            mark
            for mark, holds in (("chosen", i == best), ("key", has_key and i == question.answer))
            if holds
        ]
        shown = option if len(option) <= 40 else f"{option[:39]}\u2026"
        bar = "\u2588" * round(share * _BAR)
        lines.append(
            f"  {letter}  {share:6.1%}  {bar:<{_BAR}}  {shown}{'   <- ' if marks else ''}{', '.join(marks)}"
        )
    return "\n".join(lines)


def shown_prompt(question: Question | str, mode: str) -> str:
    """Returns what the model is asked, as it is asked."""
    if isinstance(question, str):
        return question
    return prompt(question) if mode == "letter" else reasoning_prompt(question)


def _letters(
    scorer: ModelScorer,
    question: Question,
    ids: list[int],
    written: Completion,
    form: ReasoningFormat,
    write: Callable[[str], None],
) -> tuple[float, ...]:
    """Returns the probability of each letter as the next token behind the closing tag."""
    tokenizer, style = scorer.tokenizer, scorer.style
    is_closed = written.finish == STOP_STRING
    tokens = list(written.tokens)
    if (
        not is_closed
    ):  # by length, or by an end that the model set too early: the tag is put in its place
        tokens = [token for token in tokens if token not in tokenizer.stop_ids]
        tokens += (
            style.answer(form.closing, marked=True)
            if form.is_own
            else tokenizer.encode(f" {form.closing}")
        )
    shown = ANSWER.rstrip() if form.is_own else form.closing
    write(shown if is_closed else f" {shown} (not closed by the model)")
    letters = [
        tokenizer.encode(f"{form.before_letter}{letter}")
        for letter in LETTERS[: len(question.options)]
    ]
    if any(len(letter) != 1 for letter in letters):
        raise ValueError(
            f"the tokenizer spells the letters in {letters}; probabilities need one token each"
        )
    logits = scorer.next_logits([ids + tokens], [letter[0] for letter in letters])[0].astype(
        np.float64
    )
    return tuple(softmax(logits).tolist())
