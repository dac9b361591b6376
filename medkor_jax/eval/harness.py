"""The prompts of lm-evaluation-harness 0.4.13, and where a text of its `kormedmcqa` v3.0 task stops.

    for request in requests(questions, shots, style, max_positions=32768):
        request.context, request.token_ids      # equal to the harness's, character for character, id for id

The context is the shots, each with its answer and a blank line, then the question up to its answer. The
harness's model class lets the Gemma tokenizer put <bos> in front and cuts from the left what does not fit
beside the tokens to generate, <bos> included; so does this. Shots are the first rows of the few-shot split,
in order, the same for every question, and are not taken out when they are among the questions.

The English form (prompt ending in "Answer:") is this project's own; the harness has none. A question of
fewer than five options lists only those it has. Published numbers are without chat template. With one
(`--apply_chat_template --fewshot_as_multiturn=False`) the whole context is the user's turn, and so it is here; its default, a
turn a shot, cannot be rendered for this task, whose shots hold their answers: two turns of the user would follow each other.

A thought (`data.thinking`) is where this differs: the harness looks for its stop strings everywhere, and so cuts a thought at
its first sentence; here they are looked for outside of it alone, so that what is said behind it is reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.question import Question, answer_text, preamble, prompt
from medkor_jax.data.style import Style
from medkor_jax.data.thinking import hide_thought

STOP = ("Q:", "</s>", "<|im_end|>", ".", "\n\n")
MAX_NEW_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Request:
    id: str  # the question's
    context: str
    token_ids: tuple[int, ...]  # <bos> first unless truncated
    truncated: bool


def context(question: Question, shots: Sequence[Question] = ()) -> str:
    """Returns the text that the model is asked to continue, or to answer."""
    return "".join(f"{prompt(shot)}{answer_text(shot)}\n\n" for shot in shots) + prompt(question)


def requests(
    questions: Sequence[Question],
    shots: Sequence[Question],
    style: Style,
    *,
    max_positions: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[Request]:
    """Returns one request a question, in order; max_positions counts prompt and generated tokens together.

    Raises: ValueError if `max_positions` leaves no room for a prompt.
    """
    asked = [context(question, shots) for question in questions]
    limits: Any = dict(max_positions=max_positions, max_new_tokens=max_new_tokens)
    return bounded(questions, asked, style, systems=[*map(preamble, questions)], **limits)


def bounded(
    questions: Sequence[Question],
    asked: Sequence[str],
    style: Style,
    *,
    max_positions: int | None,
    max_new_tokens: int,
    systems: Sequence[str] = (),
) -> list[Request]:
    """Returns one request a question, what is asked already made; for `requests`, and for exams that ask otherwise.

    systems: the system's text of each, () for none.
    """
    if max_positions is not None and max_positions <= max_new_tokens:
        raise ValueError(
            f"a model of {max_positions} positions cannot hold a prompt and {max_new_tokens} new tokens; "
            "use a longer model, or letter mode, which generates nothing"
        )
    limit = None if max_positions is None else max_positions - max_new_tokens
    built = []
    for question, text, system in zip(questions, asked, systems or [""] * len(asked), strict=True):
        ids = style.prompt(text, system=system)
        kept = ids if limit is None else ids[-limit:]
        built.append(
            Request(
                question.id,
                style.text(text, system=system),
                tuple(kept),
                truncated=len(kept) < len(ids),
            )
        )
    return built


def cut_at_stop(text: str, stop: Sequence[str] = STOP) -> str:
    """Returns `text` up to the first stop string that stands in it outside of a thought."""
    searched = hide_thought(text)
    for term in stop:
        searched = searched.split(term, 1)[0]
    return text[: len(searched)]
