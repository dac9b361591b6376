"""How the keys of an exam are meant, decided over the whole source: letters, numbers from 1, from 0, or option texts.

    keys = [Key(1, "1", options, texts=("pancreas",)), ...]
    read_keys(keys, answers_from=None, name="mine", tally=Tally())       # [1, ...], a reason where one cannot be read

One row cannot tell: 1 of four options is the first or the second. The rows together can: a 0 is there or the number of
the last option is, or an answer's text stands beside its number. Where they cannot, the source is refused with both
readings shown, since a wrong guess moves every key by one and no row looks bad. What it does not do: know columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from medkor_jax.data.cells import plain_number
from medkor_jax.data.notes import Tally
from medkor_jax.data.question import LETTERS


class AmbiguousKeys(ValueError):
    """Keys that say different things by two readings, and nothing in the source tells which is meant."""


@dataclasses.dataclass(frozen=True)
class Key:
    """What a row says about its answer.

    row: its number; value: the key as it stands; options: their texts. names: what the row calls them where that is not
    A, B, ... . texts: what else the row says of the answer, in words or as a letter. is_kormedmcqa: "subject" where
    the row names one of its exams, "columns" where it has its columns; there numbers count from 1.
    """

    row: int
    value: Any
    options: tuple[str, ...]
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    is_kormedmcqa: str = ""

    @property
    def said(self) -> str:
        return plain_number(self.value)

    @property
    def letter(self) -> int | None:
        """The option whose letter, or own name, the key is."""
        return _letter(self.said, self.options, self.names)

    @property
    def number(self) -> int | None:
        return (
            int(self.said)
            if self.letter is None and self.said.isdecimal() and len(self.said) < 4
            else None
        )

    @property
    def text(self) -> int | None:
        """The only option whose text the key is."""
        return _option(self.value, self.options)

    @property
    def is_mark(self) -> bool:
        return self.letter is not None or (
            self.number is not None and self.number <= len(self.options)
        )

    def witnesses(self) -> list[tuple[int, bool]]:
        """Returns (option, whether it can mean no other) for each thing else that the row says of its answer."""
        found = []
        for said in self.texts:
            text, letter = (
                _option(said, self.options),
                _letter(plain_number(said), self.options, self.names),
            )
            if (text is None and letter is None) or (None not in (text, letter) and text != letter):
                continue
            found.append((letter if text is None else text, not plain_number(said).isdecimal()))
        return found


def read_keys(
    keys: Sequence[Key], *, answers_from: int | None, name: str, tally: Tally
) -> list[int | str]:
    """Returns the answer of each, counted from 0, or why it cannot be read.

    answers_from: 0 or 1 where the source says from what its numbers count. name: of the source.

    Raises: AmbiguousKeys.
    """
    by_text = _read_as_text(keys, answers_from, name)
    marked = [
        key for key, is_text in zip(keys, by_text) if is_text is False and key.number is not None
    ]
    base = _base([key for key in marked if key.is_mark], answers_from, name, tally)
    if n := sum(is_text is True for is_text in by_text):
        tally.count("answers given as the text of an option, read as that option", n)
    return [_read(key, is_text, base) for key, is_text in zip(keys, by_text)]


def _read(key: Key, is_text: bool | None, base: int) -> int | str:
    n = len(key.options)
    valid = f"expected A to {LETTERS[n - 1]} or {base} to {n - 1 + base}"
    if not key.said:
        return f"answer is empty, {valid}"
    if is_text is None:
        return (
            f"answer {key.said[:20]!r} is a letter or number and also the text of option {LETTERS[key.text]}, and other rows "
            "of the source give either; write the letter"
        )
    if is_text:
        index = key.text
    elif key.letter is not None:
        index = key.letter
    else:
        index = -1 if key.number is None else key.number - base
    if not 0 <= index < n:
        return f"answer out of range: {key.said.upper()[:20]!r}, {valid}"
    for other, is_certain in key.witnesses():
        if is_certain and other != index:
            return f"answer {key.said[:20]!r} is option {LETTERS[index]}, but the row also says that it is {LETTERS[other]}"
    return index


def _read_as_text(keys: Sequence[Key], answers_from: int | None, name: str) -> list[bool | None]:
    """Returns for each key whether it is an option's text; None where the source does not tell."""
    is_text = [key.text is not None and not key.is_mark for key in keys]
    either = [
        i
        for i, key in enumerate(keys)
        if key.text is not None and key.is_mark and key.text not in _as_marks(key)
    ]
    if not either:
        return is_text
    has_texts = any(is_text)
    has_marks = any(key.is_mark and key.text is None for key in keys)
    if has_texts and has_marks:
        meant: bool | None = None
    elif has_texts or has_marks or answers_from is not None:
        meant = has_texts
    else:
        # Neither letters nor numbers name all answers, and texts do.
        meant = len({key.letter is None for key in keys if key.is_mark}) > 1
        if not meant and not all(key.is_kormedmcqa for key in keys):
            meant = _agree(keys)
            if not meant:
                raise AmbiguousKeys(_either_text(keys[either[0]], name))
    return [meant if i in set(either) else own for i, own in enumerate(is_text)]


def _as_marks(key: Key) -> set[int]:
    """Returns what the key can mean, not as a text."""
    return (
        {key.letter}
        if key.letter is not None
        else {key.number - 1}
        if key.number == len(key.options)
        else set()
    )


def _agree(keys: Sequence[Key]) -> bool:
    """Whether counting from 0 or from 1 gives all rows the option whose text the key is."""
    numbers = [key for key in keys if key.number is not None]
    return len(numbers) == len(keys) and any(
        all(key.number - base == key.text for key in numbers) for base in (0, 1)
    )


def _either_text(key: Key, name: str) -> str:
    by_mark = (
        [f"by its letter {key.options[key.letter]!r}"]
        if key.letter is not None
        else [
            f"counted from {base} {key.options[key.number - base]!r}"
            for base in (0, 1)
            if 0 <= key.number - base < len(key.options)
        ]
    )
    return (
        f"the answers are letters or numbers and also texts of options: in row {key.row}, {key.said!r} is "
        f"{', '.join(by_mark)}, and by its text {key.options[key.text]!r}. Write letters that can mean one option only, or, if they are numbers, "
        f"set answers_from of source {name!r} to 0 or 1"
    )


def _base(keys: Sequence[Key], answers_from: int | None, name: str, tally: Tally) -> int:
    """Returns from what the numbers count. keys: those that are numbers from 0 to the number of their options."""
    if answers_from is not None:
        return answers_from
    if not keys:
        return 1
    zeros = [key for key in keys if key.number == 0]
    tops = [key for key in keys if key.number == len(key.options)]
    votes = {
        base: sum(key.number - base == option for key in keys for option, _ in key.witnesses())
        for base in (0, 1)
    }
    seen = sorted({key.number for key in keys})
    by_name = {key.is_kormedmcqa for key in keys}
    if votes[0] and votes[1]:
        raise AmbiguousKeys(_either_base(keys, zeros, tops, name))
    if votes[0] != votes[1]:
        base, why = int(votes[1] > votes[0]), "by the answers' texts beside them"
    elif (
        zeros
        and not tops
        and (by_name != {"subject"} or seen == list(range(max(len(key.options) for key in keys))))
    ):
        base, why = 0, f"{seen[0]} to {seen[-1]} are there"
    elif (
        "" not in by_name and not zeros
    ):  # a 0 is none of KorMedMCQA's numbers: the others may be none of them either
        if "columns" in by_name and not tops:
            tally.say(
                "answers are numbers and count from 1, as in KorMedMCQA, whose columns are there; no row shows it: "
                "set answers_from if that is wrong"
            )
        return 1
    elif tops and not zeros:
        base, why = 1, f"{seen[0]} to {seen[-1]} are there"
    else:
        raise AmbiguousKeys(_either_base(keys, zeros, tops, name))
    tally.say(f"answers are numbers and count from {base} ({why})")
    return base


def _either_base(keys: Sequence[Key], zeros: Sequence[Key], tops: Sequence[Key], name: str) -> str:
    shown = next((key for key in keys if 0 < key.number < len(key.options)), keys[0])
    readings = [
        f"{shown.options[shown.number - base]!r} counted from {base}"
        for base in (0, 1)
        if 0 <= shown.number - base < len(shown.options)
    ]
    if (
        len(
            {
                base
                for key in keys
                for option, _ in key.witnesses()
                for base in (0, 1)
                if key.number - base == option
            }
        )
        == 2
    ):
        why = "what stands beside them says the one in some rows and the other in others"
    elif zeros and not tops:
        why = f"a 0 is there (row {zeros[0].row}), which KorMedMCQA does not have"
    elif zeros and tops:
        why = f"both 0 (row {zeros[0].row}) and the number of options (row {tops[0].row}) are there"
    else:
        why = "neither a 0 nor the number of the last option is there"
    return (
        f"answers are numbers that could count from 0 or from 1 ({why}): in row {shown.row}, {shown.said} is "
        f"{' and '.join(readings)}. Set answers_from of source {name!r} to 0 or 1 (--answers-from of medkor eval), or "
        "write letters"
    )


def _letter(said: str, options: Sequence[str], names: Sequence[str]) -> int | None:
    said = said.strip().upper()
    if said in names:
        return names.index(said)
    return LETTERS.index(said) if len(said) == 1 and said in LETTERS[: len(options)] else None


def _option(value: Any, options: Sequence[str]) -> int | None:
    said = {str(value).strip().casefold(), plain_number(value).casefold()} - {""}
    found = [i for i, option in enumerate(options) if option.strip().casefold() in said]
    return found[0] if len(found) == 1 else None
