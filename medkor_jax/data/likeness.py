"""How alike two documents are: what `leakage` compares what is trained on and what is judged by with.

    match(form_of("train", question), form_of("valid", judged))        # ("near", "whole", 0.91), or None
    Index([form.runs for form in judged], shares).candidates(...)     # which pairs are worth a match

Documents are compared by their letters and digits, after NFKC and case folding, and by their runs of five of those.
What counts as alike is said in `leakage`. It knows nothing of sources, configs or what a leak is excused by.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata

import numpy as np

from medkor_jax.data.cells import count_hangul
from medkor_jax.data.contents import sha256_of
from medkor_jax.data.question import Question
from medkor_jax.data.rows import Example
from medkor_jax.data.shingles import overlap_of, runs_of

Document = Example | Question

NEAR_JACCARD = 0.8  # shared runs over all runs of two stems, or of two questions with their options
NEAR_STEM_OF_WHOLE = 0.5  # least Jaccard of the stems where the options are alike: sets of options recur by themselves
NEAR_CONTAINED = 0.9  # share of the judged document's runs that a text has
NEAR_MIN_RUNS = 30  # with fewer, one changed word makes another document, not a copy
LONG_STEM = 120  # letters (a Hangul syllable counts two): a patient's history, no longer a template around one name
INSIDE_STEM = 20  # letters: a shorter stem may stand in a text by chance
INSIDE_WHOLE = (
    60  # letters of stem and options: with fewer, all of them may stand in a text by chance
)
# Least share of the sampled runs for a pair to be compared on all of them, where it needs 0.5 (of all runs of
# both: 2/3 of each) or 0.9. A sample of 64 strays by 0.06 at most (one standard deviation).
QUESTION_CANDIDATE = 0.42
TEXT_CANDIDATE = 0.78

# Words that any question may consist of. A stem of these alone says nothing about what it asks.
_SAYS_NOTHING = frozenset(
    "a all an and answer appropriate are best be choose correct diagnosis except false following for from in incorrect is "
    "it likely management most next not of one option options regarding right select statement statements step that the "
    "this to treatment true what which with wrong "
    "가장 것 것은 것을 것이 경우는 고르시오 다른 다음 답은 대한 또는 맞는 무엇인가 방법은 방법이 볼 설명 설명으로 "
    "설명이 수 아닌 않는 않은 알맞은 없는 옳은 옳지 올바른 위 이 있는 적절하지 적절한 적합한 조치는 중 중에서 진단은 "
    "처치는 치료 치료는 치료로 틀린 해당하는 해당하지 검사는".split()
)


def normalise(text: str) -> str:
    """Returns the letters and digits of the text, in one case and one Unicode form."""
    return asked_form(text).replace("?", "")


def asked_form(text: str) -> str:
    """Returns the normalised text with its question marks."""
    return re.sub(r"[^\w?]+|_+", "", unicodedata.normalize("NFKC", text).casefold())


def says_nothing(stem: str) -> bool:
    """Returns whether the stem needs its options to be a question: four syllables or eight letters beyond common words."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", stem).casefold())
    return letters("".join(word for word in words if word not in _SAYS_NOTHING)) < 8


def letters(text: str) -> int:
    """Returns the length in letters; a Hangul syllable says about as much as two."""
    return len(text) + count_hangul(text)


@dataclasses.dataclass(frozen=True)
class Form:
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
    whole_runs: np.ndarray  # of stem and options
    is_question: bool

    @property
    def size(self) -> int:
        """Letters of stem and options, see `letters`."""
        return letters(self.stem) + sum(map(letters, self.options))

    @property
    def telling_runs(self) -> np.ndarray:
        """What the document is looked for by: the runs of its stem, and of its options where the stem says nothing."""
        return self.whole_runs if self.is_question and says_nothing(self.raw_stem) else self.runs

    @property
    def all_runs(self) -> np.ndarray:
        """What the document is found by."""
        return np.union1d(self.runs, self.whole_runs) if self.is_question else self.runs


def form_of(source: str, document: Document) -> Form:
    if isinstance(document, Question):
        return _form(
            source,
            document.id,
            document.question.strip(),
            tuple(sorted(o.strip() for o in document.options)),
            normalise(document.options[document.answer]),
            is_question=True,
        )
    return text_form(source, document.id, "".join(text for text, _ in document.parts))


def text_form(source: str, id: str, text: str) -> Form:
    return _form(source, id, text, (), "", is_question=False)


def _form(
    source: str, id: str, raw: str, raw_options: tuple[str, ...], answer: str, *, is_question: bool
) -> Form:
    asked = asked_form(raw)
    stem, options = asked.replace("?", ""), tuple(sorted(map(normalise, raw_options)))
    runs = runs_of(stem)
    whole_runs = runs_of(stem + "".join(options)) if is_question else runs
    return Form(
        source, id, raw, raw_options, asked, stem, options, answer, runs, whole_runs, is_question
    )


def content_key(question: Question) -> str:
    """Returns what names a question by what it says, whatever its id and the order of its options: 16 hex digits."""
    said = "|".join([normalise(question.question), *sorted(map(normalise, question.options))])
    return sha256_of([said])[:16]


def match(ours: Form, theirs: Form) -> tuple[str, str, float] | None:
    """Returns (kind, which, similarity) if their judged document is found in ours."""
    if not theirs.is_question:
        return _match_texts(ours, theirs)
    return _match_questions(ours, theirs) if ours.is_question else match_inside(ours, theirs)


def _match_questions(ours: Form, theirs: Form) -> tuple[str, str, float] | None:
    same_options = ours.options == theirs.options
    if ours.stem == theirs.stem and (same_options or not says_nothing(theirs.raw_stem)):
        is_exact = ours.raw_stem == theirs.raw_stem and (
            not same_options or ours.raw_options == theirs.raw_options
        )
        return "exact" if is_exact else "normalised", "whole" if same_options else "stem", 1.0
    stem = overlap_of(ours.runs, theirs.runs)
    is_long = letters(theirs.stem) >= LONG_STEM
    if (
        stem.jaccard >= NEAR_STEM_OF_WHOLE
        and ours.answer == theirs.answer
        and (is_long or _digits(ours) == _digits(theirs))
    ):
        whole = overlap_of(ours.whole_runs, theirs.whole_runs)
        if whole.jaccard >= NEAR_JACCARD and whole.smaller >= NEAR_MIN_RUNS:
            return "near", "whole", whole.jaccard
    if is_long and stem.jaccard >= NEAR_JACCARD:
        return "near", "stem", stem.jaccard
    return None


def match_inside(ours: Form, theirs: Form) -> tuple[str, str, float] | None:
    """Returns the match of a judged question inside a text."""
    length = letters(theirs.stem)
    which = "whole" if all(option in ours.stem for option in theirs.options) else "stem"
    is_told = which == "whole" or length >= LONG_STEM
    is_asked = theirs.asked.endswith("?") and theirs.asked in ours.asked
    is_there = theirs.stem in ours.stem
    if is_there and which == "whole" and length + sum(map(letters, theirs.options)) >= INSIDE_WHOLE:
        return "exact" if theirs.raw_stem in ours.raw_stem else "normalised", which, 1.0
    if (
        length >= INSIDE_STEM
        and not says_nothing(theirs.raw_stem)
        and (is_asked or (is_told and is_there))
    ):
        return "exact" if theirs.raw_stem in ours.raw_stem else "normalised", which, 1.0
    overlap = overlap_of(ours.runs, theirs.runs)
    if is_told and overlap.contained >= NEAR_CONTAINED and overlap.smaller >= NEAR_MIN_RUNS:
        return "near", which, overlap.contained
    return None


def _match_texts(ours: Form, theirs: Form) -> tuple[str, str, float] | None:
    """Returns the match of a judged text with, or inside, what is trained on."""
    if ours.stem == theirs.stem or (
        letters(theirs.stem) >= INSIDE_STEM and theirs.stem in ours.stem
    ):
        return "exact" if theirs.raw_stem in ours.raw_stem else "normalised", "text", 1.0
    overlap = overlap_of(ours.runs, theirs.runs)
    if overlap.contained >= NEAR_CONTAINED and overlap.smaller >= NEAR_MIN_RUNS:
        return "near", "text", overlap.contained
    return None


def _digits(form: Form) -> list[str]:
    return re.findall(r"\d", form.stem)
