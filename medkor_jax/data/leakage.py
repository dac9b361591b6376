"""Finds what is judged by among what is trained on.

    leaks = find_leaks([("train", questions), ("wiki", examples)], [("valid", judged_questions)])
    leaks[0].key      # "train:nurse/train/530 ~ valid:nurse/valid/239"

Four kinds: `exact` (the same characters), `normalised` (the same letters and digits after NFKC and
case folding), `near` (most five-letter runs shared) and `translated` (the same question in the other language, see
`translated`). Two questions are compared by stem and by stem
with options: `whole` means that the options recur too (in any order), `stem` that they differ. A stem that
says nothing by itself ("옳은 것은?", "Which of the following is correct?") counts only with its options. Questions of one template on different facts
("... of 4p deletion?", "... of 5p deletion?") are not alike: a short stem must recur whole, or nearly so with
its options and its answer. A question inside a longer text is a leak, whichever of the two is trained on; a text that
states the fact it asks for ("유방암의 종양표지자는 CA 15-3이다.") is not: a short stem must stand there as a question, or with its
options. A judged pair of sentences is found as a pair, or as its two `sides`, wherever each of them is trained on.

What it does not do: find a judged text of which a small part alone was trained on, or a pair of which one side was.
"""

from __future__ import annotations

from collections.abc import Sequence

from medkor_jax.data.comparing import places_to_compare
from medkor_jax.data.leak_search import SIDES, Judged, Leak, Search, Trained  # noqa: F401  (this module is where others take them from)


def find_leaks(
    trained: Sequence[tuple[str, Sequence[Trained]]], judged: Sequence[tuple[str, Sequence[Judged]]]
) -> list[Leak]:
    """Returns the judged documents that are found in what is trained on, one Leak for each and each trained source.

    Both are lists of (source name, its documents). Trained sources are read once, in chunks.
    """
    search = Search(judged)
    for number, (source, documents) in enumerate(trained):
        search.read(number, source, documents, places_to_compare(search, documents))
    return search.leaks()


def unexcused(leaks: Sequence[Leak], allowed: Sequence[str]) -> list[Leak]:
    """Returns the leaks that `allowed` names neither by key nor by their pair of sources."""
    named = {" ".join(name.split()) for name in allowed}
    return [
        leak
        for leak in leaks
        if leak.key not in named and f"{leak.trained_source} ~ {leak.judged_source}" not in named
    ]
