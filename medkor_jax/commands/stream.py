r"""A growing text on a terminal, as far as it is settled: nothing half, nothing twice, and thinking apart.

    stream = Stream(write, stop=("<R/>",))
    stream.show("<unused94>thought\nScurvy");  stream.show("<unused94>thought\nScurvy.<unused95>C");  stream.finish(...)

writes "thinking:\nScurvy.\n\nanswer:\nC", never the marks of a thought. It decides nothing about the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from medkor_jax.data.thinking import LABEL
from medkor_jax.data.tokenizer import THOUGHT_CLOSES, THOUGHT_OPENS

THINKING, ANSWER = "thinking:\n", "\n\nanswer:\n"
_HEADINGS = re.compile(f"({THOUGHT_OPENS})(?:{LABEL})?|{THOUGHT_CLOSES}\\s*")
_HALF_LABEL = re.compile(
    f"(?<={THOUGHT_OPENS})(?:{'|'.join(LABEL[:n] for n in range(len(LABEL) - 1, 0, -1))})\\Z"
)


_CIRCLES, _LEAST, _MOST = 6, 8, 240  # how often, and of how many characters


def goes_in_circles(text: str) -> bool:
    """Whether the text ends in the same 8 to 240 characters six times over: greedy writing then never says anything else."""
    for n in range(_LEAST, min(_MOST, len(text) // _CIRCLES) + 1):
        if text.endswith(text[-n:] * _CIRCLES):
            return True
    return False


class Stream:
    """Writes what is new of a growing text, keeping back what may still change: half a character, half a stop string."""

    def __init__(self, write: Callable[[str], None], stop: Sequence[str]) -> None:
        self._write, self._shown = write, 0
        self._stop = (*stop, THOUGHT_OPENS, THOUGHT_CLOSES)

    def show(self, text: str) -> bool:
        """Writes what is new; returns whether there is no use in going on."""
        is_enough = goes_in_circles(text)
        text = _HALF_LABEL.sub("", text.rstrip("\ufffd"))
        held = max(
            (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0
        )
        self._emit(text[: len(text) - held])
        return is_enough

    def finish(self, text: str) -> None:
        self._emit(text)

    def _emit(self, text: str) -> None:
        text = _HEADINGS.sub(lambda mark: THINKING if mark[1] else ANSWER, text)
        if len(text) > self._shown:
            self._write(text[self._shown :])
            self._shown = len(text)
