"""Five-option questions from the fact table, and reasonings that lead to their answers.

    questions("valid", "en")[0].options      # the same facts, order and key as questions("valid", "ko")[0]

A draft fixes everything but the language: fact, direction, wording, options, key. Both languages are
rendered from the same drafts, so one is the exact translation of the other.

Three choices keep the exams honest. A training question takes its wrong options from training facts, so an
answer of the validation or test exam is not met in training as wrong; held-out questions take theirs from
held-out facts first, so a model cannot score by avoiding options it knows. Where facts share an answer, a
question for the subject reads the same for each of them, so its wordings are dealt out between the splits.
Keys come in shuffled blocks of A to E, so a constant letter scores chance.

A held-out fact is asked once a direction; in the wording "other", once more in other words, so that a model may be
chosen by questions that do not judge it later and are about the same facts.

What it does not do: ask about anything that the table does not state.
"""

from __future__ import annotations

import dataclasses
import functools
import random

from medkor_jax.data.embedded.table import (
    Fact,
    Template,
    check_name,
    facts,
    facts_of,
    fill,
    part_of,
    relations,
)
from medkor_jax.data.language import LANGUAGES
from medkor_jax.data.question import Question
from medkor_jax.data.rows import EMBEDDED

N_OPTIONS = 5  # of every question
WORDINGS = ("", "other", "both")
RATIONALES = ("rationale", "right")  # it states the fact of every option, or of the right one
_WAYS = {"both": ("", "other")}
_FRAMES: tuple[Template, ...] = (
    ("{others} {right} So the answer is {option}.", "{others} {right} 따라서 정답은 {option}이다."),
    (
        "Compare the options. {others} {right} The answer is therefore {option}.",
        "보기를 비교한다. {others} {right} 그러므로 정답은 {option}이다.",
    ),
    (
        "{right} The other options belong elsewhere. {others} The answer is {option}.",
        "{right} 나머지 보기는 다른 것에 해당한다. {others} 정답은 {option}이다.",
    ),
)
_BRIEF: Template = ("{right} The answer is {option}.", "{right} 정답은 {option}이다.")


@dataclasses.dataclass(frozen=True)
class _Draft:
    """A question before it is put into a language. `options` are the facts whose answers (or subjects) are offered."""

    id: str
    fact: Fact
    inverse: bool
    template: Template
    options: tuple[Fact, ...]
    key: int
    frame: Template


def questions(split: str, language: str, wording: str = "") -> list[Question]:
    """Returns the exam of a split; position, options and key do not depend on the language.

    split: also several, and of some relations: "valid+test/antidote,hormone" (`table.part_of`). wording: "" or "other",
    which asks the facts of a held-out split in other words, or "both".

    Raises: ValueError for an unknown split, relation, language or wording; training facts are asked in every wording at once.
    """
    drafts = _drafts_of(split, language, wording)
    return [_render(draft, language) for draft in drafts]


def reasonings(
    split: str, language: str, wording: str = "", rationale: str = "rationale"
) -> list[Question]:
    """Returns the same questions, each with a rationale that places every option, or ("right") states the right one's fact,
    and ends in the right one.

    The rationale names options by their text, never by letter.

    Raises: ValueError as `questions`, or for a rationale that is none of RATIONALES.
    """
    check_name("rationale", rationale, RATIONALES)
    drafts = _drafts_of(split, language, wording)
    return [_render(draft, language, rationale) for draft in drafts]


def _drafts_of(split: str, language: str, wording: str) -> tuple[_Draft, ...]:
    splits, chosen = part_of(split)
    check_name("language", language, LANGUAGES)
    check_name("wording (subset)", wording, WORDINGS)
    if wording and "train" in splits:
        raise ValueError(
            "training questions of the embedded exam come in every wording at once; "
            f"subset {wording!r} is of valid and test"
        )
    drawn = [_drafts(one, way) for one in splits for way in _WAYS.get(wording, (wording,))]
    drafts = [draft for one in drawn for draft in one if draft.fact.relation in chosen]
    if len(drawn) > 1:
        random.Random(f"embedded/{split}/{wording}/order").shuffle(drafts)
    return tuple(drafts)


@functools.cache
def _drafts(split: str, wording: str) -> tuple[_Draft, ...]:
    planned = [
        (fact, *form)
        for fact in facts()
        if fact.split == split
        for form in (_other_forms(fact) if wording else _forms(fact))
    ]
    drawn = f"{split}/{wording}" if wording else split
    keys = _balanced_keys(len(planned), drawn)
    drafts = []
    asked: dict[str, int] = {}
    before = 1 if wording else -1  # numbers go on behind those of the first wording
    for (fact, inverse, template), key in zip(planned, keys):
        number = asked[fact.id] = asked.get(fact.id, before) + 1
        name = f"embedded/{split}/{fact.id}/{number}"
        rng = random.Random(name)
        options = _wrong_options(fact, inverse, rng)
        options.insert(key, fact)
        drafts.append(
            _Draft(name, fact, inverse, template, tuple(options), key, rng.choice(_FRAMES))
        )
    random.Random(f"embedded/{drawn}/order").shuffle(
        drafts
    )  # any first part of an exam covers all relations
    return tuple(drafts)


def _forms(fact: Fact) -> list[tuple[bool, Template]]:
    """Returns (asks for the subject, template) of each question: every wording in training, else one a direction."""
    relation = relations()[fact.relation]
    forward = [(False, template) for template in relation.forward]
    inverse = [(True, template) for template in _inverse_templates(fact)]
    if fact.split == "train":
        return forward + inverse
    rng = random.Random(f"embedded/forms/{fact.id}")
    return [rng.choice(forward), rng.choice(inverse)]


def _other_forms(fact: Fact) -> list[tuple[bool, Template]]:
    """Returns a wording of each direction that `_forms` does not use; of a direction that has only one, none."""
    used = _forms(fact)
    every = [(False, t) for t in relations()[fact.relation].forward]
    every += [(True, t) for t in _inverse_templates(fact)]
    left = {form[0]: form for form in reversed(every) if form not in used}
    return [left[inverse] for inverse in sorted(left)]


def _inverse_templates(fact: Fact) -> tuple[Template, ...]:
    templates = relations()[fact.relation].inverse
    related = facts_of(fact.relation)
    if len({other.en[1] for other in related}) == len(related):
        return templates
    return {"train": templates[:-2], "valid": templates[-2:-1], "test": templates[-1:]}[fact.split]


def _wrong_options(fact: Fact, inverse: bool, rng: random.Random) -> list[Fact]:
    """Returns four facts of the relation whose answers (or, if `inverse`, subjects) are wrong for the question.

    Raises: ValueError if the table does not hold four.
    """
    related = facts_of(fact.relation)
    rng.shuffle(related)
    related.sort(
        key=lambda other: (other.split == "train") != (fact.split == "train")
    )  # stable: own side first
    chosen: list[Fact] = []
    for other in related:
        wrong = not other.allows(fact.en[1]) if inverse else not fact.allows(other.en[1])
        new = inverse or other.en[1] not in {earlier.en[1] for earlier in chosen}
        if wrong and new:
            chosen.append(other)
    if len(chosen) < N_OPTIONS - 1:
        raise ValueError(
            f"{fact.id} has {len(chosen)} wrong options; expected 4 or more: add facts to {fact.relation!r}"
        )
    chosen = chosen[: N_OPTIONS - 1]
    rng.shuffle(chosen)
    return chosen


def _balanced_keys(count: int, drawn: str) -> list[int]:
    rng = random.Random(f"embedded/{drawn}/keys")
    keys: list[int] = []
    while len(keys) < count:
        keys += rng.sample(range(N_OPTIONS), N_OPTIONS)
    return keys[:count]


def _render(draft: _Draft, language: str, rationale: str = "") -> Question:
    options = tuple(_option(fact, draft.inverse, language) for fact in draft.options)
    return Question(
        id=draft.id,
        exam=EMBEDDED,
        year=None,
        language=language,
        question=fill(draft.template, draft.fact, language),
        options=options,
        answer=draft.key,
        rationale=_rationale(draft, language, rationale) if rationale else "",
        fact=draft.fact.id,
    )


def _option(fact: Fact, inverse: bool, language: str) -> str:
    return fact.subject(language) if inverse else fact.answer(language)


def _rationale(draft: _Draft, language: str, kind: str) -> str:
    statement = relations()[draft.fact.relation].statements[0]
    others = " ".join(
        fill(statement, fact, language) for fact in draft.options if fact is not draft.fact
    )
    frame = draft.frame if kind == "rationale" else _BRIEF
    return frame[LANGUAGES.index(language)].format(
        others=others,
        right=fill(statement, draft.fact, language),
        option=_option(draft.fact, draft.inverse, language),
    )
