"""Plain texts that state the facts, and the same sentences as translation pairs.

    texts("en")[0]      # ("embedded/en/antidote/acetaminophen/0", "The antidote for acetaminophen is ...")

Every fact is stated in several wordings and in both directions (from subject to answer and back), with
subject and answer spelled as the exam spells them, so that what is read can be asked. What it does not do:
ask questions; a text never looks like one.
"""

from __future__ import annotations

import random

from medkor_jax.data.embedded.table import (
    Fact,
    check_name,
    facts,
    facts_of,
    fill,
    part_of,
    relations,
)
from medkor_jax.data.language import LANGUAGES

FACTS_PER_PARAGRAPH = 4


def texts(language: str, split: str = "all") -> list[tuple[str, str]]:
    """Returns (id, text): each statement of each fact, then paragraphs of facts of one relation.

    `split` "all" states every fact; the name of a split only its own; "valid+test/antidote,hormone" (`table.part_of`) those
    of some splits and relations.

    Raises: ValueError for an unknown split, relation or language.
    """
    check_name("language", language, LANGUAGES)
    told = _told(split)
    sentences = [(f"embedded/{language}/{name}", text) for name, text in _sentences(told, language)]
    return sentences + _paragraphs(language, split)


def pairs(split: str = "all") -> list[tuple[str, str, str]]:
    """Returns (id, English, Korean) for each statement of each fact.

    `split` "all" gives every fact; the name of a split only its own, so that pairs about facts that no other
    split states can judge.

    Raises: ValueError for an unknown split.
    """
    told = _told(split)
    english, korean = (_sentences(told, language) for language in LANGUAGES)
    return [(f"embedded/pair/{name}", en, ko) for (name, en), (_, ko) in zip(english, korean)]


def _told(split: str) -> list[Fact]:
    splits, chosen = part_of(split)
    return [fact for fact in facts() if fact.split in splits and fact.relation in chosen]


def _sentences(told: list[Fact] | tuple[Fact, ...], language: str) -> list[tuple[str, str]]:
    return [
        (f"{fact.id}/{number}", fill(template, fact, language))
        for fact in told
        for number, template in enumerate(relations()[fact.relation].statements)
    ]


def _paragraphs(language: str, split: str) -> list[tuple[str, str]]:
    """Returns paragraphs: the first statement (subject first) or the last (answer first) of some facts, titled."""
    paragraphs = []
    splits, chosen = part_of(split)
    for name, relation in relations().items():
        if name not in chosen:
            continue
        told = [fact for fact in facts_of(name) if fact.split in splits]
        title = relation.title[LANGUAGES.index(language)]
        for direction, template in (
            ("forward", relation.statements[0]),
            ("inverse", relation.statements[-1]),
        ):
            random.Random(f"embedded/paragraphs/{name}/{direction}").shuffle(told)
            for start in range(0, len(told), FACTS_PER_PARAGRAPH):
                sentences = [
                    fill(template, fact, language)
                    for fact in told[start : start + FACTS_PER_PARAGRAPH]
                ]
                number = start // FACTS_PER_PARAGRAPH
                paragraphs.append(
                    (
                        f"embedded/{language}/{name}/{split}/{direction}/{number}",
                        " ".join([title, *sentences]),
                    )
                )
    return paragraphs
