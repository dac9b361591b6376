"""What one cell of a row says, as text: composed, decoded, without the ".0" of a table; or why it cannot be used.

    text_of(row["question"], "question")       # BadRowReason("question is empty")
    plain_number(3.0)                          # "3"

Text is composed (NFC) on reading: decomposed Hangul, as macOS writes it, looks the same and has other tokens. What it
does not do: know columns, or judge what a text means.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from medkor_jax.data.language import HANGUL_RANGES
from medkor_jax.data.lines import Row
from medkor_jax.data.notes import Tally

_HANGUL = re.compile(
    "[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in HANGUL_RANGES) + "]"
)
_LONE_CARRIAGE_RETURN = re.compile(r"\r(?!\n)")
# Characters of one code point that NFC would write as another: KorMedMCQA holds Chinese characters of this kind, and the
# prompts of others keep them.
_KEPT = re.compile("([\u2126\u212a\u212b\uf900-\ufaff\U0002f800-\U0002fa1f]+)")
_MARK = "\ufeff"  # a byte order mark; inside a file where files were put together


class BadRowReason(ValueError):
    """Why one row cannot be used. Raised by the converters, turned into a BadRow by `convert_rows`."""


def text_of(value: Any, name: str) -> str:
    """Returns the value as text, untouched: a space at its end is part of the prompt that others measure with.

    Raises: BadRowReason if it is empty, not text or a number, or was not decoded properly.
    """
    if value is None or value != value:
        raise BadRowReason(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRowReason(f"{name} is {type(value).__name__}, expected text")
    text = str(value)
    if not text.strip():
        raise BadRowReason(f"{name} is empty")
    if "\ufffd" in text:
        raise BadRowReason(
            f"{name} holds U+FFFD (broken encoding): {_around(text, text.index(chr(0xFFFD)))}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRowReason(
            f"{name} holds bytes that are not UTF-8 at character {error.start}; "
            "convert the file (Korean files are often CP949)"
        ) from None
    return text


def plain_number(value: Any) -> str:
    """Returns the value as text, "" for none; a whole number without the ".0" that tables write behind it."""
    if value is None or value != value:
        return ""
    text = str(value).strip()
    return text.split(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text


def text_language(text: str) -> str:
    """Returns "ko" if at least a fifth of the letters are Hangul, else "en".

    A fifth and not one: English reasoning quotes Korean terms, and Korean exams quote English ones.
    """
    hangul = count_hangul(text)
    if not hangul or hangul * 5 >= len(text):  # most texts need no count of their letters
        return "ko" if hangul else "en"
    return "ko" if hangul * 5 >= sum(map(str.isalpha, text)) else "en"


def count_hangul(text: str) -> int:
    return 0 if text.isascii() else len(_HANGUL.findall(text))


def composed(text: str) -> str:
    """Returns the text in Unicode's composed form (NFC, but for `_KEPT`), without byte order marks."""
    if not unicodedata.is_normalized("NFC", text):
        text = "".join(
            part if _KEPT.match(part) else unicodedata.normalize("NFC", part)
            for part in _KEPT.split(text)
        )
    return text.replace(_MARK, "")


def composed_row(row: Row, tally: Tally) -> Row:
    """Returns the row with all its texts and names composed, counting what that changed."""
    found: dict[str, None] = {}  # in the order in which it was met, whoever reads

    def of(value: Any) -> Any:
        if isinstance(value, str):
            if value.isascii() and "\r" not in value:
                return value
            plain = composed(value)
            if plain != value.replace(_MARK, ""):
                found.setdefault(
                    "rows in decomposed form (macOS writes Hangul so), read as composed (NFC)"
                )
            if _MARK in value:
                found.setdefault("rows with a byte order mark inside, read without it")
            if _LONE_CARRIAGE_RETURN.search(value):
                found.setdefault("rows with a carriage return inside a line, kept as it is")
            return plain
        if isinstance(value, dict):
            return {of(name): of(inner) for name, inner in value.items()}
        return [of(inner) for inner in value] if isinstance(value, list) else value

    row = of(row)
    for what in found:
        tally.count(what)
    return row


def _around(text: str, index: int) -> str:
    return repr(text[max(0, index - 12) : index + 13])
