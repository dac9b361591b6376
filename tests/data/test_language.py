import numpy as np
import pytest

from medkor_jax.data.language import (
    ENGLISH,
    KOREAN,
    has_hangul,
    language_automaton,
    token_languages,
)
from medkor_jax.data.tokenizer import Tokenizer

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "\u2581", "열", "간", "a열", "肝", "ㅋ", "\u1112"]
BYTE_0 = len(WORDS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Twelve pieces and every byte."""
    pieces = WORDS + [f"<0x{b:02X}>" for b in range(256)]
    types = [3, 3, 3, 2] + [1] * (len(WORDS) - 4) + [6] * 256
    return Tokenizer.from_vocabulary(
        pieces, [-float(i) for i in range(len(pieces))], types, unk_id=3
    )


def languages(tokenizer: Tokenizer, *parts: str | bytes) -> list[int]:
    ids = []
    for part in parts:
        ids += [BYTE_0 + b for b in part] if isinstance(part, bytes) else [WORDS.index(part)]
    return token_languages(np.array(ids), tokenizer).tolist()


def test_hangul_is_every_listed_block_and_nothing_beside():
    inside = "\u1100\u11ff\u3130\u318f\ua960\ua97f\uac00\ud7a3\ud7b0\ud7ff\uffa0\uffdc"
    outside = "\u10ff\u1200\u312f\u3190\ua95f\ua980\uabff\ud7a4\ud7af\uff9f\uffdd肝a1"
    assert all(map(has_hangul, inside)) and not any(map(has_hangul, outside))
    assert has_hangul("37.5도") and not has_hangul("fever 37.5 肝炎")


def test_ordinary_pieces_go_by_their_text(tokenizer):
    assert languages(tokenizer, "<bos>", "열", "a", "a열", "肝", "ㅋ", "\u1112", "\u2581") == [
        0,
        1,
        0,
        1,
        0,
        1,
        1,
        0,
    ]


def test_every_character_spelt_in_bytes_ends_in_its_own_language(tokenizer):
    characters = [chr(c) for c in (*range(0x80, 0xD800), *range(0xE000, 0x10000), 0x1F600, 0x20BB7)]
    spelt = [c.encode() for c in characters]
    found = token_languages(
        np.frombuffer(b"".join(spelt), np.uint8).astype(np.int32) + BYTE_0, tokenizer
    )
    last = found[np.cumsum([len(s) for s in spelt]) - 1]
    wrong = [
        c for c, language in zip(characters, last, strict=True) if language != int(has_hangul(c))
    ]
    assert not wrong, [f"U+{ord(c):04X}" for c in wrong[:10]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("뷁", [1, 1, 1]),  # EB: only syllables
        ("가", [1, 1, 1]),  # EA: Korean for as long as it is possible
        ("\ua000", [1, 0, 0]),  # EA 80: a Yi syllable
        ("\ua940", [1, 1, 0]),  # EA A5 80: the block before jamo extended A
        ("\ud7a4", [1, 1, 0]),  # ED 9E A4: not assigned
        ("\u1112", [0, 1, 1]),  # E1 84: jamo, as the second byte tells
        ("\u1e00", [0, 0, 0]),  # E1 B8: Latin
        ("\u3131", [0, 0, 1]),  # E3 84 B1: only the third byte tells ...
        ("\u3105", [0, 0, 0]),  # ... E3 84 85 is Bopomofo
        ("\u3142", [0, 1, 1]),  # E3 85: only jamo
        ("\u3042", [0, 0, 0]),  # E3 81: kana
        ("\uffa1", [0, 0, 1]),  # EF BE: halfwidth kana or jamo
        ("\ufffd", [0, 0, 0]),
        ("é", [0, 0]),
        ("😀", [0, 0, 0, 0]),
    ],
)
def test_bytes_of_one_character(tokenizer, text, expected):
    assert languages(tokenizer, text.encode()) == expected


def test_what_interrupts_a_character_starts_anew(tokenizer):
    assert languages(tokenizer, b"\xeb", "a", b"\xb7\x81") == [KOREAN, ENGLISH, ENGLISH, ENGLISH]
    assert languages(tokenizer, b"\xe1\xeb\xb7\x81\x81") == [
        ENGLISH,
        KOREAN,
        KOREAN,
        KOREAN,
        ENGLISH,
    ]
    assert languages(tokenizer, b"\xe4\xb7\x81", "열", b"\x41") == [
        ENGLISH,
        ENGLISH,
        ENGLISH,
        KOREAN,
        ENGLISH,
    ]


def test_stepping_the_tables_equals_the_full_pass_and_looks_at_no_later_token(tokenizer):
    rng = np.random.default_rng(0)
    favoured = b"\x84\x86\x9e\xa5\xb1\xbe\xe1\xe3\xea\xed\xef"
    ids = rng.choice([*range(BYTE_0), *(BYTE_0 + b for b in favoured)], 4000)
    whole = token_languages(ids, tokenizer)
    tables, state, stepped = language_automaton(tokenizer), 0, []
    for token in ids:
        stepped.append(tables.language[state, tables.token_class[token]])
        state = tables.next_state[state, tables.token_class[token]]
    assert whole.tolist() == stepped and whole.dtype == np.int32
    for t in range(1, 200):
        assert token_languages(ids[:t], tokenizer).tolist() == stepped[:t]
    assert {0, 1} == set(stepped)
    assert token_languages(np.array([], np.int64), tokenizer).shape == (0,)
