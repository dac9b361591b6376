"""What is judged among very many texts: sieved, side by side and kept, it is what comparing everything finds."""

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

from medkor_jax.data import comparing, converting, embedded, sources
from medkor_jax.data.contents import cache_directory
from medkor_jax.data.leak_search import Search
from medkor_jax.data.leakage import find_leaks
from medkor_jax.data.pairs import Pair
from medkor_jax.data.question import Question, prompt
from medkor_jax.data.rows import Example, Source
from medkor_jax.data.sources import load_examples
from medkor_jax.data.translation_leaks import Translations, marks_of

ASKED = Question(
    "asked", "e", None, "ko",
    "45세 남자가 Metformin 850 mg, Empagliflozin 25 mg, NT-proBNP 1250, BUN 45, pH 7.25에서 입원하였다. 진단은?", ("가", "나"), 0,
)  # fmt: skip
SAID = "A 45-year-old man on Metformin 850 mg and Empagliflozin 25 mg: NT-proBNP 1250, BUN 45, pH 7.25. What is it?"


def judged():
    questions = [q for language in ("ko", "en") for q in embedded.questions("valid", language)[:40]]
    pairs = [Pair(f"p{i}", one.en, one.ko) for i, one in enumerate(embedded_pairs("test")[:30])]
    watched = [
        Example(f"w{i}", ((t, True),), "ko", True)
        for i, (_, t) in enumerate(embedded.texts("ko", "test")[:20])
    ]
    return [("exam", questions), ("mine", [ASKED]), ("pairs", pairs), ("watch", watched)]


def embedded_pairs(split):
    return [Pair(*one) for one in embedded.pairs(split)]


def trained(n=1500):
    """Texts of embedded sentences, in one of eight of which something is planted, changed or whole."""
    rng = random.Random(0)
    sentences = [t for language in ("ko", "en") for _, t in embedded.texts(language, "train")]
    found = []
    for i in range(n):
        said = [" ".join(rng.choice(sentences).split()[:9]) for _ in range(rng.randint(3, 9))]
        language = rng.choice(("ko", "en"))
        if i % 8 == 0:
            _, documents = judged()[rng.randrange(4)]
            one = rng.choice(documents)
            words = (
                rng.choice((prompt(one), one.question)) if isinstance(one, Question)
                else rng.choice((one.en, one.ko, f"{one.en} {one.ko}")) if isinstance(one, Pair) else one.parts[0][0]
            )  # fmt: skip
            if one is ASKED:
                said, language = [], "en"
                words = SAID + " word" * rng.choice((0, 90))
            if rng.random() < 0.5:
                words = words.replace(rng.choice(words.split()), "바뀐", 1)
            said.insert(len(said) // 2, words)
        found.append(Example(f"s/{i}", (("\n".join(said), True),), language, True))
    return found


def compared_whole(sources_, judged_):
    search = Search(judged_)
    for number, (name, documents) in enumerate(sources_):
        search.read(number, name, documents)
    return search.leaks()


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """stored(examples): the same documents, lying on disk, to be compared by two processes in many parts."""
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDKOR_WORKERS", "2")
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(converting, "PART_BYTES", 2**16)
    monkeypatch.setattr(comparing, "_TASK_BYTES", 2**17)

    def store(examples, name="a.jsonl"):
        rows = [
            {"content" if example.language == "ko" else "text": example.parts[0][0]}
            for example in examples
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return load_examples(Source("s", "text", str(tmp_path / name)), drop_bad=True).rows

    return store


def kinds(leaks):
    return {(leak.kind, leak.which) for leak in leaks}


def test_middling_sources_are_sieved_and_give_the_same_leaks():
    ours = [
        ("few", trained(200)),
        ("many", trained()),
        ("asked", embedded.questions("valid", "en")[:5]),
    ]
    assert (
        comparing.places_to_compare(Search(judged()), ours[0][1])
        is None
        is comparing.places_to_compare(Search(judged()), ours[2][1])
    )
    places = comparing.places_to_compare(Search(judged()), ours[1][1])
    assert len(places) < 0.5 * len(ours[1][1])
    leaks = find_leaks(ours, judged())
    assert leaks == compared_whole(ours, judged()) and len(leaks) > 60
    assert kinds(leaks) >= {
        ("exact", "whole"),
        ("exact", "stem"),
        ("exact", "sides"),
        ("exact", "text"),
        ("translated", "marks"),
    }


def test_stored_sources_give_the_same_leaks_and_are_compared_once(stored, monkeypatch):
    rows = stored(trained())
    leaks = find_leaks([("s", rows)], judged())
    assert leaks == compared_whole([("s", list(rows))], judged()) and len(leaks) > 30
    monkeypatch.setattr(comparing.workers, "run_all", lambda *_: pytest.fail("compared again"))
    assert find_leaks([("s", rows)], judged()) == leaks
    assert [leak.trained_source for leak in find_leaks([("other", rows)], judged())] == [
        "other"
    ] * len(leaks)


def test_a_judged_source_may_be_stored_too(stored):
    watched = [
        Example(f"w/{i}", ((text, True),), "ko", True)
        for i, (_, text) in enumerate(embedded.texts("ko", "test"))
    ]
    rows, judged_rows = stored(trained(400)), stored(watched, "w.jsonl")
    leaks = find_leaks([("s", rows)], [("watch", judged_rows), *judged()])
    assert (
        leaks == compared_whole([("s", list(rows))], [("watch", list(judged_rows)), *judged()])
        and leaks[0].judged_source == "watch"
    )
    shorter = find_leaks([("s", rows)], [("watch", stored(watched[:2], "w.jsonl")), *judged()])
    assert len(shorter) < len(leaks)


def test_what_changes_on_either_side_is_compared_again(stored, monkeypatch):
    examples, exam = trained(300), judged()
    asked = "Which of the cranial nerves carries taste from the front of the tongue?"
    examples[7] = Example("s/7", ((f"Taste. {asked} Think.", True),), "en", True)
    find_leaks([("s", stored(examples))], exam)
    changed = [
        ("exam", [dataclasses.replace(exam[0][1][0], question=asked), *exam[0][1][1:]]),
        *exam[1:],
    ]
    rows = stored(examples)
    assert find_leaks([("s", rows)], changed) == compared_whole([("s", list(rows))], changed)
    assert any(leak.trained_id == "s/7" for leak in find_leaks([("s", rows)], changed))
    assert not any(leak.trained_id == "s/7" for leak in find_leaks([("s", rows)], exam))
    examples[11] = Example("s/11", ((exam[0][1][3].question, True),), "en", True)
    assert any(leak.trained_id == "s/11" for leak in find_leaks([("s", stored(examples))], exam))
    places = len([*(cache_directory() / "compared").glob("*/places.npy")])
    assert places == 3
    monkeypatch.setattr(comparing, "key_of", lambda *parts: "other-code")
    find_leaks([("s", stored(examples))], exam)
    assert len([*(cache_directory() / "compared").glob("*/places.npy")]) == places + 1


def test_damage_is_found_before_it_is_compared(stored):
    rows = stored(trained(300))
    expected = compared_whole([("s", list(rows))], judged())
    path = rows.directory / "0000.texts"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    assert find_leaks([("s", rows)], judged()) == expected
    (place,) = (cache_directory() / "compared").glob("*/places.npy")
    place.write_bytes(place.read_bytes()[:-1])
    assert find_leaks([("s", rows)], judged()) == expected


def test_marks_by_arrays_are_marks_one_by_one():
    """Against the definition in the module's words, computed plainly."""
    from medkor_jax.data import translation_leaks as t

    rng = random.Random(0)
    asked = [
        ASKED,
        *embedded.questions("valid", "ko")[:20],
        *embedded.questions("valid", "en")[:20],
    ]
    sizes = [rng.randint(30, 200) for _ in asked]
    terms = [
        "Metformin",
        "Empagliflozin",
        "NT",
        "proBNP",
        "BUN",
        "pH",
        "mg",
        "850",
        "25",
        "1250",
        "45",
        "7.25",
        "3",
        "1",
        "CT",
        "MRI",
    ]
    texts = [
        Example(f"{i}", ((" ".join(rng.sample(terms, rng.randint(8, len(terms)))) + "?", True),), rng.choice(("ko", "en", "en")), True)
        for i in range(600)
    ]  # fmt: skip
    weigh = lambda marks: sum(map(t.weight_of, marks))
    expected = set()
    lengths = [rng.randint(20, 500) for _ in texts]
    for i, (one, length) in enumerate(zip(texts, lengths)):
        for owner, (question, size) in enumerate(zip(asked, sizes)):
            if question.language == one.language:
                continue
            ours, theirs = marks_of(one, length), marks_of(question, size)
            korean, english = (ours, theirs) if one.language == "ko" else (theirs, ours)
            both = weigh(korean.numbers & english.numbers) + weigh(korean.terms & english.terms)
            rare = sum(
                w
                for w in map(
                    t.weight_of, (ours.numbers & theirs.numbers) | (ours.terms & theirs.terms)
                )
                if w >= 2
            )
            whole = weigh(korean.numbers | english.numbers) + weigh(korean.terms)
            is_long = t.SIZES[0] <= english.size / korean.size <= t.SIZES[1]
            if (
                is_long
                and rare >= t.WEIGHT_OF_TEXT / 2
                and both >= t.WEIGHT_OF_TEXT
                and both / whole >= t.SHARE_OF_TEXT
            ):
                expected.add((i, owner, "marks", both / whole))
    found = Translations(
        [(owner, question, size) for owner, (question, size) in enumerate(zip(asked, sizes))]
    )
    assert set(found.find(texts, lengths)) == expected and len(expected) > 5
    near = found.near(
        np.array(lengths), np.array([("en", "ko").index(one.language) for one in texts])
    )
    assert {i for i, *_ in expected} <= set(near.tolist())


MEMORY = """
import json, pathlib, re, sys
from medkor_jax.data.leakage import find_leaks
from medkor_jax.data.rows import Source
from medkor_jax.data.sources import load_examples, load_questions
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
source, exam = sys.argv[1:]
questions = load_questions(Source("exam", "exam", exam), drop_bad=False).rows
before = peak()
rows = load_examples(Source("t", "text", source), drop_bad=False).rows
leaks = find_leaks([("t", rows)], [("exam", questions)])
total = sum(len(row.parts[0][0]) for row in rows)
print(json.dumps({"grown": peak() - before, "letters": total, "leaks": len(leaks), "rows": len(rows)}))
"""


def test_memory_does_not_grow_with_the_source(tmp_path):
    """What 36 MB more of text cost: a hundredth as numbers, and a part of it while it is read; as objects they would be more than 36."""
    from medkor_jax.bench.text_source import write

    grown, size = [], []
    root = str(pathlib.Path(converting.__file__).parents[2])
    environment = os.environ | {
        "MEDKOR_CACHE": str(tmp_path / "cache"),
        "MEDKOR_WORKERS": "1",
        "PYTHONPATH": root,
    }
    for megabytes in (12, 48):
        path = tmp_path / f"{megabytes}.jsonl"
        exam = write(path, megabytes, n_questions=40)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(path), str(exam)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["letters"] > 0.9 * path.stat().st_size
        grown.append(said["grown"])
        size.append(path.stat().st_size)
    assert grown[1] - grown[0] < 0.3 * (size[1] - size[0]), (grown, size)
