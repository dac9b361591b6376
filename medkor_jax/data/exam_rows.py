"""One row of an exam file as a draft of a question, whichever of the recognised forms it has.

    draft = draft_from_row({"question": "...", "choices": ["liver", "pancreas"], "answer": 1}, source, number=1)
    draft.options, draft.key            # the key is not read yet: how keys count is decided over all rows

The forms: KorMedMCQA (question, A..E and further, answer as a letter or 1-5), MedQA (options as {letter: text}, {option_A: text}, a
list or [{key, value}], also written as text; answer_idx), MMLU (choices, answer), MedMCQA (opa.., cop), and questions inside a chat, with their
reasoning (see `_from_chat` and `_from_markdown`). What it does not do: read keys (`answer_keys`), or rows (`rows`).
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Sequence
from typing import Any

from medkor_jax.data import rows
from medkor_jax.data.answer_keys import Key
from medkor_jax.data.cells import BadRowReason, plain_number, text_of
from medkor_jax.data.lines import Row
from medkor_jax.data.option_cells import (
    NAMES,
    TooManyOptionsError,
    in_one_cell,
    is_absent,
    listed_options,
)
from medkor_jax.data.question import LETTERS
from medkor_jax.data.rows import BadDataError, BadRow, Source

KORMEDMCQA_SUBJECTS = ("doctor", "nurse", "pharm", "dentist")
KEYS = (
    "answer_idx",
    "answer_index",
    "cop",
    "answer",
    "answerKey",
)  # columns of the key; the first that is there is it
TEXTS = ("answer_text", "correct_answer")  # columns that say the answer in words
SAID = "said of the answer"  # ours, in a row made flat
# A last line that only states the answer: "$\boxed{\text{C}}$" in whatever sentence, or a letter alone.
_CONCLUSION = re.compile(
    r"\\boxed\{(?:\\text\{)?\s*(?:(?P<letter>[A-J])\b)?|^\W*(?:Answer\W*)?(?P<alone>[A-J])\W*$"
)


@dataclasses.dataclass(frozen=True)
class Draft:
    """A question whose key is yet to be read. row: all columns, with A.. and "cot", "rationale", "exam" as far as there."""

    question: str
    options: tuple[str, ...]
    key: Key
    subject: str
    row: Row


def draft_from_row(row: Row, source: Source, number: int) -> Draft:
    """Returns what one row states.

    Raises: BadRowReason if the row cannot be used, BadDataError if its columns are not those of an exam.
    """
    try:
        flat = _flat(row, source)
        stem = text_of(flat["question"], "question")
        options = _options(flat)
    except TooManyOptionsError as error:  # left out, such questions would leave an easier exam
        raise BadDataError(
            [BadRow(rows.file_label(source), number, str(error))],
            advice="questions with more options than can be asked, which --drop-bad does not leave out",
        ) from None
    subject = plain_number(flat.get("subject")) or plain_number(flat.get("config"))
    has_columns = (
        set("ABCDE") <= row.keys() and len(options) <= 5 and "answer" in row and not source.fields
    )
    named = "subject" if subject in KORMEDMCQA_SUBJECTS else "columns" if has_columns else ""
    if source.rationale:
        flat = {**flat, "rationale": "", "cot": _joined(row, source.rationale, source)}
    key = Key(number, flat["answer"], options, flat.get(NAMES, ()), flat.get(SAID, ()), named)
    return Draft(stem, options, key, subject, flat)


def _flat(row: Row, source: Source) -> Row:
    """Returns the row with columns question, A.., answer, whichever recognised form it had."""
    if source.fields:
        return _of_fields(row, source)
    if "messages" in row:
        return _from_chat(row)
    if "label" in row and str(row.get("question", "")).lstrip().startswith("#"):
        return _from_markdown(row)
    key = next((name for name in KEYS if not is_absent(row.get(name))), "answer")
    listed = next(
        (
            cell
            for name in ("options", "choices")
            if (cell := in_one_cell(row.get(name))) is not None
        ),
        None,
    )
    if listed is not None and "question" in row and key in row:
        exam = {"exam": "medqa"} if "meta_info" in row else {}
        return {
            **exam,
            **row,
            **listed_options(listed),
            "answer": row[key],
            SAID: _said_beside(row, key),
        }
    if {"question", "opa", "opb"} <= row.keys() and key in row:  # MedMCQA
        options = {
            letter: row.get(f"op{letter.lower()}")
            for letter in LETTERS
            if f"op{letter.lower()}" in row
        }
        return {**row, **options, "answer": row[key], SAID: _said_beside(row, key)}
    missing = [
        name
        for name in ("question", "A", "B", "answer")
        if name not in row and not (name == "answer" and key in row)
    ]
    if missing:
        raise rows.columns_missing(source, missing, list(row))
    return {**row, "answer": row[key], SAID: _said_beside(row, key)} if key != "answer" else row


def _of_fields(row: Row, source: Source) -> Row:
    """Returns the columns that `fields` names: the question's, the options', the answer's."""
    missing = [
        name
        for field in source.fields
        for name in ([field] if field in row else field.split("+"))
        if name not in row
    ]
    if missing:
        raise rows.columns_missing(source, missing, list(row))
    if not 3 <= len(source.fields) <= len(LETTERS) + 2:
        raise ValueError(
            f"source {source.name!r}: `fields` has {len(source.fields)} names, expected the columns of "
            f"the question, of 2 to {len(LETTERS)} options (or the one that holds them all) and of the answer, in this order"
        )
    asked, *listed_in, answer = source.fields
    columns = [asked] if asked in row else asked.split("+")
    flat = {"question": _joined(row, columns, source), "answer": row[answer]}
    if len(listed_in) == 1:
        if (all_of_them := in_one_cell(row[listed_in[0]])) is None:
            raise BadRowReason(f"{listed_in[0]} is no list and no mapping of options")
        return {**listed_options(all_of_them), **flat}
    return {**dict(zip(LETTERS, (row[name] for name in listed_in))), **flat}


def _said_beside(row: Row, key: str) -> tuple[str, ...]:
    """Returns what other columns than the key say of the answer."""
    others = (row.get(name) for name in (*KEYS, *TEXTS) if name != key)
    return tuple(said for said in others if isinstance(said, str) and said.strip())


def _joined(row: Row, columns: Sequence[str], source: Source) -> Any:
    """Returns the cell of the only column; of several, the texts of those that hold some, a line each.

    Raises: BadDataError for a column that is not there.
    """
    if missing := [name for name in columns if name not in row]:
        raise rows.columns_missing(source, missing, list(row))
    if len(columns) == 1:
        return row[columns[0]]
    said = [(name, row[name]) for name in columns if plain_number(row[name])]
    return "\n".join(text_of(text, name).strip() for name, text in said)


def _options(row: Row) -> tuple[str, ...]:
    """Returns the options A.. of the row. A trailing one may be absent or null, but not empty: that is a lost text."""
    present = _run([letter for letter in string.ascii_uppercase if not is_absent(row.get(letter))])
    expected = (
        string.ascii_uppercase[: string.ascii_uppercase.index(present[-1]) + 1] if present else ""
    )
    if not 2 <= len(expected) <= len(LETTERS):
        raise (BadRowReason if len(expected) < 2 else TooManyOptionsError)(
            f"{len(expected)} options, expected 2 to {len(LETTERS)}"
        )
    return tuple(text_of(row.get(letter), f"option {letter}") for letter in expected)


def _run(letters: list[str]) -> list[str]:
    """Returns the letters without those past E that do not go on from the one before: they name something else."""
    return [
        x
        for x in letters
        if x <= "E"
        or (all(chr(code) in letters for code in range(ord("F"), ord(x))) and "E" in letters)
    ]


def _from_chat(row: Row) -> Row:
    """Reads a chat whose user turn holds "[문제]", the question, "[선택지]" and lettered options.

    The last line of the assistant's turn states the answer; what stands before it is the reasoning, left out if
    its answer is not the key (meta.gold).
    """
    turns = {turn.get("role"): str(turn.get("content") or "") for turn in row["messages"]}
    asked = re.search(r"\[문제\]\s*(.*?)\s*\[선택지\]\s*(.*)", turns.get("user", ""), re.DOTALL)
    answered = re.search(
        r"(.*)정답\s*[:：]\s*([A-J]|10|[1-9])\s*$", turns.get("assistant", ""), re.DOTALL
    )
    if not asked or not answered:
        raise BadRowReason(
            "no exam question in the chat: expected [문제] and [선택지] in the user's turn and "
            "'정답: X' at the end of the assistant's"
        )
    meta = row.get("meta") or {}
    key = meta.get("gold") or answered[2]
    reasoning = answered[1] if key == answered[2] else ""
    return {
        **_lettered(asked[2], r"{}\. "),
        "question": asked[1],
        "answer": key,
        "cot": reasoning,
        "subject": meta.get("subject"),
        "id": meta.get("id"),
    }


def _from_markdown(row: Row) -> Row:
    """Reads a question under "## Question:" with options as "- A: ...", its letter in `label`, reasoning in `answer`.

    Reasoning that ends in another letter than `label` would teach a wrong answer: it is left out, the question stays.
    """
    asked = re.search(
        r"## Question:\s*(.*?)\n(- A: .*?)\s*(?:Answer:\s*)?$", str(row["question"]), re.DOTALL
    )
    if not asked:
        raise BadRowReason(
            "no exam question in the text: expected '## Question:' and options as '- A: ...'"
        )
    reasoning, _, last_line = str(row.get("answer") or "").strip().rpartition("\n")
    concluded = _CONCLUSION.search(last_line)
    if not concluded:
        reasoning = f"{reasoning}\n{last_line}"
    elif (concluded["letter"] or concluded["alone"] or row["label"]) != row["label"]:
        reasoning = ""
    return {
        **_lettered(asked[2], "- {}: "),
        "question": asked[1],
        "cot": reasoning,
        "exam": "medqa",
        "answer": row["label"],
    }


def _lettered(block: str, mark: str) -> Row:
    """Returns {letter: option} of a block in which option X begins a line with mark.format(X)."""
    starts = [
        (letter, re.search("^" + mark.format(letter), block, re.MULTILINE)) for letter in LETTERS
    ]
    in_turn = _run([letter for letter, match in starts if match])
    starts = [(letter, match) for letter, match in starts if letter in in_turn]
    ends = [match.start() for _, match in starts[1:]] + [len(block)]
    return {letter: block[match.end() : end].strip() for (letter, match), end in zip(starts, ends)}
