"""Korean particles: which of two forms follows a word, and templates that leave the choice open.

    settle_particles("와파린은/는 비타민 K을/를 억제한다")    # "와파린은 비타민 K를 억제한다"

A word ending in Hangul is exact. Latin letters and digits go by how they are read aloud in Korean: a
capital by its letter's name (M is 엠), a lower-case ending as the word it is (virus is 바이러스), a digit as
Sino-Korean (1 is 일). What it does not do: know words that are read against these rules.
"""

from __future__ import annotations

import re

MARKS = re.compile(r"(은/는|이/가|을/를|과/와|으로/로)(?![가-힣])")

_FIRST_HANGUL, _FINALS, _RIEUL = ord("가"), 28, 8
_NO_FINAL, _OTHER_FINAL = 0, 1  # any final consonant but ㄹ counts alike
_DIGIT_FINALS = {
    "0": _OTHER_FINAL,
    "1": _RIEUL,
    "3": _OTHER_FINAL,
    "6": _OTHER_FINAL,
    "7": _RIEUL,
    "8": _RIEUL,
}
_CAPITAL_FINALS = {"L": _RIEUL, "M": _OTHER_FINAL, "N": _OTHER_FINAL, "R": _RIEUL}
_LOWER_FINALS = {"l": _RIEUL, "m": _OTHER_FINAL, "n": _OTHER_FINAL}


def final_consonant(word: str) -> int:
    """Returns 0 if `word` is read with no final consonant, 8 if it ends in ㄹ, another number otherwise.

    A closing parenthesis after Hangul is passed over, with what it encloses: 비타민(B1) is read as 비타민.
    """
    spoken = re.sub(r"(?<=[가-힣])\s*\([^()]*\)\s*$", "", word)
    spoken = re.sub(r"[^0-9A-Za-z가-힣]+$", "", spoken)
    if not spoken:
        return _NO_FINAL
    last = spoken[-1]
    if "가" <= last <= "힣":
        return (ord(last) - _FIRST_HANGUL) % _FINALS
    if last.isdigit():
        return _DIGIT_FINALS.get(last, _NO_FINAL)
    if last.isupper():
        return _CAPITAL_FINALS.get(last, _NO_FINAL)
    return _OTHER_FINAL if spoken.endswith("ng") else _LOWER_FINALS.get(last, _NO_FINAL)


def particle(word: str, pair: str) -> str:
    """Returns the form of `pair` that follows `word`: particle("간", "은/는") is "은"."""
    with_final, without_final = pair.split("/")
    final = final_consonant(word)
    if pair == "으로/로" and final == _RIEUL:  # 물로, 알로: ㄹ takes 로
        return without_final
    return with_final if final else without_final


def settle_particles(text: str) -> str:
    """Returns `text` with every mark like "은/는" replaced by the form that fits what stands before it."""
    return MARKS.sub(lambda mark: particle(text[: mark.start()], mark.group()), text)
