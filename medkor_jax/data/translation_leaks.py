"""Finds a judged question among what is trained on in the other language.

    Translations([(0, judged_question, 210)]).find(documents, sizes)     # (document, 0, "number", 1.0), ...

Three ways, the surest first. `origin`: the row says what it was translated from, as those of `medkor data translate` do
(`likeness.content_key` of the question that it was). `number`: both bear the same exam, year and number, as rows of
KorMedMCQA do in any language. `marks`: what translation leaves as it is, numbers and Latin terms, is nearly the same
(SHARE), is much (WEIGHT), and both are as long as a translation is (SIZES).

Measured on ../shared/data, marks alone: of 290 questions of the doctor exam translated by hand 190 are found (101 of the
164 of valid, 89 of the 126 of train); the others hold no number or Latin term that tells. No other Korean question is
found in their place. Of 1,730 questions of MedQA three are taken for one of 4,895 Korean ones, and of 22,300 texts
and pairs none. So a translation without origin and number can pass unseen: keep both language forms of a test set out of
training.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from medkor_jax.data.language import LANGUAGES, has_hangul
from medkor_jax.data.likeness import Document, content_key
from medkor_jax.data.question import Question
from medkor_jax.data.translated_exam import numbers_in

SHARE = 0.8  # of the marks of both: all numbers, and the terms of the Korean one
WEIGHT = 7.0  # least weight of the marks that both have
SHARE_OF_TEXT, WEIGHT_OF_TEXT = (
    0.85,
    12.0,
)  # the same of a text, of which there are many, and few are questions
SIZES = (
    0.8,
    2.2,
)  # English letters for one Korean one, a syllable counted two: 0.82 to 2.53 in the 290, 98 % in these
_RARE = 2.0  # least weight of a mark that few texts have
_TERM = re.compile(r"[A-Za-z][A-Za-z0-9]+")
_UNITS = frozenset(
    "mg dl mmhg cm mm ml min kg iu meq ug ng pg fl mol mmol umol cells mosm hr sec day ph mcg".split()
)


@dataclasses.dataclass(frozen=True)
class Marks:
    """What a translation leaves as it is. size: letters, see `likeness.letters`."""

    numbers: frozenset[str]
    terms: frozenset[str]
    size: int


class Translations:
    """Judged questions, each with the number it is known by to the caller, and its size in letters (`likeness.Form.size`)."""

    def __init__(self, judged: Sequence[tuple[int, Question, int]]) -> None:
        self._judged = {owner: question for owner, question, _ in judged}
        self._origins: dict[str, list[int]] = defaultdict(list)
        self._numbers: dict[tuple, list[int]] = defaultdict(list)
        marks = [marks_of(question, size) for _, question, size in judged]
        holders: dict[tuple[str, str], list[int]] = defaultdict(
            list
        )  # by language and mark: places in `judged`
        for place, (owner, question, _) in enumerate(judged):
            for key in _keys(question):
                self._origins[key].append(owner)
            if numbered := _place(question):
                self._numbers[numbered].append(owner)
            for mark in marks[place].numbers | marks[place].terms:
                holders[question.language, mark].append(place)
        self._holders = {key: np.array(places) for key, places in holders.items()}
        self._owners = np.array([owner for owner, *_ in judged], np.int64)
        self._is_korean = np.array(
            [question.language == "ko" for _, question, _ in judged], np.bool_
        )
        self._size_of = np.array([size for *_, size in judged], np.float64)
        self._weight_of_numbers = np.array([_weigh(one.numbers) for one in marks])
        self._weight_of_terms = np.array([_weigh(one.terms) for one in marks])
        sizes = [size for _, _, size in judged]
        self._languages = {question.language for question in self._judged.values()}
        self._sizes = (min(sizes) / SIZES[1], max(sizes) * SIZES[1]) if sizes else (0, 0)

    def near(self, sizes: np.ndarray, languages: np.ndarray) -> np.ndarray:
        """Returns the places of the texts that could be translations by size and language: `find` looks at no others.

        sizes: [n], in letters; languages: [n], places in `stored.LANGUAGES`.
        """
        if not self._judged:
            return np.zeros(0, np.int64)
        is_other = np.array([self._languages != {language} for language in LANGUAGES])
        return np.flatnonzero(
            (self._sizes[0] <= sizes) & (sizes <= self._sizes[1]) & is_other[languages]
        )

    def find(
        self, documents: Sequence[Document], sizes: Sequence[int]
    ) -> Iterator[tuple[int, int, str, float]]:
        """Yields (place in `documents`, judged question, way it was found, similarity). sizes: of the documents, in letters."""
        if not self._judged:
            return
        for i, (document, size) in enumerate(zip(documents, sizes, strict=True)):
            seen = set()
            if isinstance(document, Question):
                for which, owner in self._named(document):
                    seen.add(owner)
                    yield i, owner, which, 1.0
            for owner, similarity in self._alike(document, size):
                if owner not in seen:
                    yield i, owner, "marks", similarity

    def _named(self, question: Question) -> Iterator[tuple[str, int]]:
        for key in _keys(question):
            for owner in self._origins.get(key, ()):
                judged = self._judged[owner]
                if judged.language != question.language or key in (question.origin, judged.origin):
                    yield "origin", owner
        for owner in self._numbers.get(_place(question), ()):
            if self._judged[owner].language != question.language:
                yield "number", owner

    def _alike(self, document: Document, size: int) -> Iterator[tuple[int, float]]:
        is_near = self._sizes[0] <= size <= self._sizes[1]
        if not is_near or self._languages == {document.language} or not _may_ask(document):
            return
        is_korean = document.language == "ko"
        other = "en" if is_korean else "ko"
        korean, english = (size, self._size_of) if is_korean else (self._size_of, size)
        ratio = english / np.maximum(korean, 1e-9)  # of a question without letters: far too large
        could_be = (self._is_korean != is_korean) & (SIZES[0] <= ratio) & (ratio <= SIZES[1])
        if not could_be.any():
            return
        ours = marks_of(document, size)
        least_share, least_weight = (
            (SHARE, WEIGHT) if isinstance(document, Question) else (SHARE_OF_TEXT, WEIGHT_OF_TEXT)
        )
        numbers, terms = (
            [
                (self._holders[other, mark], weight_of(mark))
                for mark in of_kind
                if (other, mark) in self._holders
            ]
            for of_kind in (ours.numbers, ours.terms)
        )
        rare = self._shared([one for one in (*numbers, *terms) if one[1] >= _RARE])
        could_be &= rare >= least_weight / 2
        if not could_be.any():
            return
        of_numbers, of_terms = self._shared(numbers), self._shared(terms)
        both = of_numbers + of_terms
        whole = self._weight_of_numbers + _weigh(ours.numbers) - of_numbers
        whole = whole + (_weigh(ours.terms) if is_korean else self._weight_of_terms)
        for place in np.flatnonzero(could_be & (both >= least_weight)):
            similarity = float(both[place] / whole[place])
            if similarity >= least_share:
                yield int(self._owners[place]), similarity

    def _shared(self, held: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
        """Returns [judged]: the weight of the marks in `held` that each has. All weights are halves: no sum is rounded."""
        if not held:
            return np.zeros(len(self._owners))
        places, weights = (
            np.concatenate([places for places, _ in held]),
            [weight for _, weight in held],
        )
        return np.bincount(
            places, np.repeat(weights, [len(places) for places, _ in held]), len(self._owners)
        )


def marks_of(document: Document, size: int) -> Marks:
    text = unicodedata.normalize("NFKC", "\n".join(_texts(document)))
    terms = frozenset(term.casefold() for term in _TERM.findall(text))
    return Marks(frozenset(number.replace(",", ".") for number in numbers_in(text)), terms, size)


@functools.lru_cache(2**18)
def weight_of(mark: str) -> float:
    """Returns how much a mark tells: a number by its digits, a term by whether it is a unit or an abbreviation."""
    if mark[0].isdigit():
        return {1: 1.0, 2: 2.5}.get(sum(map(str.isdigit, mark)), 4.0)
    return 0.5 if mark in _UNITS else 2.0 if len(mark) == 2 else 4.0


def _may_ask(document: Document) -> bool:
    """Whether it is a question, or a text in one language that asks something."""
    if isinstance(document, Question):
        return True
    text = "".join(_texts(document))
    return "?" in text and not (document.language == "en" and has_hangul(text))


def _texts(document: Document) -> list[str]:
    return (
        [document.question, *document.options]
        if isinstance(document, Question)
        else [text for text, _ in document.parts]
    )


def _weigh(marks: frozenset[str]) -> float:
    return sum(map(weight_of, marks))


def _keys(question: Question) -> set[str]:
    """Returns what the question, and that which it was translated from, is named by."""
    return {content_key(question)} | ({question.origin} if question.origin else set())


def _place(question: Question) -> tuple | None:
    return (
        (question.exam, question.year, question.number)
        if question.year is not None and question.number
        else None
    )
