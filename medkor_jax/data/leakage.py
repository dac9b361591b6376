"""Finds what is judged by among what is trained on.

    leaks = find_leaks([("train", questions), ("wiki", examples)], [("valid", judged_questions)])
    leaks[0].key      # "train:nurse/train/530 ~ valid:nurse/valid/239"

Three kinds: `exact` (the same characters), `normalised` (the same letters and digits after NFKC and
case folding) and `near` (most five-letter runs shared). Two questions are compared by stem and by stem
with options: `whole` means that the options recur too (in any order), `stem` that they differ. A stem that
says nothing by itself ("옳은 것은?", "Which of the following is correct?") counts only with its options. Questions of one template on different facts
("... of 4p deletion?", "... of 5p deletion?") are not alike: a short stem must recur whole, or nearly so with
its options and its answer. A question inside a longer text is a leak; a text that states the fact it asks
for ("유방암의 종양표지자는 CA 15-3이다.") is not: a short stem must stand there as a question, or with its
options.

What it does not do: compare across languages. An English translation of a Korean test question is no
leak to it; keep both language forms of a test set out of training. Nor does it find a judged text of
which a small part alone was trained on.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from medkor_jax.data.exams import Question
from medkor_jax.data.rows import Example, count_hangul

Document = Example | Question

SHINGLE = 5  # letters in a run
NEAR_JACCARD = 0.8  # shared runs over all runs of two stems, or of two questions with their options
NEAR_STEM_OF_WHOLE = 0.5  # least Jaccard of the stems where the options are alike: sets of options recur by themselves
NEAR_CONTAINED = 0.9  # share of the judged document's runs that a text has
NEAR_MIN_RUNS = 30  # with fewer, one changed word makes another document, not a copy
LONG_STEM = 120  # letters (a Hangul syllable counts two): a patient's history, no longer a template around one name
INSIDE_STEM = 20  # letters: a shorter stem may stand in a text by chance
_PAIRS_AT_ONCE = 2**22
_KINDS, _WHICH = ("exact", "normalised", "near"), ("whole", "text", "stem")  # closest first
_SAMPLE_RUNS = 64
# Least share of the sampled runs for a pair to be compared on all of them, where it needs 0.5 (of all runs of
# both: 2/3 of each) or 0.9. A sample of 64 strays by 0.06 at most (one standard deviation).
_QUESTION_CANDIDATE = 0.42
_TEXT_CANDIDATE = 0.78
_PAIRS_AT_ONCE = 2**22

# Words that any question may consist of. A stem of these alone says nothing about what it asks.
_SAYS_NOTHING = frozenset(
    "a all an and answer appropriate are best be choose correct diagnosis except false following for from in incorrect is "
    "it likely management most next not of one option options regarding right select statement statements step that the "
    "this to treatment true what which with wrong "
    "가장 것 것은 것을 것이 경우는 고르시오 다른 다음 답은 대한 또는 맞는 무엇인가 방법은 방법이 볼 설명 설명으로 "
    "설명이 수 아닌 않는 않은 알맞은 없는 옳은 옳지 올바른 위 이 있는 적절하지 적절한 적합한 조치는 중 중에서 진단은 "
    "처치는 치료 치료는 치료로 틀린 해당하는 해당하지 검사는".split())


@dataclasses.dataclass(frozen=True)
class Leak:
    """One judged document found again in a trained source, at its closest match there.

    similarity: 1 unless near; then the share of runs that recur. more: how many others of the source match too.
    """

    kind: str  # exact | normalised | near
    which: str  # stem | whole | text (of a judged document that is no question)
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


def find_leaks(
    trained: Sequence[tuple[str, Sequence[Document]]], judged: Sequence[tuple[str, Sequence[Document]]]
) -> list[Leak]:
    """Returns the judged documents that are found in what is trained on, one Leak for each and each trained source.

    Both are lists of (source name, its questions or examples). Trained sources are read once, in chunks.
    """
    theirs = [_form(source, document) for source, documents in judged for document in documents]
    if not theirs:
        return []
    least_shares = [_QUESTION_CANDIDATE if form.is_question else _TEXT_CANDIDATE for form in theirs]
    index = _Index([form.runs for form in theirs], least_shares)
    chunk_size = max(1, _PAIRS_AT_ONCE // len(theirs))
    closest: dict[tuple[int, int], Leak] = {}
    for number, (source, documents) in enumerate(trained):
        for start in range(0, len(documents), chunk_size):
            ours = [_form(source, documents[i]) for i in range(start, min(start + chunk_size, len(documents)))]
            for o, t in index.candidates([form.runs for form in ours]):
                found = _match(ours[o], theirs[t])
                if found:
                    leak = Leak(*found[:2], source, ours[o].id, theirs[t].source, theirs[t].id, round(found[2], 3),
                                _excerpt(ours[o].raw_stem), _excerpt(theirs[t].raw_stem))
                    closest[number, t] = _closer(closest.get((number, t)), leak)
    return [closest[pair] for pair in sorted(closest)]


def unexcused(leaks: Sequence[Leak], allowed: Sequence[str]) -> list[Leak]:
    """Returns the leaks that `allowed` names neither by key nor by their pair of sources."""
    named = {" ".join(name.split()) for name in allowed}
    return [leak for leak in leaks if leak.key not in named and f"{leak.trained_source} ~ {leak.judged_source}" not in named]


def normalise(text: str) -> str:
    """Returns the letters and digits of the text, in one case and one Unicode form."""
    return _asked(text).replace("?", "")


def _asked(text: str) -> str:
    """Returns the normalised text with its question marks."""
    return re.sub(r"[^\w?]+|_+", "", unicodedata.normalize("NFKC", text).casefold())


def says_nothing(stem: str) -> bool:
    """Returns whether the stem needs its options to be a question: four syllables or eight letters beyond common words."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", stem).casefold())
    return _letters("".join(word for word in words if word not in _SAYS_NOTHING)) < 8


def _letters(text: str) -> int:
    """Returns the length in letters; a Hangul syllable says about as much as two."""
    return len(text) + count_hangul(text)


@dataclasses.dataclass(frozen=True)
class _Form:
    """A document in the forms that are compared. Of a text, the stem is all of it."""

    source: str
    id: str
    raw_stem: str
    raw_options: tuple[str, ...]
    asked: str  # normalised, with question marks
    stem: str
    options: tuple[str, ...]  # normalised and sorted: order is no difference
    answer: str
    runs: np.ndarray  # of the stem
    is_question: bool


def _form(source: str, document: Document) -> _Form:
    if isinstance(document, Question):
        raw, raw_options, is_question = document.question.strip(), tuple(sorted(o.strip() for o in document.options)), True
        answer = normalise(document.options[document.answer])
    else:
        raw, raw_options, answer, is_question = "".join(text for text, _ in document.parts), (), "", False
    asked = _asked(raw)
    stem = asked.replace("?", "")
    return _Form(source, document.id, raw, raw_options, asked, stem, tuple(sorted(map(normalise, raw_options))), answer,
                 _runs(stem), is_question)


def _closer(known: Leak | None, leak: Leak) -> Leak:
    """Returns the closer of two matches of the same judged document, the earlier if they are alike."""
    if known is None:
        return leak
    first = min(known, leak, key=lambda one: (_KINDS.index(one.kind), _WHICH.index(one.which), -one.similarity))
    return dataclasses.replace(first, more=known.more + 1)


def _match(ours: _Form, theirs: _Form) -> tuple[str, str, float] | None:
    """Returns (kind, which, similarity) if their judged document is found in ours."""
    if not theirs.is_question:
        return _match_texts(ours, theirs)
    return _match_questions(ours, theirs) if ours.is_question else _match_inside(ours, theirs)


def _match_questions(ours: _Form, theirs: _Form) -> tuple[str, str, float] | None:
    same_options = ours.options == theirs.options
    if ours.stem == theirs.stem and (same_options or not says_nothing(theirs.raw_stem)):
        is_exact = ours.raw_stem == theirs.raw_stem and (not same_options or ours.raw_options == theirs.raw_options)
        return "exact" if is_exact else "normalised", "whole" if same_options else "stem", 1.0
    stem = _overlap(ours.runs, theirs.runs)
    is_long = _letters(theirs.stem) >= LONG_STEM
    if stem.jaccard >= NEAR_STEM_OF_WHOLE and ours.answer == theirs.answer and (is_long or _digits(ours) == _digits(theirs)):
        whole = _overlap(*(_runs(form.stem + "".join(form.options)) for form in (ours, theirs)))
        if whole.jaccard >= NEAR_JACCARD and whole.smaller >= NEAR_MIN_RUNS:
            return "near", "whole", whole.jaccard
    if is_long and stem.jaccard >= NEAR_JACCARD:
        return "near", "stem", stem.jaccard
    return None


def _match_inside(ours: _Form, theirs: _Form) -> tuple[str, str, float] | None:
    """Returns the match of a judged question inside a text."""
    letters = _letters(theirs.stem)
    which = "whole" if all(option in ours.stem for option in theirs.options) else "stem"
    is_told = which == "whole" or letters >= LONG_STEM
    is_asked = theirs.asked.endswith("?") and theirs.asked in ours.asked
    if letters >= INSIDE_STEM and not says_nothing(theirs.raw_stem) and (is_asked or is_told and theirs.stem in ours.stem):
        return "exact" if theirs.raw_stem in ours.raw_stem else "normalised", which, 1.0
    overlap = _overlap(ours.runs, theirs.runs)
    if is_told and overlap.contained >= NEAR_CONTAINED and overlap.smaller >= NEAR_MIN_RUNS:
        return "near", which, overlap.contained
    return None


def _match_texts(ours: _Form, theirs: _Form) -> tuple[str, str, float] | None:
    """Returns the match of a judged text with, or inside, what is trained on."""
    if ours.stem == theirs.stem or (_letters(theirs.stem) >= INSIDE_STEM and theirs.stem in ours.stem):
        return "exact" if theirs.raw_stem in ours.raw_stem else "normalised", "text", 1.0
    overlap = _overlap(ours.runs, theirs.runs)
    if overlap.contained >= NEAR_CONTAINED and overlap.smaller >= NEAR_MIN_RUNS:
        return "near", "text", overlap.contained
    return None


def _digits(form: _Form) -> list[str]:
    return re.findall(r"\d", form.stem)


@dataclasses.dataclass(frozen=True)
class _Overlap:
    """How many runs of letters two documents share: as counts, and as shares of all runs or of theirs."""

    jaccard: float
    contained: float
    smaller: int  # runs of the smaller of the two


def _overlap(ours: np.ndarray, theirs: np.ndarray) -> _Overlap:
    shared = len(np.intersect1d(ours, theirs, assume_unique=True))
    return _Overlap(shared / (len(ours) + len(theirs) - shared), shared / len(theirs), min(len(ours), len(theirs)))


class _Index:
    """A sample of the runs of each judged document, and which documents hold each.

    The sample is the _SAMPLE_RUNS runs of smallest hash: a random one, and all runs of a short document. It
    keeps the work on long documents bounded; `_match` then decides on all the runs.
    """

    def __init__(self, documents: Sequence[np.ndarray], least_shares: Sequence[float]):
        samples = [runs[:_SAMPLE_RUNS] for runs in documents]  # runs are sorted
        self._sizes = np.array([len(sample) for sample in samples])
        self._least = self._sizes * np.array(least_shares)
        runs, owners = np.concatenate(samples), np.repeat(np.arange(len(samples)), self._sizes)
        order = np.argsort(runs, kind="stable")
        self._runs, starts = np.unique(runs[order], return_index=True)
        self._starts = np.append(starts, len(runs))
        self._owners = owners[order]

    def candidates(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the pairs [n, 2] of (one of ours, one of theirs) that may share enough of the runs of theirs."""
        runs = np.concatenate(documents)
        owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        at = np.minimum(np.searchsorted(self._runs, runs), len(self._runs) - 1)
        known = self._runs[at] == runs
        at, owners = at[known], owners[known]
        counts = self._starts[at + 1] - self._starts[at]
        # Each run of ours meets all its owners: positions start, start + 1, ... of `_owners`, laid end to end.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        theirs = self._owners[np.repeat(self._starts[at], counts) + within]
        pairs = np.repeat(owners, counts) * len(self._sizes) + theirs
        shared = np.bincount(pairs, minlength=len(documents) * len(self._sizes)).reshape(len(documents), -1)
        return np.argwhere(shared >= self._least)


def _runs(text: str) -> np.ndarray:
    """Returns the distinct runs of SHINGLE letters, hashed and sorted, uint64; a shorter text is one run."""
    letters = np.frombuffer(text.ljust(SHINGLE, "\0").encode("utf-32-le"), np.uint32).astype(np.uint64)
    count = len(letters) - SHINGLE + 1
    hashed = np.zeros(count, np.uint64)
    for i in range(SHINGLE):
        hashed = (hashed ^ letters[i:i + count]) * np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(29)  # spreads the high bits, so that order by hash is random order
    return np.unique(hashed)


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
