"""Which of very many texts can hold anything that is judged, so that the others need not be compared.

    sieve = Sieve([rules_of(form, share) for form in judged], Block.of(examples[::100]))
    sieve.pass_through(Block.of(examples))          # places in the block; `leak_search` compares those

Everything that `likeness.match` finds in a text shares with it, of the n runs of letters of its stem, all of them or the share
NEAR_CONTAINED. So of any n - need + k of those runs at least k are there, and the k and the runs can be chosen: the rarest ones,
as a sample of the texts has them. That is looked for in all texts at once, by arithmetic on their letters. What passes may still
hold nothing; what does not pass holds nothing (a test compares it with the comparison of everything). A few forms that this says
nothing of are looked for by the runs that `shingles.Index` samples, which is what makes a candidate there.

It decides nothing: not what is alike, and not what a leak is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from medkor_jax.data.language import HANGUL_RANGES, LANGUAGES
from medkor_jax.data.likeness import NEAR_CONTAINED, NEAR_MIN_RUNS, Form
from medkor_jax.data.rows import Example
from medkor_jax.data.shingles import SHINGLE, hashed_runs, sampled_runs

SAMPLE = 512  # texts that tell which runs are rare
_TABLE_BITS = 21
_MOST_BY_CHANCE = (
    1e-4  # of all texts, for one form that is sought: as few may pass that hold nothing of it
)
_FACTORS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1], np.uint32)


@dataclasses.dataclass(frozen=True)
class Block:
    """Texts, end to end in UTF-8. ends: [n + 1], where each begins and the last one ends. languages: [n], places in LANGUAGES."""

    raw: bytes
    ends: np.ndarray
    languages: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Block:
        texts = ["".join(text for text, _ in example.parts).encode() for example in examples]
        languages = np.array([LANGUAGES.index(example.language) for example in examples], np.uint8)
        return cls(b"".join(texts), np.cumsum([0, *map(len, texts)]), languages)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a text that holds the form has: at least `need` of the runs with these keys. keys: distinct uint32."""

    keys: np.ndarray
    need: int


class Sieve:
    """Forms that are sought in texts, by the rules of each (`rules_of`). sample: some of the texts, which tell what is rare."""

    def __init__(self, rules: Sequence[Sequence[Rule]], sample: Block) -> None:
        known = np.unique(
            np.concatenate(
                [rule.keys for of_form in rules for rule in of_form] or [np.zeros(0, np.uint32)]
            )
        )
        shares = self._shares(known, sample)
        owners, runs = [], []
        self._least: Any = []
        for of_form in rules:
            if of_form:
                choices = [
                    _choose(rule, shares[np.searchsorted(known, rule.keys)]) for rule in of_form
                ]
                _, chosen, least = min(choices, key=lambda one: one[0])
                runs.append(chosen)
                owners.append(np.full(len(chosen), len(self._least)))
                self._least.append(least)
        self._look_for(
            np.concatenate(runs or [known]), np.concatenate(owners or [known]).astype(np.int64)
        )

    def pass_through(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Returns the places of the texts that may hold something, and the size of every text (`likeness.letters`)."""
        texts = _Letters.of(block)
        passed = np.zeros(len(texts.places), np.bool_)
        passed[texts.places[np.diff(texts.ends) < SHINGLE]] = True  # these are one run, filled up
        if self._least:
            doc, run = self._hits(texts)
            starts, counts = self._starts[run], self._starts[run + 1] - self._starts[run]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            pairs = (
                np.repeat(doc, counts) * len(self._least)
                + self._owners[np.repeat(starts, counts) + within]
            )
            found, times = np.unique(pairs, return_counts=True)
            enough = found[times >= np.array(self._least)[found % len(self._least)]]
            passed[enough // len(self._least)] = True
        return np.flatnonzero(passed), texts.sizes

    def _look_for(self, keys: np.ndarray, owners: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, starts = np.unique(keys[order], return_index=True)
        self._starts, self._owners = np.append(starts, len(keys)), owners[order]
        self._table = np.zeros(2**_TABLE_BITS, np.bool_)
        self._table[self._keys >> np.uint32(32 - _TABLE_BITS)] = True

    def _hits(self, texts: _Letters) -> tuple[np.ndarray, np.ndarray]:
        """Returns (text, place in `_keys`) of every run that is looked for, each once for a text."""
        keys = _keys_of(texts.letters)
        at = np.flatnonzero(self._table[keys >> np.uint32(32 - _TABLE_BITS)])
        run = np.minimum(np.searchsorted(self._keys, keys[at]), len(self._keys) - 1)
        doc = np.searchsorted(texts.ends, at, side="right") - 1
        is_one = (self._keys[run] == keys[at]) & (at + SHINGLE <= texts.ends[doc + 1])
        pairs = np.sort(texts.places[doc[is_one]] * len(self._keys) + run[is_one])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        return pairs // len(self._keys), pairs % len(self._keys)

    def _shares(self, known: np.ndarray, sample: Block) -> np.ndarray:
        """Returns in which share of the sample each run is."""
        if not len(known):
            return np.zeros(0)
        self._look_for(known, np.zeros(len(known), np.int64))
        _, run = self._hits(_Letters.of(sample))
        n = len(sample.ends) - 1
        return (np.bincount(run, minlength=len(known)) + 0.5) / (n + 1)


def rules_of(form: Form, least_share: float) -> list[Rule]:
    """Returns what a text has that `likeness.match` finds the form in, each rule by itself; [] if only a text of one run has it.

    least_share: of its sampled runs, which makes a candidate (`shingles.Index`).
    """
    rules = []
    n = len(form.runs)
    if len(form.stem) >= SHINGLE:
        need = (
            n
            if n < NEAR_MIN_RUNS
            else next(
                m for m in range(int(NEAR_CONTAINED * n) - 1, n + 1) if m / n >= NEAR_CONTAINED
            )
        )
        rules.append(_rule(form.stem, form.runs, need))
    whole = form.stem + "".join(form.options)
    if form.telling_runs is form.whole_runs and len(whole) >= SHINGLE:
        sample = sampled_runs(form.telling_runs)
        rules.append(_rule(whole, sample, math.ceil(len(sample) * least_share)))
    return rules


def _rule(text: str, runs: np.ndarray, need: int) -> Rule:
    """Returns the rule that `need` of these runs of the text are there."""
    keys = _keys_of(np.frombuffer(text.encode("utf-32-le"), np.uint32))[
        np.isin(hashed_runs(text), runs)
    ]
    keys = np.unique(keys)
    return Rule(keys, need - (len(runs) - len(keys)))  # two runs of one key count once


def _choose(rule: Rule, shares: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Returns (share of texts that pass by chance, the runs to look for, how many of them must be there): few and rare ones."""
    order = np.argsort(shares, kind="stable")
    keys, expected = rule.keys[order], np.cumsum(shares[order])
    chance = 1.0
    for k in range(1, rule.need + 1):
        count = len(keys) - rule.need + k
        chance = _poisson_tail(float(expected[count - 1]), k)
        if chance <= _MOST_BY_CHANCE:
            break
    return chance, keys[:count], k


def _poisson_tail(mean: float, k: int) -> float:
    """Returns how likely k or more events are."""
    term = total = math.exp(-mean)
    for i in range(1, k):
        term *= mean / i
        total += term
    return 1.0 - total


@dataclasses.dataclass(frozen=True)
class _Letters:
    """The normalised texts (`likeness.normalise`), end to end in an order of their own.

    letters: code points; ends: [n + 1]; places: [n], which text of the block each one is; sizes: [n], of the block's texts in
    their own order, in letters, a syllable counts two.
    """

    letters: np.ndarray
    ends: np.ndarray
    places: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, block: Block) -> _Letters:
        n = len(block.ends) - 1
        texts = [
            block.raw[start:stop]
            for start, stop in zip(block.ends.tolist(), block.ends[1:].tolist())
        ]
        is_ascii = np.array([text.isascii() for text in texts], np.bool_)
        plain = [
            text.translate(_LOWER, _NO_LETTERS)
            for text, is_plain in zip(texts, is_ascii)
            if is_plain
        ]
        others = [_folded(text.decode()) for text, is_plain in zip(texts, is_ascii) if not is_plain]
        points = np.frombuffer("".join(others).encode("utf-32-le"), np.uint32)
        is_letter = _is_letter()[points]
        counts = np.diff(_sums(is_letter)[np.cumsum([0, *map(len, others)])])
        letters = np.concatenate(
            [np.frombuffer(b"".join(plain), np.uint8).astype(np.uint32), points[is_letter]]
        )
        ends = np.cumsum([0, *map(len, plain), *counts])
        places = np.argsort(~is_ascii, kind="stable")
        sizes = np.zeros(n, np.int64)
        first = ends[len(plain)]
        hangul = _sums(_is_hangul()[letters[first:]])[ends[len(plain) :] - first]
        sizes[places] = np.diff(ends) + np.concatenate(
            [np.zeros(len(plain), np.int64), np.diff(hangul)]
        )
        return cls(letters, ends, places, sizes)


def _folded(text: str) -> str:
    """Returns the text in one Unicode form and case, as `likeness.asked_form` has it."""
    return (
        text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", text)
    ).casefold()


def _sums(values: np.ndarray) -> np.ndarray:
    """Returns [n + 1]: how many are true before each, and of all."""
    return np.concatenate([[0], np.cumsum(values)])


def _keys_of(letters: np.ndarray) -> np.ndarray:
    """Returns a number for each run of SHINGLE letters; equal runs have equal ones."""
    count = max(0, len(letters) - SHINGLE + 1)
    keys = letters[:count] * _FACTORS[0]
    for i in range(1, SHINGLE):
        keys += letters[i : i + count] * _FACTORS[i]
    return keys * _FACTORS[0]  # spreads what distinguishes short sums over the high bits


_LETTER = re.compile(r"[^\W_]+")
_LOWER = bytes(range(256)).lower()
_NO_LETTERS = bytes(value for value in range(256) if value > 127 or not _LETTER.match(chr(value)))


@functools.cache
def _is_letter() -> np.ndarray:
    """[code points] bool: what `likeness.normalise` keeps."""
    found = np.zeros(sys.maxunicode + 1, np.bool_)
    for start in range(0, len(found), 2**16):
        for match in _LETTER.finditer(
            "".join(map(chr, range(start, min(start + 2**16, len(found)))))
        ):
            found[start + match.start() : start + match.end()] = True
    return found


@functools.cache
def _is_hangul() -> np.ndarray:
    """[code points] bool, as `count_hangul` has it."""
    found = np.zeros(sys.maxunicode + 1, np.bool_)
    for first, last in HANGUL_RANGES:
        found[first : last + 1] = True
    return found
