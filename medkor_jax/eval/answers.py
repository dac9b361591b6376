r"""Which option a text chose. The only place where an answer is read out of text.

    parse_answer("정답: B 입니다", n_options=5)                   # 1
    parse_answer("모르겠습니다", n_options=5)                     # None: not parsed, which is never correct

Reward, exam scoring and the gate all call `parse_answer`, so training and judging cannot disagree. For
Korean it reads as the `extract_answer` filter of `kormedmcqa` v3.0 does (lm-evaluation-harness 0.4.13):
four patterns in turn, the last match of the first that matches, upper or lower case. Two habits of that
filter are kept because published scores contain them: a full-width colon does not count as a colon
(such a letter is still found by the last pattern), and a Latin letter glued to Hangul ("B입니다")
is found only behind "정답" or "정답은". Questions of more than five options, which that exam does not have, are read by
the same patterns with their own letters.

What a model thought (`data.thinking`) is no answer: what stands behind the block is read, and nothing where it was not
closed. Where the reasoning tags are the block's own marks, they are read as tags.

What it does not do: compare option texts, read digits, or guess. A letter beyond the question's own
options is not an answer.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from medkor_jax.data.question import LETTERS
from medkor_jax.data.reasoning import ReasoningFormat
from medkor_jax.data.thinking import split_thought

_KOREAN = (
    r"정답[:\s]*([{letters}])",
    r"정답은\s*([{letters}])\s*입니다",
    r"\b([{letters}])\.",
    r"\b([{letters}])\b",
)
# Ours, since the harness has no English exam of this kind. Upper case only: "a" is an English word; and so is "I".
_ENGLISH = (
    r"\b[Aa]nswer(?:\s+is)?[:\s]*([{letters}])\b{pronoun}",
    r"\b([{letters}])\.",
    r"\b([{letters}])\b{pronoun}",
)
_NO_PRONOUN = r"(?!(?<=I)(?:['’]|\s+[a-z]))"  # "I think", "I'd say"
HARNESS_LETTERS = LETTERS[:5]


@functools.cache
def patterns(language: str, n_options: int = len(HARNESS_LETTERS)) -> tuple[re.Pattern, ...]:
    """Returns the patterns tried in turn. Those for up to five options are the harness's, of more they go on to their letters.

    Raises: ValueError for a language without patterns.
    """
    letters = LETTERS[: max(n_options, len(HARNESS_LETTERS))]
    if language == "ko":
        return tuple(
            re.compile(pattern.format(letters=letters), re.IGNORECASE) for pattern in _KOREAN
        )
    if language == "en":
        pronoun = _NO_PRONOUN if "I" in letters else ""
        return tuple(
            re.compile(pattern.format(letters=letters, pronoun=pronoun)) for pattern in _ENGLISH
        )
    raise ValueError(
        f"no answer patterns for language {language!r}; there are some for ['en', 'ko']"
    )


def extract_letter(text: str, language: str = "ko", n_options: int = len(HARNESS_LETTERS)) -> str:
    """Returns the letter that `text` chose, of "A" to "E" or as far as n_options go, or "" if no pattern matches.

    Raises: ValueError for a language without patterns.
    Source: for "ko", Kweon et al. 2024 (arXiv:2403.01469), appendix B, as `kormedmcqa` v3.0 applies it.
    """
    for pattern in patterns(language, n_options):
        found = pattern.findall(text)
        if found:
            return found[-1].upper()
    return ""


def parse_answer(text: str, n_options: int, language: str = "ko") -> int | None:
    """Returns the 0-based option that `text` chose, or None: nothing found, a letter past the options, or a thought that was
    not closed."""
    if not 2 <= n_options <= len(LETTERS):
        raise ValueError(f"a question with {n_options} options; 2 to {len(LETTERS)} can be read")
    letter = extract_letter(split_thought(text).said, language, n_options)
    if not letter or LETTERS.index(letter) >= n_options:
        return None
    return LETTERS.index(letter)


@dataclasses.dataclass(frozen=True)
class Reasoned:
    """What a reasoned answer says. answer: 0-based, None unless exactly one valid letter, alone, ends the text.

    has_format: reasoning that is not empty between the two tags, each there once, and nothing outside them but
    what follows the closing one.
    """

    has_format: bool
    answer: int | None
    reasoning: str


def parse_reasoned(
    text: str, n_options: int, form: ReasoningFormat = ReasoningFormat()
) -> Reasoned:
    """Returns the parts of "<R> reasoning <R/> C". Strict: "C.", "C or D" and "the answer is C" are no single letter.

    A letter without the format is still read (what follows the last closing tag, or the whole text), so that
    reward and score can weigh the two apart. Of a thought that was not closed nothing is.
    """
    parts = split_thought(text)
    if not parts.is_closed:
        return Reasoned(False, None, "")
    if not form.is_own:
        text = parts.said
    before, closing, after = text.rpartition(form.closing)
    letter = after.strip()
    allowed = LETTERS[:n_options]
    answer = allowed.index(letter) if len(letter) == 1 and letter in allowed else None
    opening, reasoning = (
        before.strip()[: len(form.opening)],
        before.strip()[len(form.opening) :].strip(),
    )
    once = text.count(form.opening) == text.count(form.closing) == 1
    has_format = (
        bool(closing) and once and opening == form.opening and any(map(str.isalnum, reasoning))
    )
    return Reasoned(has_format, answer, reasoning if has_format else "")
