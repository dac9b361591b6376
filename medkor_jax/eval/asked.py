"""What is asked of each question of an exam, in each mode, as text.

    contexts(questions, "letter", shots)            # up to where the answer is due
    systems(questions, "letter")                    # what stands in front, as system text where there is a chat

What it does not do: make ids (`harness.bounded`), or ask (`exam`).
"""

from __future__ import annotations

from collections.abc import Sequence

from medkor_jax.data.contents import checksum
from medkor_jax.data.question import Question, cloze_prompt, preamble
from medkor_jax.data.reasoning import reasoning_prompt
from medkor_jax.data.style import Style
from medkor_jax.eval import harness

CLOZE = ("cloze", "cloze_norm")
_PROMPTS = {"reason": reasoning_prompt} | dict.fromkeys(
    CLOZE, cloze_prompt
)  # where they are not those of the harness


def contexts(questions: Sequence[Question], mode: str, shots: Sequence[Question] = ()) -> list[str]:
    """Returns what is asked of each question in this mode, in whatever form, up to where the answer is due."""
    if mode in _PROMPTS:
        return [_PROMPTS[mode](question) for question in questions]
    return [harness.context(question, shots) for question in questions]


def systems(questions: Sequence[Question], mode: str, think: str = "") -> list[str]:
    """Returns what the form of each question puts in front, in the modes that ask as the harness does; mostly "".

    think: what asks for thinking first (`data.thinking.switch`), in front of that.
    """
    own = ["" if mode in _PROMPTS else preamble(question) for question in questions]
    return [f"{think} {text}" if think and text else think or text for text in own]


def contexts_digest(
    questions: Sequence[Question],
    mode: str,
    shots: Sequence[Question],
    style: Style,
    think: str = "",
) -> str:
    """Returns a digest of everything the model reads of these questions: it tells one version of the prompts from another."""
    asked = zip(contexts(questions, mode, shots), systems(questions, mode, think), strict=True)
    return checksum([style.text(text, system=system) for text, system in asked])
