"""Multiple-choice exams: one question as a value, the prompt that is asked, and the rows it is read from.

    question = load(Source("doctor", "exam", "exams/doctor/valid.csv"), drop_bad=False).rows[0]
    prompt(question) + answer_text(question)      # "...\nE. ...\n정답： B"

Training, few-shot and evaluation all take the prompt and the answer from here, so they cannot drift
apart. What it does not do: read answers out of generated text (that is `medkor_jax.eval.answers`).

Recognised rows: KorMedMCQA (question, A..E, answer as a letter or 1-5), MedQA (options, answer_idx),
and questions inside a chat, with their reasoning (see `_from_chat` and `_from_markdown`). A rationale (column
cot or rationale, or the reasoning) whose own answer is seen to be another than the key is left out: learnt, it
would teach a wrong answer.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from medkor_jax.data import rows
from medkor_jax.data.language import has_hangul
from medkor_jax.data.rows import BadRowReason, Example, Loaded, Row, Source

LETTERS = "ABCDE"
KORMEDMCQA_SUBJECTS = ("doctor", "nurse", "pharm", "dentist")
# A last line that only states the answer: "$\boxed{\text{C}}$" in whatever sentence, or a letter alone.
_CONCLUSION = re.compile(r"\\boxed\{(?:\\text\{)?\s*(?:(?P<letter>[A-E])\b)?|^\W*(?:Answer\W*)?(?P<alone>[A-E])\W*$")

# Where a reasoning says which letter is right: "정답은 (E) 입니다", "the answer is **B**". Not "정답은 C1인 B번", nor
# "정답은 A가 아니다".
_STATED = re.compile(
    r"정답(?:은|:|：)?\s*[(\[*\"']*(?P<ko>[A-E])(?![A-Za-z0-9])(?!\W*(?:가|는|은)?\s*아니)"
    r"|\b[Aa]nswer(?:\s+is|:)\s*[(\[*\"']*(?P<en>[A-E])(?![A-Za-z0-9'])")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question. `answer` counts from 0; `id` is unique within its exam; `fact` is set by the embedded exam only."""

    id: str
    exam: str
    year: int | None
    language: str
    question: str
    options: tuple[str, ...]
    answer: int
    rationale: str = ""
    fact: str = ""


def prompt(question: Question) -> str:
    """Returns what the model is asked, up to and including the colon; the English form is its exact twin.

    Source: lm-evaluation-harness 0.4.13, task kormedmcqa v3.0, doc_to_text (full-width colon, no space after it).
    """
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, question.options))
    return f"{question.question.strip()}\n{options}{'정답：' if question.language == 'ko' else 'Answer:'}"


def cloze_prompt(question: Question) -> str:
    """Returns the question without its options, up to and including the colon; an option's text may follow it."""
    return f"{question.question.strip()}\n{'정답：' if question.language == 'ko' else 'Answer:'}"


def answer_text(question: Question) -> str:
    """Returns what follows the prompt, e.g. " B".

    The space belongs to it: the harness's few-shot examples read "정답： B", so a model that follows them
    answers with the token of " B" and not of "B".
    """
    return f" {LETTERS[question.answer]}"


def example(question: Question) -> Example:
    """Returns the question as something to learn from: loss on the answer, and on the eos that ends it."""
    parts = ((prompt(question), False), (answer_text(question), True))
    return Example(question.id, parts, question.language, splittable=False)


def load(source: Source, *, drop_bad: bool) -> Loaded[Question]:
    """Returns the questions of an exam or reasoning source, in file order.

    Raises: BadDataError for bad rows (unless `drop_bad`), for wrong column names and for an empty file.
    """
    if source.path == rows.EMBEDDED:
        from medkor_jax.data import embedded

        if not source.language:
            raise ValueError(f"source {source.name!r}: the embedded exam is in two languages; set language to 'ko' or 'en'")
        told = embedded.reasonings if source.kind == "reasoning" else embedded.questions
        questions = told(source.split, source.language)
        return Loaded(questions[:source.limit or None], [])
    seen: dict[str, int] = {}

    def convert(number: int, row: Row) -> Question:
        question = question_from_row(row, source, number)
        if seen.setdefault(question.id, number) != number:
            raise BadRowReason(f"id {question.id!r} is already that of row {seen[question.id]}")
        return question

    return rows.settle(source, *rows.split_bad(rows.convert_rows(source, convert)), drop_bad=drop_bad)


def question_from_row(row: Row, source: Source, number: int) -> Question:
    """Returns the question that one row states.

    Raises: BadRowReason if the row cannot be used, BadDataError if its columns are not those of an exam.
    """
    row = _flat(row, source)
    stem = rows.text_of(row["question"], "question")
    options = _options(row)
    answer = _answer_index(row["answer"], len(options))
    subject = row.get("subject") or row.get("config") or ""
    exam = f"kormedmcqa/{subject}" if subject in KORMEDMCQA_SUBJECTS else row.get("exam") or source.name
    split = row.get("split") or rows.part_name(source)
    numbered = f"{subject or exam}/{split}/{row.get('row', number - 1)}"
    reasoning = row.get("cot") or row.get("rationale") or ""
    rationale = rows.text_of(reasoning, "reasoning").strip() if str(reasoning).strip() else ""
    if stated_letter(rationale) not in ("", LETTERS[answer]):
        rationale = ""
    language = source.language or ("ko" if has_hangul(stem + "".join(options)) else "en")
    year = row.get("year")
    return Question(
        id=str(row.get("id") or numbered), exam=exam, year=int(year) if str(year or "").isdigit() else None, language=language,
        question=stem, options=options, answer=answer, rationale=rationale)


def stated_letter(reasoning: str) -> str:
    """Returns the letter that the reasoning states last as the answer, or "" where it states none in plain words."""
    stated = [match["ko"] or match["en"] for match in _STATED.finditer(reasoning)]
    return stated[-1] if stated else ""


def _flat(row: Row, source: Source) -> Row:
    """Returns the row with columns question, A.., answer, whichever recognised form it had."""
    if source.fields:
        missing = [name for name in source.fields if name not in row]
        if missing:
            raise rows.columns_missing(source, missing, list(row))
        if not 4 <= len(source.fields) <= 7:
            raise ValueError(f"source {source.name!r}: `fields` has {len(source.fields)} names, expected the columns of "
                             "the question, of 2 to 5 options and of the answer, in this order")
        values = [row[name] for name in source.fields]
        return {"question": values[0], **dict(zip(LETTERS, values[1:-1])), "answer": values[-1]}
    if "messages" in row:
        return _from_chat(row)
    if "label" in row and str(row.get("question", "")).lstrip().startswith("#"):
        return _from_markdown(row)
    if isinstance(row.get("options"), dict | list) and "question" in row and ("answer_idx" in row or "answer" in row):
        options = row["options"]
        options = options if isinstance(options, dict) else dict(zip(LETTERS, options))
        answer = row["answer_idx"] if "answer_idx" in row else row["answer"]
        exam = {"exam": "medqa"} if "meta_info" in row else {}
        return {**exam, **row, **options, "answer": answer}
    missing = [name for name in ("question", "A", "B", "answer") if name not in row]
    if missing:
        raise rows.columns_missing(source, missing, list(row))
    return row


def _options(row: Row) -> tuple[str, ...]:
    """Returns the options A.. of the row. A trailing one may be absent or null, but not empty: that is a lost text."""
    present = [letter for letter in LETTERS if row.get(letter) is not None]
    expected = LETTERS[:LETTERS.index(present[-1]) + 1] if present else ""
    if len(expected) < 2:
        raise BadRowReason(f"{len(expected)} options, expected 2 to {len(LETTERS)}")
    return tuple(rows.text_of(row.get(letter), f"option {letter}") for letter in expected)


def _answer_index(value: Any, count: int) -> int:
    """Returns the answer counted from 0; letters and digits count from A and from 1."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value if value is not None else "")
    text = text.strip().upper()
    valid = f"expected A to {LETTERS[count - 1]} or 1 to {count}"
    if not text:
        raise BadRowReason(f"answer is empty, {valid}")
    index = LETTERS.find(text) if len(text) == 1 and text in LETTERS else int(text) - 1 if text.isdecimal() else -1
    if not 0 <= index < count:
        raise BadRowReason(f"answer out of range: {text[:20]!r}, {valid}")
    return index


def _from_chat(row: Row) -> Row:
    """Reads a chat whose user turn holds "[문제]", the question, "[선택지]" and lettered options.

    The last line of the assistant's turn states the answer; what stands before it is the reasoning, left out if
    its answer is not the key (meta.gold).
    """
    turns = {turn.get("role"): str(turn.get("content") or "") for turn in row["messages"]}
    asked = re.search(r"\[문제\]\s*(.*?)\s*\[선택지\]\s*(.*)", turns.get("user", ""), re.DOTALL)
    answered = re.search(r"(.*)정답\s*[:：]\s*([A-E1-5])\s*$", turns.get("assistant", ""), re.DOTALL)
    if not asked or not answered:
        raise BadRowReason("no exam question in the chat: expected [문제] and [선택지] in the user's turn and "
                           "'정답: X' at the end of the assistant's")
    meta = row.get("meta") or {}
    key = meta.get("gold") or answered[2]
    reasoning = answered[1] if key == answered[2] else ""
    return {**_lettered(asked[2], r"{}\. "), "question": asked[1], "answer": key, "cot": reasoning, "subject": meta.get("subject"), "id": meta.get("id")}


def _from_markdown(row: Row) -> Row:
    """Reads a question under "## Question:" with options as "- A: ...", its letter in `label`, reasoning in `answer`.

    Reasoning that ends in another letter than `label` would teach a wrong answer: it is left out, the question stays.
    """
    asked = re.search(r"## Question:\s*(.*?)\n(- A: .*?)\s*(?:Answer:\s*)?$", str(row["question"]), re.DOTALL)
    if not asked:
        raise BadRowReason("no exam question in the text: expected '## Question:' and options as '- A: ...'")
    reasoning, _, last_line = str(row.get("answer") or "").strip().rpartition("\n")
    concluded = _CONCLUSION.search(last_line)
    if not concluded:
        reasoning = f"{reasoning}\n{last_line}"
    elif (concluded["letter"] or concluded["alone"] or row["label"]) != row["label"]:
        reasoning = ""
    return {**_lettered(asked[2], "- {}: "), "question": asked[1], "cot": reasoning, "exam": "medqa",
            "answer": row["label"]}


def _lettered(block: str, mark: str) -> Row:
    """Returns {letter: option} of a block in which option X begins a line with mark.format(X)."""
    starts = [(letter, re.search("^" + mark.format(letter), block, re.MULTILINE)) for letter in LETTERS]
    starts = [(letter, match) for letter, match in starts if match]
    ends = [match.start() for _, match in starts[1:]] + [len(block)]
    return {letter: block[match.end():end].strip() for (letter, match), end in zip(starts, ends)}
