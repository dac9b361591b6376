"""What a signal says when it ends a run: where the process was, and that the same command goes on.

    at("phase0, merging")
    with ended_by_sigterm():            # SIGTERM raises Stopped, from wherever the process is
        ...

A stage of training saves first: `hosts.stops`. What several processes do: `hosts.connected`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

_where = ""


class Stopped(SystemExit):
    """A signal ended the run where nothing had to be saved; the same command goes on.

    It may come anywhere, also where whatever a library raises is turned into a sentence about files: nothing that looks for
    faults (`except Exception`) may take it for one, and no event loop may keep it to itself, as it does with all but SystemExit.
    """


def at(place: str) -> None:
    """Notes what this process is at."""
    global _where
    _where = place


def where() -> str:
    """Returns what `at` noted last, "" if nothing was."""
    return _where


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within the block SIGTERM raises Stopped."""
    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: whoever runs us there has the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop(number: int, _: Any) -> None:
    """Handles a signal. Raises: Stopped."""
    signal.signal(number, signal.SIG_IGN)  # it is on its way
    raise Stopped(words_of(number, where()))


def words_of(number: int, place: str) -> str:
    """Returns the sentence of the signal `number` that came at `place`."""
    at_what = f" at {place}" if place else ""
    return f"stopped by {signal.Signals(number).name}{at_what}; what was saved is kept, and the same command goes on"
