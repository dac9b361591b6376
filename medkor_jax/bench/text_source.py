"""A large text source that is made up: what the start of a run is measured with.

    python -m medkor_jax.bench.text_source /tmp/su/text.jsonl --megabytes 2000        # beside it: text.exam.jsonl

Rows of 1 to 4 kB: paragraphs of made-up medical English and of sentences of the embedded texts, a tenth of them with Korean,
a fifth with characters that are not ASCII (18 µg, 38 °C, a dash). The exam has 300 questions of the same words, vignettes and
short ones. The seed decides every byte, whatever the size: a larger source begins with the smaller one. It teaches nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import random
import re
from collections.abc import Iterator

from medkor_jax.data import embedded

ROWS_A_POOL = 20_000  # about 50 MB; then new phrases are made
_PHRASES = 60_000
_COMMON = (
    "the of and in to a is with for was patients patient disease treatment clinical diagnosis symptoms history blood pressure "
    "normal increased decreased associated by on or from are that may after during usually often which this at be as an were "
    "chronic acute severe mild common rare risk factors therapy dose daily oral intravenous days weeks months years old man woman "
    "child presents physical examination shows laboratory studies level elevated low high reveals imaging"
).split()
_ROOTS = (
    "card hepat nephr gastr neur derm hem oste myel pulmon encephal thyr pancreat splen cyst col enter rhin ot ophthalm arthr "
    "angi aden lip glyc immun bacter vir myc onc tox pharmac cyt hist ureter prostat mast chol phleb arter ven lymph"
).split()
_BEFORE = (
    "a an anti auto bi brady contra dys ecto endo epi hyper hypo inter intra macro micro para peri poly post pre pseudo sub "
    "tachy"
).split()
_AFTER = (
    "itis osis oma emia uria pathy ectomy ostomy oscopy algia plasty genic logic lysis megaly penia plegia rrhea sclerosis "
    "trophy ia ic al"
).split()
_SIGNS = (
    "18 µg/kg",
    "38.5 °C",
    "≥ 140/90 mmHg",
    "5–10 mg",
    "β-blocker",
    "the patient’s",
    "α₁-antitrypsin",
    "Sjögren",
    "Guillain–Barré",
    "ﬁbrosis",
)


def rows(seed: int = 0) -> Iterator[str]:
    """Yields texts without end."""
    english, korean = (
        [
            said
            for _, text in embedded.texts(code, "train")
            for said in re.split(r"(?<=[.다])\s+", text)
        ]
        for code in ("en", "ko")
    )
    for pool in itertools.count():
        rng = random.Random(f"{seed} {pool}")
        phrases = _phrases(rng)
        for _ in range(ROWS_A_POOL):
            yield _row(rng, phrases, english, korean)


def questions(n: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yields exam rows: two of three a vignette, the others one short sentence."""
    rng = random.Random(f"{seed} exam")
    phrases = _phrases(rng)
    for i in range(n):
        length = rng.randint(5, 14) if i % 3 else 1
        said = _sentence(rng, phrases, length)
        if i % 3:
            said += f" Temperature is {rng.randint(360, 410) / 10} and pulse {rng.randint(50, 140)}/min."
        options = [" ".join(rng.choice(phrases).split()[:3]) for _ in range(5)]
        asked = f"{said} Which of these is meant?"
        yield {
            "id": f"q{i}",
            "question": asked,
            **dict(zip("ABCDE", options)),
            "answer": rng.choice("ABCDE"),
        }


def write(
    path: pathlib.Path, megabytes: float, seed: int = 0, n_questions: int = 300
) -> pathlib.Path:
    """Writes the source, at least of that size, and returns the path of the exam beside it."""
    written, limit = 0, megabytes * 1e6
    with path.open("wb") as file:
        for text in rows(seed):
            line = json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
            written += file.write(line)
            if written >= limit:
                break
    exam = path.with_suffix(".exam.jsonl")
    exam.write_text(
        "".join(json.dumps(row) + "\n" for row in questions(n_questions, seed)), "utf-8"
    )
    return exam


def _row(rng: random.Random, phrases: list[str], english: list[str], korean: list[str]) -> str:
    said = [_sentence(rng, phrases, rng.randint(2, 4)) for _ in range(rng.randint(12, 40))]
    said[rng.randrange(len(said))] = rng.choice(english)
    if rng.random() < 0.1:
        said += rng.sample(korean, 3)
    if rng.random() < 0.2:
        said += [f"Given {sign} it resolved." for sign in rng.sample(_SIGNS, 2)]
    if rng.random() < 0.5:
        said[0] = said[0].removesuffix(".") + "?"
    rng.shuffle(said)
    return "\n".join(" ".join(said[at : at + 6]) for at in range(0, len(said), 6))


def _sentence(rng: random.Random, phrases: list[str], n_phrases: int) -> str:
    said = " ".join(phrases[int(rng.random() * len(phrases))] for _ in range(n_phrases))
    return f"{said[0].upper()}{said[1:]}."


def _phrases(rng: random.Random) -> list[str]:
    terms = [
        rng.choice(_BEFORE) * (rng.random() < 0.4)
        + rng.choice(_ROOTS)
        + "o" * (rng.random() < 0.3)
        + rng.choice(_AFTER)
        for _ in range(6000)
    ]
    ranks = [1 / (rank + 8) for rank in range(len(_COMMON))]
    made = []
    for _ in range(_PHRASES):
        words = rng.choices(_COMMON, ranks, k=rng.randint(3, 6))
        words[rng.randrange(len(words))] = rng.choice(terms)
        if rng.random() < 0.15:
            words.append(str(rng.randint(1, 400)))
        made.append(" ".join(words))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m medkor_jax.bench.text_source", description=__doc__.splitlines()[0]
    )
    parser.add_argument("path", type=pathlib.Path)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    exam = write(asked.path, asked.megabytes, asked.seed)
    print(f"{asked.path}: {asked.path.stat().st_size:,} bytes; {exam}: 300 questions")


if __name__ == "__main__":
    main()
