r"""One row's continuation on the host: what it wrote, and where it stopped.

    row = Row(tokenizer.decode, ("\n\n",), stop_ids=(1,))
    row.take(tokens);  row.finish;  row.completion()

What it does not do: choose tokens (`decode`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

STOP_TOKEN, STOP_STRING, LENGTH = "stop_token", "stop_string", "length"
NOTHING = -1  # what a finished row emits


@dataclasses.dataclass(frozen=True)
class Completion:
    """One row's continuation.

    tokens: up to and with the stop token, or up to the token that completes the stop string.
    text: as it was decoded, cut before the stop string; empty if the decoder was given no `decode`.
    """

    tokens: tuple[int, ...]
    text: str
    finish: str  # STOP_TOKEN, STOP_STRING or LENGTH
    nats: tuple[
        float, ...
    ] = ()  # -log p of each token as it was drawn; () unless the decoder was asked for them


class Row:
    """One row on the host: its tokens so far, and where it stopped."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str] | None,
        stop: Sequence[str],
        stop_ids: Sequence[int],
        to_search: Callable[[str], str] = str,
    ) -> None:
        """to_search: what of a text stop strings are looked for in, everything at its place."""
        self._decode, self._stop, self._stop_ids = decode, stop, stop_ids
        self._to_search = to_search
        self._n_searched = 0
        self.tokens: list[int] = []
        self.nats: list[float] = []
        self.finish: str | None = None

    def take(self, new: np.ndarray, nats: Sequence[float] = ()) -> None:
        """Appends what the device emitted (nats: of each) and decides whether the row has ended; nothing once it has."""
        if self.finish:
            return
        self.tokens += [int(token) for token in new if token != NOTHING]
        self.nats += [float(x) for token, x in zip(new, nats) if token != NOTHING]
        if self._stop and self._stop_in(self._text()) is not None:
            # The token that completes it: the text is the same however many tokens were decoded at a time.
            ends = range(self._n_searched + 1, len(self.tokens) + 1)
            n = next(n for n in ends if self._stop_in(self._text(n)) is not None)
            self.tokens, self.finish = self.tokens[:n], STOP_STRING
        elif self.tokens[-1] in self._stop_ids:
            self.finish = STOP_TOKEN
        self._n_searched = len(self.tokens)

    def completion(self) -> Completion:
        text = self._text()
        if self.finish == STOP_STRING:
            text = text[: self._stop_in(text)]
        return Completion(
            tuple(self.tokens), text, self.finish or LENGTH, tuple(self.nats[: len(self.tokens)])
        )

    def _stop_in(self, text: str) -> int | None:
        return find_stop(self._to_search(text), self._stop)

    def _text(self, n: int | None = None) -> str:
        return "" if self._decode is None else self._decode(self.tokens[:n])


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Returns where the stop string that ends first begins, None if there is none.

    The one that ends first is found no matter how often the text is looked at while it grows.
    """
    ends = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return min(ends)[1] if ends else None
