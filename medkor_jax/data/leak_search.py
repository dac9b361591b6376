"""What is judged by, looked for in one document after another: the search that `leakage` and `comparing` make.

    search = Search([("valid", judged_questions)])
    search.read(0, "train", questions); search.read(1, "wiki", examples)
    search.leaks()

What is found, and what it is called, is said in `leakage`. Of very many texts only those are compared that `Search.suspects` names,
in the order and the chunks in which all of them would be. It keeps nothing on disk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from medkor_jax.data import likeness
from medkor_jax.data.likeness import (
    QUESTION_CANDIDATE,
    TEXT_CANDIDATE,
    Form,
    form_of,
    letters,
    text_form,
)
from medkor_jax.data.pairs import Pair, both_ways, pair_of
from medkor_jax.data.question import Question
from medkor_jax.data.rows import Example
from medkor_jax.data.shingles import Index
from medkor_jax.data.sieve import Block, Rule, Sieve, rules_of
from medkor_jax.data.translation_leaks import Translations

Trained = Example | Question
Judged = Example | Question | Pair

SIDES = 20  # letters of both sides of a pair: shorter ones are said by anybody
_PAIRS_AT_ONCE = 2**22
_KINDS, _WHICH = (
    ("exact", "normalised", "near", "translated"),
    ("whole", "text", "stem", "sides", "origin", "number", "marks"),
)  # closest first


@dataclasses.dataclass(frozen=True)
class Leak:
    """One judged document found again in a trained source, at its closest match there.

    similarity: 1 unless near, or translated by its marks; then the share that recurs. more: how many others of the source match too.
    """

    kind: str  # exact | normalised | near | translated
    which: str  # stem | whole | text (of a judged document that is no question) | sides (of a pair); origin | number | marks
    trained_source: str
    trained_id: str
    judged_source: str
    judged_id: str
    similarity: float
    trained_excerpt: str
    judged_excerpt: str
    more: int = 0

    @property
    def key(self) -> str:
        """What a config names it by; `trained_source ~ judged_source` names all of a pair of sources."""
        return f"{self.trained_source}:{self.trained_id} ~ {self.judged_source}:{self.judged_id}"


@dataclasses.dataclass(frozen=True)
class _Sought:
    """One form that is looked for: of which judged document, and which side of it ("" for all of it)."""

    form: Form
    owner: int
    side: str = ""


class Search:
    """What is judged by, and where it was found so far."""

    def __init__(self, judged: Sequence[tuple[str, Sequence[Judged]]]) -> None:
        self.judged = judged
        documents = [(source, document) for source, of_source in judged for document in of_source]
        self._sought = [
            sought
            for owner, (source, one) in enumerate(documents)
            for sought in _sought(owner, source, one)
        ]
        self._texts = [
            sought for sought in self._sought if not sought.form.is_question and not sought.side
        ]
        self._forms = {
            sought.owner: sought.form for sought in self._sought if not sought.side
        }  # a document's whole form
        questions = [
            (owner, one, self._forms[owner].size)
            for owner, (_, one) in enumerate(documents)
            if isinstance(one, Question)
        ]
        self._translations = Translations(questions)
        self._shares = [
            QUESTION_CANDIDATE if sought.form.is_question else TEXT_CANDIDATE
            for sought in self._sought
        ]
        if self._sought:
            self._index = Index([sought.form.telling_runs for sought in self._sought], self._shares)
        self._found: dict[tuple[int, int], Leak] = {}  # by trained source and judged document
        self._sides: dict[int, dict[str, dict[int, Leak]]] = defaultdict(lambda: defaultdict(dict))

    def read(
        self,
        number: int,
        source: str,
        documents: Sequence[Trained],
        places: np.ndarray | None = None,
    ) -> None:
        """Looks for all that is judged in the documents of one trained source.

        places: of those to look at, sorted, where the others are known to hold nothing.
        """
        if not self._sought:
            return
        size = max(1, _PAIRS_AT_ONCE // len(self._sought))
        for start in range(0, len(documents), size):
            if places is None:
                chunk = documents[start : start + size]
            else:
                chunk = [
                    documents[i]
                    for i in places[
                        np.searchsorted(places, start) : np.searchsorted(places, start + size)
                    ]
                ]
            if chunk:
                self._compare(number, source, chunk)

    def sieve(self, sample: Block) -> Sieve:
        """Returns what tells texts that can hold something that is judged from those that cannot, see `sieve`."""
        return Sieve(self._rules, sample)

    @functools.cached_property
    def _rules(self) -> list[list[Rule]]:
        return [rules_of(sought.form, share) for sought, share in zip(self._sought, self._shares)]

    def suspects(
        self, blocks: Iterator[tuple[int, Block]], documents: Sequence[Example], sieve: Sieve
    ) -> Iterator[int]:
        """Yields the places of the texts that may hold something that is judged; the others hold nothing.

        blocks: (place of its first text, block) of all that are asked for.
        """
        for start, block in blocks:
            passed, sizes = sieve.pass_through(block)
            asking = [
                i
                for i in self._translations.near(sizes, block.languages)
                if any(self._translations.find([documents[start + i]], [int(sizes[i])]))
            ]
            yield from (start + int(i) for i in np.union1d(passed, np.array(asking, np.int64)))

    def holds(self, document: Trained) -> bool:
        """Whether anything that is judged, or one side of a pair, is found in the document. Forgets what was found before."""
        self._found.clear()
        self._sides.clear()
        self._compare(0, "", [document])
        return bool(self._found or self._sides)

    def _compare(self, number: int, source: str, chunk: Sequence[Trained]) -> None:
        ours = [form_of(source, document) for document in chunk]
        self._look_in(number, ours)
        self._look_around(number, [form for form in ours if form.is_question])
        for i, owner, which, similarity in self._translations.find(
            chunk, [form.size for form in ours]
        ):
            self._note(
                number, owner, ours[i], self._forms[owner], ("translated", which, similarity)
            )

    def leaks(self) -> list[Leak]:
        """Returns what was found, in the order of the trained sources and of what is judged."""
        found = dict(self._found)
        for owner, sides in self._sides.items():
            if len(sides) == 2:
                for number in sides["en"] | sides["ko"]:
                    for leak in (side[number] for side in sides.values() if number in side):
                        found[number, owner] = _closer(found.get((number, owner)), leak)
        return [found[place] for place in sorted(found)]

    def _look_in(self, number: int, ours: list[Form]) -> None:
        """Looks for what is judged in these documents."""
        parts: dict[tuple[int, int], set[str]] = defaultdict(
            set
        )  # sides of a judged pair that one document holds
        for o, t in self._index.candidates([form.all_runs for form in ours]):
            sought, form = self._sought[t], ours[o]
            if sought.side and sought.form.stem in form.stem:
                parts[o, sought.owner].add(sought.side)
                if len(parts[o, sought.owner]) == 2:
                    self._note(
                        number,
                        sought.owner,
                        form,
                        self._forms[sought.owner],
                        ("normalised", "sides", 1.0),
                    )
            if found := likeness.match(form, sought.form):
                if sought.side:
                    leak = _leak(form, sought.form, (found[0], "sides", found[2]))
                    at = self._sides[sought.owner][sought.side]
                    at[number] = _closer(at.get(number), leak)
                else:
                    self._note(number, sought.owner, form, sought.form, found)

    def _look_around(self, number: int, questions: list[Form]) -> None:
        """Looks for these questions in the texts that are judged."""
        if not questions or not self._texts:
            return
        index = Index(
            [form.telling_runs for form in questions], [QUESTION_CANDIDATE] * len(questions)
        )
        for t, q in index.candidates([sought.form.runs for sought in self._texts]):
            sought = self._texts[t]
            if found := likeness.match_inside(sought.form, questions[q]):
                self._note(number, sought.owner, questions[q], sought.form, found)

    def _note(
        self, number: int, owner: int, ours: Form, theirs: Form, found: tuple[str, str, float]
    ) -> None:
        place = (number, owner)
        self._found[place] = _closer(self._found.get(place), _leak(ours, theirs, found))


def _sought(owner: int, source: str, document: Judged) -> list[_Sought]:
    """Returns the forms that a judged document is looked for in; a pair as it is taught, and each side by itself."""
    document = (isinstance(document, Example) and pair_of(document)) or document
    if not isinstance(document, Pair):
        return [_Sought(form_of(source, document), owner)]
    taught = dataclasses.replace(both_ways(document)[0], id=document.id)
    sides = [
        _Sought(text_form(source, document.id, text), owner, side)
        for side, text in (("en", document.en), ("ko", document.ko))
    ]
    is_telling = sum(letters(side.form.stem) for side in sides) >= SIDES
    return [_Sought(form_of(source, taught), owner), *(sides if is_telling else [])]


def _leak(ours: Form, theirs: Form, found: tuple[str, str, float]) -> Leak:
    kind, which, similarity = found
    return Leak(
        kind,
        which,
        ours.source,
        ours.id,
        theirs.source,
        theirs.id,
        round(similarity, 3),
        _excerpt(ours.raw_stem),
        _excerpt(theirs.raw_stem),
    )


def _closer(known: Leak | None, leak: Leak) -> Leak:
    """Returns the closer of two matches of the same judged document, the earlier if they are alike."""
    if known is None:
        return leak
    first = min(
        known,
        leak,
        key=lambda one: (_KINDS.index(one.kind), _WHICH.index(one.which), -one.similarity),
    )
    is_another = leak.trained_id != known.trained_id
    return dataclasses.replace(first, more=known.more + is_another)


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
