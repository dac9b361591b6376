"""Loads a configured source, whichever kind it is, and says what is wrong with it.

    source = Source("medquad", "text", "medquad.jsonl.gz", licence="CC BY 4.0")
    loaded = load_examples(source, drop_bad=True)       # loaded.rows, loaded.bad

Small sources stay in memory. A file of more than `IN_MEMORY_BYTES`, and any hub data set of text, is
converted once into an Arrow file in the cache of `datasets`, and its rows are read from there as they are
wanted: a corpus larger than memory costs disk. What it does not do: tokenise, shuffle or mix.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence

from medkor_jax.data import exams, reasoning, rows, text, translation
from medkor_jax.data.contents import file_digest
from medkor_jax.data.notes import Note
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.rows import (  # noqa: F401  (this module is where others take them from)
    BadDataError, BadRow, Example, Loaded, Source,
)

IN_MEMORY_BYTES = 64 * 2**20
OF_QUESTIONS = ("exam", "reasoning")  # kinds whose rows are questions
_STORED_FORM = 2  # raise it when the meaning of the stored columns changes
_GOOD, _NOTE = -1, -2  # in place of the number of a bad row


def load_questions(
    source: Source, *, drop_bad: bool, form: ReasoningFormat = ReasoningFormat()
) -> Loaded[exams.Question]:
    """Returns the questions of an exam source, or those of a reasoning source that have a usable rationale.

    Raises: BadDataError, listing file, row and reason, for bad rows (unless `drop_bad`), wrong columns, no rows;
    ValueError if the source holds no questions.
    """
    if source.kind not in OF_QUESTIONS:
        raise ValueError(f"source {source.name!r} is of kind {source.kind!r}, expected {' or '.join(map(repr, OF_QUESTIONS))}")
    # What is passed over is read and checked as well, and counts in the numbers of rows.
    whole = dataclasses.replace(source, skip=0, limit=source.limit and source.limit + source.skip)
    loaded = reasoning.load(whole, drop_bad=drop_bad, form=form) if source.kind == "reasoning" else exams.load(whole, drop_bad=drop_bad)
    if source.skip >= len(loaded.rows):
        raise ValueError(f"source {source.name!r}: skip is {source.skip}, and there are {len(loaded.rows)} questions")
    return dataclasses.replace(loaded, rows=loaded.rows[source.skip:])


def load_examples(source: Source, *, drop_bad: bool, form: ReasoningFormat = ReasoningFormat()) -> Loaded[Example]:
    """Returns the documents of a source of any kind; a question becomes its prompt and what follows it.

    Raises: BadDataError, as load_questions.
    """
    if source.kind in OF_QUESTIONS:
        questions = load_questions(source, drop_bad=drop_bad, form=form)
        return dataclasses.replace(questions, rows=[question_example(question, source, form) for question in questions.rows])
    if _is_large(source):
        good, bad, notes = _stored(source)
    else:
        good, bad, notes = rows.split_bad(_read(source))
    return rows.settle(source, good, bad, notes, drop_bad=drop_bad)


def question_example(question: exams.Question, source: Source, form: ReasoningFormat = ReasoningFormat()) -> Example:
    """Returns what a question of this source teaches: its letter, or its reasoning and then its letter."""
    return reasoning.reasoned_example(question, form) if source.kind == "reasoning" else exams.example(question)


def _read(source: Source) -> Iterator[Example | BadRow | Note]:
    return translation.load(source) if source.kind == "translation" else text.load(source)


def _is_large(source: Source) -> bool:
    path = pathlib.Path(source.path)
    if source.path == rows.EMBEDDED or (source.limit and source.limit <= 10_000):
        return False
    if source.kind == "translation" and translation.twin_files(source):
        return False
    if path.is_file():
        return path.stat().st_size > IN_MEMORY_BYTES
    return rows.is_hub_id(source.path) or path.is_dir()


class StoredExamples(Sequence):
    """Examples that lie in an Arrow file and are built when they are asked for. digest: of what they were made from."""

    def __init__(self, table, wanted: Sequence[int], digest: str):
        self._table, self._wanted, self.digest = table, wanted, digest

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._table[int(self._wanted[index])]
        return Example(row["id"], tuple(zip(row["texts"], row["losses"])), row["language"], row["splittable"], row["eos"])


def _stored(source: Source) -> tuple[StoredExamples, list[BadRow], tuple[str, ...]]:
    """Returns the examples, bad rows and notes of a large source, converted on first use and cached after."""
    import datasets
    import numpy as np

    features = datasets.Features({
        "id": datasets.Value("string"), "texts": datasets.List(datasets.Value("large_string")),
        "losses": datasets.List(datasets.Value("bool")), "language": datasets.Value("string"),
        "splittable": datasets.Value("bool"), "eos": datasets.Value("bool"),
        "bad_row": datasets.Value("int64"), "bad_reason": datasets.Value("string"),
    })
    fingerprint = _fingerprint(source)
    try:
        table = datasets.Dataset.from_generator(
            _stored_rows, features=features, gen_kwargs={"source": source}, fingerprint=fingerprint)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, BadDataError):
            raise error.__cause__ from None
        raise
    bad_rows = table.with_format("numpy", columns=["bad_row"])["bad_row"][:]
    bad = [BadRow(rows.file_label(source), table[int(i)]["bad_row"], table[int(i)]["bad_reason"])
           for i in np.flatnonzero(bad_rows >= 0)]
    notes = tuple(table[int(i)]["bad_reason"] for i in np.flatnonzero(bad_rows == _NOTE))
    return StoredExamples(table, np.flatnonzero(bad_rows == _GOOD), fingerprint), bad, notes


def _stored_rows(source: Source) -> Iterator[dict]:
    for item in _read(source):
        if isinstance(item, BadRow | Note):
            row, reason = (item.row, item.reason) if isinstance(item, BadRow) else (_NOTE, item.text)
            yield {"id": "", "texts": [], "losses": [], "language": "", "splittable": False, "eos": False,
                   "bad_row": row, "bad_reason": reason}
        else:
            texts, losses = zip(*item.parts)
            yield {"id": item.id, "texts": list(texts), "losses": list(losses), "language": item.language,
                   "splittable": item.splittable, "eos": item.eos, "bad_row": _GOOD, "bad_reason": ""}


def _fingerprint(source: Source) -> str:
    """Returns what the cache knows the converted source by; it changes with the bytes of the file and with how it is read."""
    path = pathlib.Path(source.path)
    if path.is_file():
        stamp = file_digest(path)
    else:
        stamp = rows.load_hub(source)._fingerprint  # changes with the revision on the hub
    said = dataclasses.replace(source, weight=1.0, licence="", path=path.name if path.exists() else source.path)
    return hashlib.sha256(f"{_STORED_FORM} {said} {stamp}".encode()).hexdigest()[:32]
