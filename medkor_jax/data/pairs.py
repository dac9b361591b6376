"""Sentence pairs, each learnt in both directions with loss on the target only.

    English: He has a fever.                한국어: 그는 열이 난다.
    한국어: 그는 열이 난다.      and         English: He has a fever.

Read from: lines "en TAB ko" (.tsv, .txt; a header is recognised, further cells are left out), columns en and ko (CSV,
JSONL, JSON, Parquet, hub; other names as fields=(english, korean); also under one column "translation", and a list of
terms gives a pair for each), a pair of files beside each other (path "news.ko",
"news.en" or "news" for both), or "embedded" (subset "train", "valid" or "test" gives the pairs on that split's
facts). The prompt that evaluation asks with is the one learnt here. What it does not do: align sentences.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from medkor_jax.data import rows
from medkor_jax.data.cells import BadRowReason, text_of
from medkor_jax.data.language import has_hangul
from medkor_jax.data.lines import Row, UnreadableFile, lines_of, open_text
from medkor_jax.data.notes import Note, Tally
from medkor_jax.data.parts import of_part
from medkor_jax.data.rows import BadDataError, BadRow, Example, Loaded, Source
from medkor_jax.data.tables import CELLS, TEXT

if TYPE_CHECKING:
    from medkor_jax.data.style import Style

LABELS = {"en": "English:", "ko": "한국어:"}
NESTED = "translation"  # the column that some data sets keep {en, ko} in
DIRECTIONS = (("en", "ko"), ("ko", "en"))  # (given, target)
COLUMNS = (
    ("en", "ko"),
    ("eng", "kor"),
    ("english", "korean"),
    ("영어", "한국어"),
)  # English, Korean; upper case as well


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same sentence in both languages."""

    id: str
    en: str
    ko: str


def load(
    source: Source,
    numbered: Iterable[tuple[int, Row | str]] | None = None,
    tally: Tally | None = None,
) -> Iterator[Example | BadRow | Note]:
    """Yields two Examples for each pair, into Korean first, or what is wrong with the pair; then what was noted.

    numbered, tally: the rows to read, by default all of the source, and where what they are like is counted.

    Raises: BadDataError if the columns or the twin file are not there, or the twin files differ in length.
    """
    for item in _read(source, numbered, tally):
        yield from [item] if isinstance(item, BadRow | Note) else both_ways(item)


def load_pairs(source: Source, *, drop_bad: bool) -> Loaded[Pair]:
    """Returns the pairs of a translation source, to judge with.

    Raises: BadDataError for bad rows (unless `drop_bad`), and as `load`; ValueError if the source holds no pairs.
    """
    if source.kind != "translation":
        raise ValueError(
            f"source {source.name!r} is of kind {source.kind!r}, expected 'translation'"
        )
    return rows.settle(source, *rows.split_bad(_read(source)), drop_bad=drop_bad)


def translation_prompt(text: str, given: str, target: str) -> str:
    """Returns what the model is asked: the text under its language's label, then the other label."""
    return f"{LABELS[given]} {text}\n{LABELS[target]}"


def translation_ids(style: Style, text: str, given: str, target: str) -> list[int]:
    """Returns the ids of the same in a form: by a translator's own template, else of `translation_prompt`."""
    own = style.translation(text, given, target)
    return style.prompt(translation_prompt(text, given, target)) if own is None else own


def both_ways(pair: Pair) -> list[Example]:
    """Returns the pair as two Examples; the language of each is that of its target."""
    text = {"en": pair.en, "ko": pair.ko}
    return [
        Example(
            f"{pair.id}/{given}-{target}",
            ((translation_prompt(text[given], given, target), False), (f" {text[target]}", True)),
            target,
            splittable=False,
        )
        for given, target in DIRECTIONS
    ]


def pair_of(example: Example) -> Pair | None:
    """Returns the pair that `both_ways` made this example of; None of any other."""
    for given, target in DIRECTIONS:
        match = re.fullmatch(
            f"{re.escape(LABELS[given])} (.*)\n{re.escape(LABELS[target])}",
            example.parts[0][0],
            re.DOTALL,
        )
        if match and len(example.parts) == 2:
            return Pair(example.id, **{given: match[1], target: example.parts[1][0].strip()})
    return None


def _read(
    source: Source,
    numbered: Iterable[tuple[int, Row | str]] | None = None,
    tally: Tally | None = None,
) -> Iterator[Pair | BadRow | Note]:
    if source.path == rows.EMBEDDED:
        from medkor_jax.data import embedded

        yield from itertools.starmap(
            Pair, itertools.islice(embedded.pairs(source.subset or "all"), source.limit or None)
        )
        return
    tally = tally or Tally()
    if twins := twin_files(source):
        numbered = _read_twins(source, twins, tally)
        source = dataclasses.replace(source, path=str(twins[0]))  # which reports then name

    def convert(number: int, row: Row) -> list[Pair]:
        found = _sentences(row, source, tally)
        name = f"{source.name}/{number - 1}"
        names = [name] if len(found) == 1 else [f"{name}.{i}" for i in range(len(found))]
        pairs = [Pair(name, *both) for name, both in zip(names, found, strict=True)]
        if number == 1 and (twins or CELLS in row) and _looks_like_header(pairs[0]):
            raise BadRowReason(
                f"{pairs[0].en!r} and {pairs[0].ko!r} look like the names of columns and not like a pair; "
                "delete the line, or in a file of tabs write en and ko"
            )
        return pairs

    for item in rows.convert_rows(source, convert, numbered, tally=tally, columns=COLUMNS):
        yield from item if isinstance(item, list) else [item]


def _looks_like_header(pair: Pair) -> bool:
    """Whether two different words stand there, neither of them Korean."""
    return pair.en != pair.ko and all(
        re.fullmatch(r"[A-Za-z]\w*(?:[ _-]\w+)?", said, re.ASCII) for said in (pair.en, pair.ko)
    )


def twin_files(source: Source) -> tuple[pathlib.Path, pathlib.Path] | None:
    """Returns the English and the Korean file if the path names such a pair."""
    path = pathlib.Path(source.path)
    stem = str(path)[:-3] if path.suffix in (".en", ".ko") else str(path)
    twins = pathlib.Path(stem + ".en"), pathlib.Path(stem + ".ko")
    found = [twin for twin in twins if twin.is_file()]
    if len(found) == 1:
        lost = twins[1] if found[0] == twins[0] else twins[0]
        raise BadDataError(
            [BadRow(str(found[0]), 0, f"its twin {lost} is not there")],
            advice="half a pair of files",
        )
    return twins if found else None


def _sentences(row: Row, source: Source, tally: Tally) -> list[tuple[str, str]]:
    """Returns (English, Korean) of one row; several where one side is a list of terms."""
    if isinstance(nested := row.get(NESTED), dict) and not set(source.fields) & row.keys():
        row = nested
    if set(row) == {TEXT, CELLS}:
        cells = row[CELLS]
        if len(cells) < 2:
            raise BadRowReason("no tab: expected the English sentence, a tab, the Korean one")
        english, korean = cells[:2]
        if has_hangul(english) and not has_hangul(korean):
            english, korean = korean, english
            tally.count("lines with the Korean sentence first, read as such")
        tally.count("lines with more than two cells, the further ones left out", len(cells) > 2)
    else:
        if source.fields and len(source.fields) != 2:
            raise ValueError(
                f"source {source.name!r}: `fields` is {source.fields}, expected two names: English, Korean"
            )
        names = {name.strip().casefold(): name for name in row}
        usual = (
            tuple(names[name] for name in pair) for pair in COLUMNS if names.keys() >= set(pair)
        )
        columns = source.fields or next(usual, COLUMNS[0])
        missing = [column for column in columns if column not in row]
        if missing:
            raise rows.columns_missing(source, missing, list(row))
        english, korean = (row[column] for column in columns)
        if source.fields and has_hangul(str(english)) and not has_hangul(str(korean)):
            english, korean = korean, english
            tally.count(
                "rows with the Korean sentence in the column of the English one, read as such"
            )
    found = [(e, k) for e in _terms(english) for k in _terms(korean)]
    if not found:
        raise BadRowReason("a list of terms is empty")
    tally.count("rows with a list of terms, one pair for each", len(found) > 1)
    return [
        (text_of(e, "English sentence").strip(), text_of(k, "Korean sentence").strip())
        for e, k in found
    ]


def _terms(value: Any) -> list[Any]:
    """Returns the terms of a list, each once, without empty ones; of anything else itself."""
    if not isinstance(value, list):
        return [value]
    kept = [one for one in value if one is not None and str(one).strip()]
    if strange := [one for one in kept if isinstance(one, (list, dict))]:
        raise BadRowReason(f"a list of terms holds a {type(strange[0]).__name__}, expected texts")
    return list(dict.fromkeys(kept))


def _read_twins(
    source: Source, twins: tuple[pathlib.Path, pathlib.Path], tally: Tally
) -> Iterator[tuple[int, Row]]:
    english, korean = (_lines(twin, tally) for twin in twins)
    if len(english) != len(korean):
        counts = (
            f"{len(english)} lines, but {twins[1]} has {len(korean)}: the sentences do not pair up"
        )
        raise BadDataError([BadRow(str(twins[0]), 0, counts)], advice="files of different length")
    pairs = ({"en": e, "ko": k} for e, k in zip(english, korean))
    yield from itertools.islice(of_part(source, enumerate(pairs, start=1)), source.limit or None)


def _lines(path: pathlib.Path, tally: Tally) -> list[str]:
    """Returns the lines of one of the twins, without blank ones at its end."""
    try:
        with open_text(path, tally) as file:
            lines = list(lines_of(file))
    except UnreadableFile as error:
        raise BadDataError(
            [BadRow(str(path), 0, str(error))], advice="one of a pair of files cannot be read"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
        tally.count(f"blank lines at the end of {path.name} left out")
    return lines
