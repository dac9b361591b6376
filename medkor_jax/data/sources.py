"""Loads a configured source, whichever kind it is, and says what is wrong with it.

    source = Source("medquad", "text", "medquad.jsonl.gz", licence="CC BY 4.0")
    loaded = load_examples(source, drop_bad=True)       # loaded.rows, loaded.bad

Small sources stay in memory. A file of more than `IN_MEMORY_BYTES`, and any hub data set of text, is
converted once into stored rows in the cache (`stored`, `kept`), and its documents are read from there as they are
wanted: a corpus larger than memory costs disk. What it does not do: tokenise, shuffle or mix.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

from medkor_jax.data import exams, reasoning, rows
from medkor_jax.data import pairs as translation
from medkor_jax.data.contents import cache_directory, fresh_digest
from medkor_jax.data.converting import convert, reader_of
from medkor_jax.data.kept import discard, keep, key_of
from medkor_jax.data.notes import Note
from medkor_jax.data.option_order import in_orders
from medkor_jax.data.question import Question, example
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import (  # noqa: F401  (this module is where others take them from)
    BadDataError,
    BadRow,
    Example,
    Loaded,
    Source,
)
from medkor_jax.data.source import OF_QUESTIONS
from medkor_jax.data.stored import StoredExamples

IN_MEMORY_BYTES = 8 * 2**20


def load_questions(
    source: Source, *, drop_bad: bool, form: ReasoningFormat = ReasoningFormat()
) -> Loaded[Question]:
    """Returns the questions of an exam source, or those of a reasoning source that have a usable rationale.

    Raises: BadDataError, listing file, row and reason, for bad rows (unless `drop_bad`), wrong columns, no rows;
    ValueError if the source holds no questions.
    """
    if source.kind not in OF_QUESTIONS:
        raise ValueError(
            f"source {source.name!r} is of kind {source.kind!r}, expected {' or '.join(map(repr, OF_QUESTIONS))}"
        )
    if source.translated_to:
        raise ValueError(
            f"source {source.name!r} is translated by the run that names it; read `original`, or the file that the run made"
        )
    # What is passed over is read and checked as well, and counts in the numbers of rows.
    whole = dataclasses.replace(source, skip=0, limit=source.limit and source.limit + source.skip)
    loaded = (
        reasoning.load(whole, drop_bad=drop_bad, form=form)
        if source.kind == "reasoning"
        else exams.load(whole, drop_bad=drop_bad)
    )
    if source.skip >= len(loaded.rows):
        raise ValueError(
            f"source {source.name!r}: skip is {source.skip}, and there are {len(loaded.rows)} questions"
        )
    return dataclasses.replace(loaded, rows=loaded.rows[source.skip :])


def load_examples(
    source: Source, *, drop_bad: bool, form: ReasoningFormat = ReasoningFormat()
) -> Loaded[Example]:
    """Returns the documents of a source of any kind; a question becomes its prompt and what follows it.

    Raises: BadDataError, as load_questions.
    """
    if source.kind in OF_QUESTIONS:
        questions = load_questions(source, drop_bad=drop_bad, form=form)
        told = [in_orders(question, source.orders) for question in questions.rows]
        taught = [question_example(one, source, form) for orders in told for one in orders]
        n_kept = sum(len(orders) < source.orders for orders in told)
        kept = f"{n_kept} of {len(told)} questions are taught in fewer than {source.orders} orders: what is said speaks of options by letter, number or place"
        return rows.Loaded(taught, questions.bad, (*questions.notes, *([kept] if n_kept else ())))
    if _is_large(source):
        stored = _stored(source)
        return rows.settle(
            source, stored, stored.bad(rows.file_label(source)), stored.notes, drop_bad=drop_bad
        )
    good, bad, notes = rows.split_bad(_read(source))
    return rows.settle(source, good, bad, notes, drop_bad=drop_bad)


def question_example(
    question: Question, source: Source, form: ReasoningFormat = ReasoningFormat()
) -> Example:
    """Returns what a question of this source teaches: its letter or its text, or its reasoning and then its letter."""
    return (
        reasoning.reasoned_example(question, form, source.answered_by)
        if source.kind == "reasoning"
        else example(question, source.answered_by)
    )


def _read(source: Source) -> Iterator[Example | BadRow | Note]:
    yield from reader_of(source)(source)


def _is_large(source: Source) -> bool:
    path = pathlib.Path(source.path)
    if source.path == rows.EMBEDDED or (source.limit and source.limit <= 10_000):
        return False
    if source.kind == "translation" and translation.twin_files(source):
        return False
    if path.is_file():
        return path.stat().st_size > IN_MEMORY_BYTES
    return rows.is_hub_id(source.path) or path.is_dir()


def _stored(source: Source) -> StoredExamples:
    """Returns the documents of a large source, converted on first use and kept after."""
    return StoredExamples(_place(source), source.name, functools.partial(_remade, source))


def _place(source: Source) -> pathlib.Path:
    key = _key(source)

    def make(directory: pathlib.Path) -> None:
        convert(source, directory, _read)
        if pathlib.Path(source.path).is_file() and _key(source) != key:
            raise ValueError(
                f"{source.path} was written to while it was read; start again when it is whole"
            )

    return keep("rows", key, make)


def _remade(source: Source) -> pathlib.Path:
    discard(cache_directory() / "rows" / _key(source))
    return _place(source)


def _key(source: Source) -> str:
    """Returns what the stored rows are known by; it changes with the bytes of the file and with how they are read."""
    path = pathlib.Path(source.path)
    if path.is_file():
        stamp = fresh_digest(path)
    else:
        stamp = rows.load_hub(source)._fingerprint  # changes with the revision on the hub
    said = dataclasses.replace(
        source,
        name="",
        weight=1.0,
        loss="",
        licence="",
        revision="",
        path=path.name if path.exists() else source.path,
    )
    return key_of(said, stamp)
