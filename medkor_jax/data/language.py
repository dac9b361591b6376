"""Which language each token is in, so that a language embedding can be added to it.

A token is Korean if its text holds Hangul, else English. A rare syllable that the vocabulary lacks is
spelt in UTF-8 bytes, one token a byte; those are routed by a small automaton over the bytes read so far:

    token_languages(np.array(tokenizer.encode("열 37.5도")), tokenizer)     # [1, 0, 0, ..., 1]

Causal: a token's language depends on it and on what stands before it, never on what follows, so that
decoding with a cache gives what a full pass gives. The price is a choice at unfinished characters:

- leads EA to ED are nearly always syllables: Korean at once, for as long as Hangul is still possible
  (EB and EC hold nothing else; EA A0, a Lisu letter, turns English at its second byte);
- leads E1, E3 and EF mostly begin other scripts: English until the bytes read leave only Hangul
  (E1 84 is Korean; E3 84 is not yet, E3 84 B1 is).

Does not judge the language of a document, nor of Chinese characters in Korean text (English).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Protocol

import numpy as np

LANGUAGES = ("en", "ko")
ENGLISH, KOREAN = range(len(LANGUAGES))  # rows of the language embedding
LANGUAGE_UNITS = ("token", "document")  # how a token's language is told: by its own text, or by its whole document's

# Jamo, compatibility jamo, jamo extended A, syllables, jamo extended B, halfwidth jamo. All are three
# bytes in UTF-8, which is all that the automaton reads.
HANGUL_RANGES = (
    (0x1100, 0x11FF),
    (0x3130, 0x318F),
    (0xA960, 0xA97F),
    (0xAC00, 0xD7A3),
    (0xD7B0, 0xD7FF),
    (0xFFA0, 0xFFDC),
)
_HANGUL = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in HANGUL_RANGES) + "]")
_MOSTLY_HANGUL_LEADS = range(0xEA, 0xEE)

# Token classes: two for ordinary pieces, then one for each byte value.
_OTHER_PIECE, _HANGUL_PIECE, _FIRST_BYTE = 0, 1, 2
_N_CLASSES = _FIRST_BYTE + 256


def check_language_unit(name: str) -> None:
    """Raises: ValueError unless `name` is one of LANGUAGE_UNITS."""
    if name not in LANGUAGE_UNITS:
        raise ValueError(f"language_unit is {name!r}, expected one of {', '.join(LANGUAGE_UNITS)}")


def has_hangul(text: str) -> bool:
    return _HANGUL.search(text) is not None


@dataclasses.dataclass(frozen=True)
class LanguageAutomaton:
    """Tables that route one token at a time, on the host or on the device.

    language[state, token_class[token]] is the token's language, next_state[state, token_class[token]]
    the state after it. State 0: at the start, or not inside a character that may be Hangul.
    """

    token_class: np.ndarray  # [V] int32
    next_state: np.ndarray  # [states, classes] int32
    language: np.ndarray  # [states, classes] int32


class Vocabulary(Protocol):
    """What is read of a tokenizer (`data.tokenizer.Tokenizer` is one).

    byte_value: [V], the byte that a piece stands for, -1 where it stands for none; is_hangul_piece: [V] bool.
    """

    byte_value: np.ndarray
    is_hangul_piece: np.ndarray

    @property
    def languages(self) -> LanguageAutomaton: ...


def language_automaton(vocabulary: Vocabulary) -> LanguageAutomaton:
    """Returns the tables for this vocabulary; the two small ones are the same for every vocabulary."""
    token_class = np.where(
        vocabulary.byte_value >= 0,
        vocabulary.byte_value.astype(np.int32) + _FIRST_BYTE,
        np.where(vocabulary.is_hangul_piece, _HANGUL_PIECE, _OTHER_PIECE),
    ).astype(np.int32)
    return LanguageAutomaton(token_class, _NEXT_STATE, _LANGUAGE)


def token_languages(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Returns the language of each token, [T] int32, walking the automaton only where there are bytes.

    ids: [T]. One sequence: a packed row restarts by itself, since every document begins with bos.
    """
    table, ids = vocabulary.languages.token_class, np.asarray(ids)
    # Rows of the embedding beyond the vocabulary spell nothing: they are no Hangul.
    token_class = np.where(ids < len(table), table[np.minimum(ids, len(table) - 1)], _OTHER_PIECE)
    found = _LANGUAGE[0, token_class]
    state, expected = 0, -1
    for t in np.flatnonzero(token_class >= _FIRST_BYTE).tolist():
        state = state if t == expected else 0
        found[t] = _LANGUAGE[state, token_class[t]]
        state, expected = int(_NEXT_STATE[state, token_class[t]]), t + 1
    return found


def _build_tables() -> tuple[np.ndarray, np.ndarray]:
    """Returns (next_state, language), each [states, classes] int32, derived from HANGUL_RANGES.

    A state is (the set of byte strings that would complete a Hangul character, Korean if unsure).
    """
    spelt = [chr(c).encode() for a, b in HANGUL_RANGES for c in range(a, b + 1)]
    after_lead = {lead: {s[1:] for s in spelt if s[0] == lead} for lead in {s[0] for s in spelt}}
    states: list[tuple[frozenset[bytes], bool, bool]] = [(frozenset(), False, False)]
    moves: dict[tuple[int, int], int] = {}

    def step(completions: set[bytes], complete: bool, leans_korean: bool) -> int:
        """Returns the number of the state from which `completions` remain; `complete`: no others do."""
        state = (frozenset(completions), complete, leans_korean)
        if state not in states:
            states.append(state)
        return states.index(state)

    for lead, rest in after_lead.items():
        leans = lead in _MOSTLY_HANGUL_LEADS
        moves[0, lead] = step(rest, len(rest) == 64 * 64, leans)
        for second in sorted({r[0] for r in rest}):
            last = {r[1:] for r in rest if r[0] == second}
            moves[moves[0, lead], second] = step(last, len(last) == 64, leans)

    # A byte that continues nothing (ASCII, another script's, or broken text) is read as from the start.
    next_state = np.zeros((len(states), _N_CLASSES), np.int32)
    language = np.full((len(states), _N_CLASSES), ENGLISH, np.int32)
    language[:, _HANGUL_PIECE] = KOREAN
    for number, (completions, _, _) in enumerate(states):
        for byte in range(256):
            here = number if (number, byte) in moves else 0
            to = moves.get((here, byte), 0)
            next_state[number, _FIRST_BYTE + byte] = to
            _, only_hangul, leans_korean = states[to]
            finished = bytes([byte]) in completions
            language[number, _FIRST_BYTE + byte] = KOREAN if finished or only_hangul or leans_korean else ENGLISH
    return next_state, language


_NEXT_STATE, _LANGUAGE = _build_tables()
