"""What a model's logits or text say of one question, in each mode of an exam.

    read_logits(logits, question)           # (2, "C", {"probabilities": (0.1, 0.2, 0.7)})
    read_reasoned(written, question, limits, form)

Which letter a text chose is the parser's to say (`answers`). What it does not do: ask (`exam`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from medkor_jax.data.question import LETTERS, Question
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.eval import answers, harness
from medkor_jax.eval.scoring import Continuation

# The 0-based option, None where none could be read; the text; and what else an Answer says in this mode.
Found = tuple[int | None, str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Tokens that an answer may have. thought: those of its thought; 0: it is not asked to think, and a thought is part of the
    answer."""

    said: int
    thought: int = 0

    @property
    def total(self) -> int:
        return self.said + self.thought

    def hold(self, written: Continuation) -> bool:
        """Returns whether what was written ended by itself, its thought and its answer each within its limit."""
        if not self.thought:
            return written.is_whole
        n_said = written.n_tokens - written.n_thought
        return written.is_whole and written.n_thought <= self.thought and n_said <= self.said


def read_logits(logits: np.ndarray, question: Question) -> Found:
    from scipy.special import softmax  # half a second, which a config need not wait for

    own = np.asarray(logits, np.float64)[: len(question.options)]
    if not np.isfinite(own).all():
        raise ValueError(
            f"question {question.id!r} has option logits {own.tolist()}; they must be finite: check weights and dtype"
        )
    chosen = int(own.argmax())
    return chosen, LETTERS[chosen], {"probabilities": tuple(softmax(own).tolist())}


def read_cloze(nats: np.ndarray, question: Question, mode: str) -> Found:
    """nats: float64 [options]. Normalised, each is what its option would cost at the mean length of this question's options.

    The factor is the same for all options, so the choice is `acc_norm`'s; it puts the probabilities on the scale of the sum's.
    """
    lengths = np.array([len(option) for option in question.options])
    scale = lengths.mean() / lengths if mode == "cloze_norm" else 1.0
    chosen, text, further = read_logits(-np.asarray(nats) * scale, question)
    return chosen, text, further | {"option_lengths": tuple(lengths.tolist())}


def read_text(text: str, question: Question) -> Found:
    text = harness.cut_at_stop(text)
    return answers.parse_answer(text, len(question.options), question.language), text, {}


def read_thoughtful(written: Continuation, question: Question, limits: Limits) -> Found:
    """As `read_text`, of a model that was asked to think first; longer than its limits, it is no answer."""
    chosen, text, _ = read_text(written.text, question)
    is_whole = limits.hold(written)
    return chosen if is_whole else None, text, _written(written, is_whole)


def read_reasoned(
    written: Continuation, question: Question, limits: Limits, form: ReasoningFormat
) -> Found:
    # A text cut by length may happen to stand at a letter, or just behind the closing tag: it is not an answer yet.
    is_whole = limits.hold(written)
    found = answers.parse_reasoned(written.text if is_whole else "", len(question.options), form)
    how = _written(written, is_whole) | {"has_format": found.has_format}
    if not limits.thought and not form.is_own:
        del how["n_thought"]
    return found.answer, written.text, how


def _written(written: Continuation, is_whole: bool) -> dict[str, Any]:
    return {
        "is_whole": is_whole,
        "n_tokens": written.n_tokens,
        "n_thought": written.n_thought,
    }
