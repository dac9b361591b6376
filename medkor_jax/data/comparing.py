"""Which documents of a large trained source are worth comparing with what is judged: found side by side, and kept.

    places_to_compare(Search(judged), stored_examples)      # [n] sorted, None: all of them

Of stored rows (`stored`) that is found once by several processes and kept in the cache under the contents of both sides and the
code that compares; where nothing changed, a start compares nothing. What is kept are the places of documents in which something is
found: what a leak is called, and what the config excuses, is decided again every time. Small sources are compared whole, middling
ones sieved here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from medkor_jax.data import workers
from medkor_jax.data.contents import content_digest
from medkor_jax.data.kept import keep, key_of
from medkor_jax.data.leak_search import Judged, Search, Trained
from medkor_jax.data.pairs import Pair
from medkor_jax.data.question import Question
from medkor_jax.data.rows import Example
from medkor_jax.data.sieve import SAMPLE, Block, Sieve
from medkor_jax.data.stored import DamagedError, StoredExamples

FEW = 1000  # documents that are compared as soon as sieved
_BLOCK_BYTES = 2**19
_TASK_BYTES = 16 * 2**20
_TYPES = {"question": Question, "example": Example, "pair": Pair}


def places_to_compare(search: Search, documents: Sequence[Trained]) -> np.ndarray | None:
    """Returns the places of the documents in which something may be found, sorted; None: of all. The others hold nothing."""
    if not any(len(judged) for _, judged in search.judged) or not len(documents):
        return None
    if isinstance(documents, StoredExamples):
        return _kept(search, documents)
    examples = [document for document in documents if isinstance(document, Example)]
    if len(documents) < FEW or len(examples) < len(documents):
        return None
    sample = Block.of([examples[i] for i in _spread(len(examples))])
    return np.fromiter(
        search.suspects(_blocks_of(examples), examples, search.sieve(sample)), np.int64
    )


def compare_part(task: dict[str, Any]) -> list[int] | None:
    """Returns the places from start to stop in which something is found, None if what is stored is damaged.

    Runs in a process of its own.
    """
    try:
        search, documents, sieve = _opened(task["judged"], task["directory"])
        found = search.suspects(
            _stored_blocks(documents, task["start"], task["stop"]), documents, sieve
        )
        return [place for place in found if search.holds(documents[place])]
    except DamagedError:
        _opened.cache_clear()
        return None


def _kept(search: Search, documents: StoredExamples) -> np.ndarray:
    def make(directory: pathlib.Path) -> None:
        judged = directory / "judged.json"
        judged.write_text(json.dumps([_said(*one) for one in search.judged]), encoding="utf-8")
        for _ in range(2):
            tasks = [
                {
                    "judged": str(judged),
                    "directory": str(documents.directory),
                    "start": start,
                    "stop": stop,
                }
                for start, stop in _cuts(documents.row_ends, _TASK_BYTES, 0, len(documents))
            ]
            found = workers.run_all("medkor_jax.data.comparing:compare_part", tasks)
            if None not in found:
                break
            documents.repair()
        else:
            raise DamagedError(
                f"{documents.directory} is damaged as soon as it is made; is its disk sound?"
            )
        judged.unlink()
        _opened.cache_clear()  # if it was done in this process
        np.save(
            directory / "places.npy",
            np.array([place for part in found for place in part], np.int64),
        )

    key = key_of(documents.digest, [content_digest(judged) for _, judged in search.judged])
    return np.load(keep("compared", key, make) / "places.npy")


@functools.lru_cache(maxsize=1)
def _opened(judged: str, directory: str) -> tuple[Search, StoredExamples, Sieve]:
    """Returns what all parts of one comparison share."""
    said = json.loads(pathlib.Path(judged).read_text(encoding="utf-8"))
    documents = StoredExamples(pathlib.Path(directory), "")
    sample = Block.of([documents[i] for i in _spread(len(documents))])
    search = Search([(one["name"], _judged(one)) for one in said])
    return search, documents, search.sieve(sample)


def _spread(n: int) -> range:
    """Returns places of a sample, all over the source: a file may be sorted."""
    return range(0, n, max(1, n // SAMPLE))


def _blocks_of(documents: Sequence[Example]) -> Iterator[tuple[int, Block]]:
    for start in range(0, len(documents), FEW):
        yield start, Block.of(documents[start : start + FEW])


def _stored_blocks(documents: StoredExamples, start: int, stop: int) -> Iterator[tuple[int, Block]]:
    ends = documents.row_ends
    for begin, end in _cuts(ends, _BLOCK_BYTES, start, stop):
        raw = documents.texts(begin, end)
        documents.check(begin, end, raw)
        yield begin, Block(raw, ends[begin : end + 1] - ends[begin], documents.languages[begin:end])


def _cuts(ends: np.ndarray, size: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yields (first, past the last) document of stretches of about `size` bytes."""
    while start < stop:
        end = min(stop, max(start + 1, int(np.searchsorted(ends, ends[start] + size))))
        yield start, end
        start = end


def _said(name: str, judged: Sequence[Judged]) -> dict[str, Any]:
    """Returns one judged source as JSON; of one that is stored, where it lies."""
    if isinstance(judged, StoredExamples):
        return {"name": name, "source": judged.name, "directory": str(judged.directory)}
    return {"name": name, "documents": [_to_json(document) for document in judged]}


def _judged(said: dict[str, Any]) -> Sequence[Judged]:
    if "directory" in said:
        return StoredExamples(pathlib.Path(said["directory"]), said["source"])
    return [_from_json(document) for document in said["documents"]]


def _to_json(document: Judged) -> list[Any]:
    (name,) = (name for name, kind in _TYPES.items() if isinstance(document, kind))
    return [name, dataclasses.asdict(document)]


def _from_json(said: list[Any]) -> Judged:
    name, fields = said
    if name == "question":
        fields["options"] = tuple(fields["options"])
    elif name == "example":
        fields["parts"] = tuple((text, loss) for text, loss in fields["parts"])
    return _TYPES[name](**fields)
