"""What a model has written so far of an exam's translation, so that a killed run goes on and ends with the
same file.

work = Work(path, {"to": "en", "batch_size": 16}, questions)
work.add(translated)                    # on disk before it returns
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from medkor_jax.data.question import Question
from medkor_jax.data.style import PLAIN
from medkor_jax.data.translated_exam import TranslatedQuestion
from medkor_jax.io.files import write_atomically
from medkor_jax.parallel import hosts


class Work:
    """What the model wrote so far, in a file that only grows: settings first, then one line a
    question."""

    def __init__(
        self, path: pathlib.Path, settings: dict[str, Any], questions: Sequence[Question]
    ) -> None:
        """Raises: ValueError if the file was begun with other settings."""
        self._path, self.done = path, []
        header = json.dumps(settings) + "\n"
        if path.exists():
            first, *lines = path.read_text(encoding="utf-8").split("\n")
            self._refuse_others(first, settings)
            self.done = list(_read_whole(lines))[: len(questions)]
            # A killed run may have written part of a batch; the batch is made again, whole.
            step = settings["batch_size"]
            if len(self.done) < len(questions):
                self.done = self.done[: len(self.done) // step * step]
        write_atomically(path, header + json_lines(map(dataclasses.asdict, self.done)))

    def add(self, translations: Sequence[TranslatedQuestion]) -> None:
        """Appends these, on disk before it returns."""
        if hosts.is_first():
            with open(self._path, "a", encoding="utf-8", newline="\n") as file:
                file.write(json_lines(map(dataclasses.asdict, translations)))
                file.flush()
                os.fsync(file.fileno())
        self.done += translations

    def _refuse_others(self, first: str, settings: dict[str, Any]) -> None:
        try:
            begun = {"style": PLAIN} | json.loads(first)  # all there was before it was said
            differing = [
                f"{name} was {begun[name]!r}, is {value!r}"
                for name, value in settings.items()
                if begun[name] != value
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._path} is no work file of this program ({error!r}); move it away"
            ) from error
        if differing:
            raise ValueError(
                f"{self._path} was begun with other settings: {'; '.join(differing)}. "
                "Use those, name another --out, or "
                "move the file away to begin again"
            )


def json_lines(items: Iterable[Any]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def _read_whole(lines: Sequence[str]) -> Iterator[TranslatedQuestion]:
    """Yields the translations up to the first line that is not whole."""
    for line in lines:
        try:
            read = json.loads(line)
            yield TranslatedQuestion(
                read["id"],
                read["question"],
                tuple(read["options"]),
                read["is_whole"],
                read.get("n_tokens", 0),  # not counted by earlier versions
            )
        except (ValueError, KeyError, TypeError):
            return
