import dataclasses
import random

import numpy as np
import pytest

from medkor_jax.data import embedded
from medkor_jax.data.leak_search import Search
from medkor_jax.data.likeness import (
    QUESTION_CANDIDATE,
    TEXT_CANDIDATE,
    form_of,
    letters,
    match,
    normalise,
)
from medkor_jax.data.question import Question, prompt
from medkor_jax.data.rows import Example
from medkor_jax.data.shingles import SHINGLE, Index
from medkor_jax.data.sieve import Block, Sieve, _keys_of, _Letters, rules_of

ODD = [
    "", "?", "_", "a", "네.", "Ａ_b-１ 가.", "İstanbul STRASSE ß", "ﬁbrosis", "e\u0301é", "\u1112\u1161\u11ab글", "18 µg/kg ≥ 38.5 °C", "①②",
    "🩺 x", "a\0b\0c defgh", "Sjögren’s – “quoted”", "ΑΣ ΣΑΣ", "ǅ ŉ ΐ", "x" * 3000, "\u2126 \u212a 金",
]  # fmt: skip


def text(words, name="t", language="ko"):
    return Example(name, ((words, True),), language, splittable=True)


def test_letters_are_those_of_the_normalised_texts():
    examples = [
        text(words)
        for words in [
            *ODD,
            *(t for _, t in embedded.texts("ko")),
            *(t for _, t in embedded.texts("en")),
        ]
    ]
    examples.insert(
        3, Example("p", (("He has", False), ("\u0301 a fever", True)), "en", True)
    )  # parts are read as one text
    found = _Letters.of(Block.of(examples))
    assert sorted(found.places) == list(range(len(examples)))
    for at, place in enumerate(found.places):
        expected = normalise("".join(part for part, _ in examples[place].parts))
        ours = found.letters[found.ends[at] : found.ends[at + 1]]
        assert "".join(map(chr, ours)) == expected
        assert found.sizes[place] == letters(expected)


def test_equal_runs_have_equal_keys_and_others_hardly_ever():
    words = normalise(" ".join(t for _, t in embedded.texts("en")))
    keys = _keys_of(np.frombuffer(words.encode("utf-32-le"), np.uint32))
    runs = [words[i : i + SHINGLE] for i in range(len(words) - SHINGLE + 1)]
    by_run = dict(zip(runs, keys))
    assert (
        all(by_run[run] == key for run, key in zip(runs, keys))
        and len(set(by_run.values())) >= len(by_run) - 2
    )


def edited(rng, words, n):
    """The text with n letters changed, spaces lost, or put inside another."""
    found = list(words)
    for _ in range(n):
        found[rng.randrange(len(found))] = rng.choice("xyz가나 ")
    kind = rng.randrange(3)
    return (
        "".join(found).replace(" ", "")
        if kind == 0
        else f"앞의 말. {''.join(found)} Behind it."
        if kind == 1
        else "".join(found)
    )


@pytest.mark.parametrize("language", ["ko", "en"])
def test_whatever_matches_passes(language):
    """Judged questions, texts and short ones; texts made of them with ever more changes, to both sides of the bound."""
    rng = random.Random(0)
    questions = embedded.questions("train", language)[:60]
    says_nothing = [
        dataclasses.replace(
            one, id=f"n{i}", question="옳은 것은?" if i % 2 else "Which is correct?"
        )
        for i, one in enumerate(questions[:10])
    ]
    short = [
        dataclasses.replace(one, id=f"s{i}", question="왜?") for i, one in enumerate(questions[:5])
    ]
    watched = [text(t, f"w{i}") for i, (_, t) in enumerate(embedded.texts(language)[:30])]
    judged = [*questions, *says_nothing, *short, *watched, text("네."), text("Why not")]
    forms = [form_of("j", one) for one in judged]
    texts = []
    for one in judged:
        words = (
            (prompt(one) if rng.random() < 0.5 else one.question)
            if isinstance(one, Question)
            else one.parts[0][0]
        )
        texts += [
            text(edited(rng, words, n))
            for n in (0, 1, 2, 3, 5, 8, max(1, len(words) // 50), max(1, len(words) // 20))
        ]
    texts += [text(words) for words in ODD]
    shares = [QUESTION_CANDIDATE if form.is_question else TEXT_CANDIDATE for form in forms]
    passed, _ = Sieve(list(map(rules_of, forms, shares)), Block.of(texts[::9])).pass_through(
        Block.of(texts)
    )
    index = Index([form.telling_runs for form in forms], shares)
    ours = [form_of("t", one) for one in texts]
    holds = {
        o for o, t in index.candidates([form.all_runs for form in ours]) if match(ours[o], forms[t])
    }
    assert holds <= set(passed.tolist()) and len(holds) > 150


def test_most_texts_that_hold_nothing_do_not_pass():
    questions = [
        question for language in ("ko", "en") for question in embedded.questions("valid", language)
    ]
    texts = [text(t) for language in ("ko", "en") for _, t in embedded.texts(language, "train")]
    rng = random.Random(1)
    mixed = [text(" ".join(rng.choice(texts).parts[0][0] for _ in range(12))) for _ in range(400)]
    sieve = Search([("valid", questions)]).sieve(Block.of(mixed[:100]))
    passed, _ = sieve.pass_through(Block.of(mixed))
    assert len(passed) < 0.1 * len(mixed)


def test_nothing_judged_and_nothing_trained():
    assert Sieve([], Block.of([])).pass_through(Block.of([text("abcdef"), text("ab")]))[
        0
    ].tolist() == [1]  # a run filled up
    judged = rules_of(form_of("j", text("something that is judged")), TEXT_CANDIDATE)
    assert Sieve([judged], Block.of([])).pass_through(Block.of([]))[0].tolist() == []
