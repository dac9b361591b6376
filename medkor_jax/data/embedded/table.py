"""The fact table as values, and how a fact is put into words.

    fact = facts()[0]                                     # antidote/acetaminophen
    fill(relations()["antidote"].statements[0], fact, "ko")   # "아세트아미노펜의 해독제는 아세틸시스테인이다."

A relation is a kind of fact (antidote, pathogen, ...). Its facts draw on one pool of answers, so the answers
of the others are plausible wrong options. Where another answer of the pool is also true, or arguable, the
fact names it in `also`, and it is never offered as wrong. What it does not do: hold two right answers.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re

from medkor_jax.data.embedded.particles import settle_particles
from medkor_jax.data.language import LANGUAGES

SPLITS = ("train", "valid", "test")

Template = tuple[str, str]  # English, Korean; {s} is the subject and {a} the answer


@dataclasses.dataclass(frozen=True)
class Fact:
    """One fact. `en` and `ko` are (subject, answer); `also` holds English answers that are true of it too."""

    id: str
    split: str
    en: tuple[str, str]
    ko: tuple[str, str]
    also: frozenset[str] = frozenset()

    @property
    def relation(self) -> str:
        return self.id.split("/")[0]

    def subject(self, language: str) -> str:
        return getattr(self, language)[0]

    def answer(self, language: str) -> str:
        return getattr(self, language)[1]

    def allows(self, answer: str) -> bool:
        """Returns whether the English `answer` is a right, or arguable, answer for this subject."""
        return answer == self.en[1] or answer in self.also


@dataclasses.dataclass(frozen=True)
class Relation:
    """How a kind of fact is worded: statements, questions for the answer, questions for the subject."""

    title: Template
    statements: tuple[Template, ...]
    forward: tuple[Template, ...]
    inverse: tuple[Template, ...]


@functools.cache
def facts() -> tuple[Fact, ...]:
    """Returns the table in file order, the facts of a relation together."""
    rows = [json.loads(line) for line in _read("facts.jsonl").splitlines()]
    return tuple(
        Fact(
            row["id"],
            row["split"],
            tuple(row["en"]),
            tuple(row["ko"]),
            frozenset(row.get("also", ())),
        )
        for row in rows
    )


@functools.cache
def relations() -> dict[str, Relation]:
    """Returns the relations by name, in file order."""
    return {
        name: Relation(
            tuple(row["title"]),
            *(tuple(map(tuple, row[kind])) for kind in ("statements", "forward", "inverse")),
        )
        for name, row in json.loads(_read("relations.json")).items()
    }


def part_of(said: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (splits, relations) that `said` names: "all", "valid", "valid+test", "valid+test/antidote,hormone".

    Raises: ValueError for one that is not there.
    """
    named, _, only = said.partition("/")
    splits = SPLITS if named == "all" else tuple(dict.fromkeys(named.split("+")))
    for split in splits:
        check_name("split", split, SPLITS)
    chosen = tuple(only.split(",")) if only else tuple(relations())
    for name in chosen:
        check_name("relation", name, tuple(relations()))
    return splits, chosen


def facts_of(relation: str) -> list[Fact]:
    """Returns the facts of one relation, in file order."""
    return [fact for fact in facts() if fact.relation == relation]


def fill(template: Template, fact: Fact, language: str) -> str:
    """Returns the template in words: Korean with its particles chosen, English beginning with a capital.

    A first word that is a symbol, like t(9;22), keeps its case.
    """
    text = template[LANGUAGES.index(language)].format(
        s=fact.subject(language), a=fact.answer(language)
    )
    if language == "ko":
        return settle_particles(text)
    return text[0].upper() + text[1:] if re.match("[a-z]{2}", text) else text


def check_name(kind: str, name: str, known: tuple[str, ...]) -> None:
    """Raises: ValueError if `name` is not among the `known` ones of its `kind`."""
    if name not in known:
        raise ValueError(
            f"the embedded exam has no {kind} {name!r}; expected one of {', '.join(known)}"
        )


def _read(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
