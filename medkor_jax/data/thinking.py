r"""A model's own thinking: the block that MedGemma 27B and 1.5 write before their answer, and what asks for it.

    split_thought("<unused94>thought\nScurvy: vitamin C.<unused95>C")       # Thought("Scurvy: vitamin C.", "C", is_closed=True)
    style.prompt("Which vitamin ...?", system=switch(1024, style.name))     # asks for it

The two marks are control tokens, which `Tokenizer.decode` shows as text, as `transformers` does. They are made by the model,
or by code out of a text that code wrote (`Tokenizer.encode_marked`), and never out of data. What it does not do: read an answer
(`eval.answers`), or teach (`reasoning`).

Source: the model card of google/medgemma-27b-text-it, and its notebooks, which split what is written at "<unused95>".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from medkor_jax.data.style import CHAT
from medkor_jax.data.tokenizer import THOUGHT_CLOSES, THOUGHT_OPENS, Tokenizer

SWITCH = "SYSTEM INSTRUCTION: think silently if needed."
LABEL = "thought\n"  # what the block begins with, behind its mark
THINKING_MODES = ("harness", "reason")
_BLOCK = re.compile(f"{THOUGHT_OPENS}.*?(?={THOUGHT_CLOSES}|\\Z)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Thought:
    """A text in its two parts. thought: without marks and label, "" if there is none; said: what stands behind the block, the
    whole text if there is none; is_closed: no block is left open. Of an open one nothing is said."""

    thought: str
    said: str
    is_closed: bool


def split_thought(text: str) -> Thought:
    """Returns what was thought and what was said. Of several blocks the last one counts: nothing before it is an answer."""
    before, closing, after = text.rpartition(THOUGHT_CLOSES)
    if THOUGHT_OPENS in after:
        return Thought(_bare(text), "", is_closed=False)
    return Thought(_bare(before) if closing else "", after, is_closed=True)


def _bare(text: str) -> str:
    parts = re.split(f"{THOUGHT_OPENS}|{THOUGHT_CLOSES}", text)
    return "\n".join(part for part in (part.removeprefix(LABEL).strip() for part in parts) if part)


def holds_mark(text: str) -> bool:
    """Returns whether a mark of a thought stands in the text."""
    return THOUGHT_OPENS in text or THOUGHT_CLOSES in text


def hide_thought(text: str) -> str:
    """Returns the text with every thought, up to the mark that closes it, as so many NULs: no stop string is found in there,
    and what stands outside keeps its place."""
    return _BLOCK.sub(lambda block: "\0" * len(block[0]), text)


def count_thought(tokens: Sequence[int], tokenizer: Tokenizer) -> int:
    """Returns how many of the tokens are thought, marks included: up to the last mark that closes a block, and all from one on
    that is not closed."""
    opens, closes = (tokenizer.control_ids.get(mark) for mark in (THOUGHT_OPENS, THOUGHT_CLOSES))
    n = len(tokens) - list(reversed(tokens)).index(closes) if closes in tokens else 0
    return len(tokens) if opens in tokens[n:] else n


def check_thinking(max_thinking_tokens: int, mode: str) -> None:
    """Raises: ValueError if a model is to think in a mode that reads logits right behind the prompt."""
    if max_thinking_tokens and mode not in THINKING_MODES:
        raise ValueError(
            f"max_thinking_tokens is {max_thinking_tokens} and {mode!r} mode reads the model right behind the prompt, before it "
            f"could think; use mode {' or '.join(map(repr, THINKING_MODES))}, or set max_thinking_tokens to 0"
        )


def switch(max_thinking_tokens: int, style: str) -> str:
    """Returns the system text that asks for thinking, "" for 0 tokens of it.

    Raises: ValueError if the model is not asked by a chat template, whose system text this is.
    """
    if max_thinking_tokens and style != CHAT:
        raise ValueError(
            f"max_thinking_tokens is {max_thinking_tokens} and the model is asked in {style!r} form, in which it has no system "
            "text that asks for thinking; set style to 'chat', or max_thinking_tokens to 0"
        )
    return SWITCH if max_thinking_tokens else ""
