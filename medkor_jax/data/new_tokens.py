"""Korean tokens beside a vocabulary: pieces of Hangul that are learnt from text, and the ids of texts with them.

    new = learn(texts, tokenizer, size=6000, first_id=262_144, least_seen=10)
    longer = tokenizer.extended(new)
    longer.decode(longer.encode("환자는 아스피린을 복용하였다.")) == "환자는 아스피린을 복용하였다."

How a text is cut: first as without them, into the vocabulary's own tokens. Then neighbours are merged, by an ordered list
of pairs: of all pairs of neighbours that are in the list, the one that comes first in it, the leftmost of several, and
again until there is none. So it is one byte-pair encoding whose new merges all stand behind the old ones, which is what an
export's tokenizer.json says. A new piece is Hangul, with the space in front of a word or without it, and nothing else: a
text without Hangul has exactly the ids it had, and so has every other script beside Hangul.

The pieces are learnt by sentencepiece, for which each token of the vocabulary is one letter: what it finds can be reached
by merges of tokens. They are numbered from the first row behind the base's embedding on.

What it does not do: make rows for them (`adapt.language`), or say which text they are learnt from (`run.new_tokens`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from medkor_jax.data.contents import checksum
from medkor_jax.data.language import HANGUL_RANGES
from medkor_jax.data.tokenizer_engines import NORMAL, Engine

FORMAT = 1
_SPACE = "\u2581"
_HANGUL = "".join(f"{chr(a)}-{chr(b)}" for a, b in HANGUL_RANGES)
_PART = re.compile(f"{_SPACE}|{_SPACE}?[{_HANGUL}]+")  # what a new piece may be made of
_MOST_KEPT = 300_000  # words whose merges are remembered
_AT_ONCE = 512  # texts that are encoded together
_FIRST_LETTER = 0xF0000  # of a plane for private use, which holds 65,534
_LONGEST = 12  # tokens that a piece may be made of
_MARGIN = 1.25  # pieces to learn for one that is kept: some spell what the vocabulary has, or are seen too rarely
Word = tuple[int, ...]
Pair = tuple[int, int]


class Vocabulary(Protocol):
    """What is read of a tokenizer (`data.tokenizer.Tokenizer` is one)."""

    @property
    def pieces(self) -> list[str]: ...

    @property
    def digest(self) -> str: ...

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]: ...


@dataclasses.dataclass(frozen=True)
class NewTokens:
    """first_id: of the first new piece. pieces: their texts, in the order of their ids. spelt: the tokens of the base that each
    stands for. merges: (left, right, what comes of them), ids all, the one to merge first in front.
    base: digest of the tokenizer that they stand beside.
    """

    first_id: int
    pieces: tuple[str, ...]
    spelt: tuple[tuple[int, ...], ...]
    merges: tuple[tuple[int, int, int], ...]
    base: str

    @functools.cached_property
    def table(self) -> dict[Pair, tuple[int, int]]:
        """(left, right) -> (rank, what comes of them)."""
        return {(left, right): (rank, made) for rank, (left, right, made) in enumerate(self.merges)}

    @functools.cached_property
    def digest(self) -> str:
        return checksum(self.to_json())

    def to_json(self) -> dict[str, Any]:
        said = {name: getattr(self, name) for name in ("first_id", "pieces", "base")}
        lists = {name: [list(one) for one in getattr(self, name)] for name in ("spelt", "merges")}
        return {"format": FORMAT, **said, "pieces": list(self.pieces), **lists}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> NewTokens:
        """Raises: ValueError if it is of another format."""
        if said.get("format") != FORMAT:
            raise ValueError(
                f"tokens of format {said.get('format')!r}; this program reads {FORMAT}"
            )
        return cls(
            said["first_id"],
            tuple(said["pieces"]),
            tuple(map(tuple, said["spelt"])),
            tuple((left, right, made) for left, right, made in said["merges"]),
            said["base"],
        )


class Extended:
    """The engine of a vocabulary with new tokens: the base's own, and what is merged behind it. See the top of the file."""

    file_name = "tokenizer.json"  # as an export writes it; a run keeps the base's file and the new tokens apart

    def __init__(self, base: Engine, new: NewTokens) -> None:
        self.base, self.new = base, new
        held = base.pieces[: new.first_id]
        self.pieces = [*held, *[""] * (new.first_id - len(held)), *new.pieces]
        self._n_held = len(held)
        self.serialized = base.serialized + json.dumps(new.to_json()).encode()
        self._merges = new.table
        self._words = Words(held)
        self._kept: dict[Word, Word] = {}

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self._merged(ids) for ids in self.base.encode_batch(texts)]

    def decode(self, ids: list[int]) -> str:
        spelt: list[int] = []
        for i in ids:
            if i >= self.new.first_id:
                spelt += self.new.spelt[i - self.new.first_id]
            elif i < self._n_held:
                spelt.append(i)
        return self.base.decode(spelt)

    def _merged(self, ids: list[int]) -> list[int]:
        found: list[int] = []
        at = 0
        for start, stop in self._words.of(ids):
            word = tuple(ids[start:stop])
            if (merged := self._kept.get(word)) is None:
                if len(self._kept) >= _MOST_KEPT:
                    self._kept.clear()
                merged = self._kept[word] = tuple(merge(word, self._merges))
            found += ids[at:start]
            found += merged
            at = stop
        return found + ids[at:] if at else ids


class Words:
    """Where new tokens may stand: runs of a vocabulary's tokens that are Hangul and nothing else, a space in front or not."""

    def __init__(self, pieces: Sequence[str]) -> None:
        """_kinds: of each token, 0: none that a new piece may be made of; 1: one; 2: one that begins a word."""
        self._kinds = bytes(
            0 if not _PART.fullmatch(piece) else 2 if piece[0] == _SPACE else 1 for piece in pieces
        )

    def of(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of every word of two tokens or more, in order."""
        kinds, start = self._kinds, -1
        for at, token in enumerate(ids):
            kind = kinds[token]
            if kind == 1 and start >= 0:
                continue
            if start >= 0 and at - start > 1:
                yield start, at
            start = at if kind else -1
        if start >= 0 and len(ids) - start > 1:
            yield start, len(ids)


def merge(
    word: Word, merges: Mapping[Pair, tuple[int, int]], made: list[int] | None = None
) -> list[int]:
    """Returns the word with its pairs merged: that of the least rank first, the leftmost of several.

    merges: pair -> (rank, what comes of it). made: takes every token that came of a merge, also those merged further.
    """
    ids = list(word)
    while len(ids) > 1:
        pairs = enumerate(itertools.pairwise(ids))
        ranked = [(merges[pair][0], at) for at, pair in pairs if pair in merges]
        if not ranked:
            break
        _, at = min(ranked)
        token = merges[ids[at], ids[at + 1]][1]
        ids[at : at + 2] = [token]
        if made is not None:
            made.append(token)
    return ids


def learn(
    texts: Iterable[str], tokenizer: Vocabulary, *, size: int, first_id: int, least_seen: int
) -> NewTokens:
    """Returns `size` new tokens, numbered from `first_id` on. least_seen: how often each comes of a merge in the texts at least.

    The same texts give the same tokens. Raises: ValueError, saying how many there are, if they are fewer.
    """
    seen = _count_words(texts, tokenizer)
    if not seen:
        raise ValueError("there is no Korean text to learn new tokens from")
    learnt = _learn_pieces(seen, int(size * _MARGIN) + 64)
    found = _number(learnt, tokenizer, first_id)
    made = _count_made(found, seen)
    often = {found.pieces[i - first_id] for i, n in made.items() if n >= least_seen}
    spell = lambda word: "".join(tokenizer.pieces[i] for i in word)
    found = _number([word for word in learnt if spell(word) in often], tokenizer, first_id)
    if len(found.pieces) < size:
        raise ValueError(
            f"the Korean text gives {len(found.pieces)} new tokens that are seen {least_seen} times or more, and {size} are asked for"
        )
    return _first(found, size)


def _count_words(texts: Iterable[str], tokenizer: Vocabulary) -> collections.Counter[Word]:
    words, seen, waiting = Words(tokenizer.pieces), collections.Counter[Word](), iter(texts)
    while some := list(itertools.islice(waiting, _AT_ONCE)):
        for ids in tokenizer.encode_batch(some):
            seen.update(tuple(ids[start:stop]) for start, stop in words.of(ids))
    return seen


def _learn_pieces(seen: Mapping[Word, int], n: int) -> list[Word]:
    """Returns up to `n` sequences of tokens, the one to merge first in front, as sentencepiece finds them in these words."""
    import sentencepiece
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    letters = sorted({token for word in seen for token in word})
    written = {token: chr(_FIRST_LETTER + i) for i, token in enumerate(letters)}
    with tempfile.TemporaryDirectory() as directory:
        words, model = pathlib.Path(directory) / "words.tsv", pathlib.Path(directory) / "made"
        lines = (
            "".join(map(written.get, word)) + f"\t{count}\n" for word, count in sorted(seen.items())
        )
        words.write_text("".join(lines), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(words),
            input_format="tsv",
            model_prefix=str(model),
            model_type="bpe",
            vocab_size=1 + len(letters) + n,
            hard_vocab_limit=False,
            character_coverage=1.0,
            max_sentencepiece_length=_LONGEST,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_unicode_script=False,
            split_by_number=False,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        proto = ModelProto.FromString(model.with_suffix(".model").read_bytes())
    made = [one for one in proto.pieces if one.type == NORMAL and len(one.piece) > 1]
    made.sort(key=lambda one: -one.score)
    return [tuple(letters[ord(letter) - _FIRST_LETTER] for letter in one.piece) for one in made]


def _number(learnt: Iterable[Word], tokenizer: Vocabulary, first_id: int) -> NewTokens:
    """Returns what was learnt as tokens: without what the vocabulary has as a piece, and what no merge of two parts gives."""
    held, ids, known = set(tokenizer.pieces), dict[str, int](), dict[Word, int]()
    spelt, merges = list[Word](), dict[tuple[int, int, int], None]()
    for word in learnt:
        text = "".join(tokenizer.pieces[i] for i in word)
        part = lambda some: some[0] if len(some) == 1 else known.get(some)
        cuts = [(part(word[:k]), part(word[k:])) for k in range(1, len(word))]
        pairs = [(left, right) for left, right in cuts if left is not None and right is not None]
        if text in held or not pairs:
            continue
        if text not in ids:
            ids[text] = first_id + len(ids)
            spelt.append(word)
        known[word] = ids[text]
        merges |= dict.fromkeys((*pair, ids[text]) for pair in pairs)
    return NewTokens(first_id, tuple(ids), tuple(spelt), tuple(merges), tokenizer.digest)


def _count_made(new: NewTokens, seen: Mapping[Word, int]) -> collections.Counter[int]:
    """Returns how often each new token comes of a merge in these words."""
    table, counts = new.table, collections.Counter[int]()
    for word, count in seen.items():
        made: list[int] = []
        merge(word, table, made)
        for token in made:
            counts[token] += count
    return counts


def _first(new: NewTokens, size: int) -> NewTokens:
    """Returns the first `size` of the tokens, and the merges that need no other."""
    end = new.first_id + size
    merges = [one for one in new.merges if max(one) < end]
    return dataclasses.replace(
        new, pieces=new.pieces[:size], spelt=new.spelt[:size], merges=tuple(merges)
    )
