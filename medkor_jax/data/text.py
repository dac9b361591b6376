"""Plain text and chats, as documents to learn from.

    text   one or several columns joined by newlines; every token carries loss
    chat   turns joined by newlines; only what the assistant says carries loss

    load(Source("medquad", "text", "medquad.jsonl.gz"))          # question and answer joined
    load(Source("clinic", "chat", "talks.csv", fields=("input", "output")))

Both are plain text: no turn markup is written, because the tokenizer never reads control tokens out of
text. Both may be cut at the end of a row. What it does not do: clean, filter or deduplicate.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from medkor_jax.data import rows
from medkor_jax.data.cells import BadRowReason, text_language, text_of
from medkor_jax.data.lines import Row
from medkor_jax.data.notes import Note, Tally
from medkor_jax.data.rows import BadRow, Example, Source
from medkor_jax.data.tables import TEXT

TEXT_COLUMNS = ((TEXT,), ("question", "answer"), ("input", "output"), ("content",))
CHAT_COLUMNS = (
    ("question", "answer"),
    ("input", "output"),
    ("instruction", "output"),
    ("prompt", "response"),
)


def load(
    source: Source,
    numbered: Iterable[tuple[int, Row | str]] | None = None,
    tally: Tally | None = None,
) -> Iterator[Example | BadRow | Note]:
    """Yields one Example for each row, or what is wrong with it; then what was noted.

    numbered, tally: the rows to read, by default all of the source, and where what they are like is counted.

    Raises: BadDataError if the columns are not there.
    """
    if source.path == rows.EMBEDDED:
        yield from _embedded(source)
        return
    parts_of = _text_parts if source.kind == "text" else _chat_parts

    def convert(number: int, row: Row) -> Example:
        parts = parts_of(row, source)
        language = source.language or text_language("".join(text for text, _ in parts))
        return Example(f"{source.name}/{number - 1}", parts, language, splittable=True)

    columns = TEXT_COLUMNS if source.kind == "text" else CHAT_COLUMNS
    yield from rows.convert_rows(source, convert, numbered, tally=tally, columns=columns)


def _embedded(source: Source) -> Iterator[Example]:
    if source.kind != "text":
        raise ValueError(
            f"source {source.name!r}: nothing of kind {source.kind!r} is embedded; "
            "expected text, exam, reasoning or translation"
        )
    from medkor_jax.data import embedded

    found = (
        (name, text, language)
        for language in ([source.language] if source.language else ["ko", "en"])
        for name, text in embedded.texts(language, source.subset or "all")
    )
    for name, text, language in itertools.islice(found, source.limit or None):
        yield Example(name, ((text, True),), language, splittable=True)


def _columns(row: Row, source: Source, usual: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    choices = (source.fields,) if source.fields else usual
    for columns in choices:
        if all(column in row for column in columns):
            return columns
    raise rows.columns_missing(
        source, [column for column in choices[0] if column not in row], list(row)
    )


def _text_parts(row: Row, source: Source) -> tuple[tuple[str, bool], ...]:
    columns = _columns(row, source, TEXT_COLUMNS)
    return (("\n".join(text_of(row[column], column).strip() for column in columns), True),)


def _chat_parts(row: Row, source: Source) -> tuple[tuple[str, bool], ...]:
    """Returns the turns, each on a new line; the newline goes with the turn before it that carries no loss."""
    turns = [
        (text_of(text, who).strip(), is_answer) for who, text, is_answer in _turns(row, source)
    ]
    if not turns or not turns[-1][1]:
        raise BadRowReason(
            "the chat does not end in an assistant's turn: there is nothing to learn"
        )
    parts = []
    for i, (text, is_answer) in enumerate(turns):
        after = "\n" if i + 1 < len(turns) and not is_answer else ""
        before = "\n" if i and turns[i - 1][1] else ""
        parts.append((before + text + after, is_answer))
    return tuple(parts)


def _turns(row: Row, source: Source) -> list[tuple[str, object, bool]]:
    """Returns (what to call it, text, whether the assistant says it) for each turn of the row."""
    if "messages" not in row or source.fields:
        *asked, answered = _columns(row, source, CHAT_COLUMNS)
        return [(column, row[column], False) for column in asked] + [
            (answered, row[answered], True)
        ]
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise BadRowReason("messages is not a list of {role, content}")
    unknown = {str(m.get("role")) for m in messages} - {"system", "user", "assistant", "model"}
    if unknown:
        raise BadRowReason(f"role {', '.join(sorted(unknown))}, expected system, user or assistant")
    return [
        (f"the {m['role']}'s turn", m.get("content"), m["role"] in ("assistant", "model"))
        for m in messages
    ]
