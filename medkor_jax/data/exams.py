"""Multiple-choice exams, read from files, hub data sets, or what is embedded.

    load(Source("doctor", "exam", "exams/doctor/valid.csv"), drop_bad=False).rows[0]      # a Question

What a question is, and how it is asked: `question`.

Recognised rows: see `exam_rows`; how their keys are meant is decided over the whole source, see `answer_keys`. A
rationale (column cot or rationale, or the reasoning) whose own answer is seen to be another than the key is left out:
learnt, it would teach a wrong answer.
"""

from __future__ import annotations

import dataclasses
import re

from medkor_jax.data import embedded, rows
from medkor_jax.data.answer_keys import AmbiguousKeys, read_keys
from medkor_jax.data.cells import BadRowReason, plain_number, text_of
from medkor_jax.data.exam_rows import KORMEDMCQA_SUBJECTS, Draft, draft_from_row
from medkor_jax.data.language import has_hangul
from medkor_jax.data.lines import Row
from medkor_jax.data.notes import Note, Tally
from medkor_jax.data.parts import is_of_part
from medkor_jax.data.question import LETTERS, Question
from medkor_jax.data.rows import BadDataError, BadRow, Loaded, Source

# Where a reasoning says which letter is right: "정답은 (E) 입니다", "the answer is **B**". Not "정답은 C1인 B번", nor
# "정답은 A가 아니다".
_STATED = re.compile(
    r"정답(?:은|:|：)?\s*[(\[*\"']*(?P<ko>[A-J])(?![A-Za-z0-9])(?!\W*(?:가|는|은)?\s*아니)"
    r"|\b[Aa]nswer(?:\s+is|:)\s*[(\[*\"']*(?P<en>[A-J])(?![A-Za-z0-9'])(?!(?<=I)\s+[a-z])"
)


def load(source: Source, *, drop_bad: bool) -> Loaded[Question]:
    """Returns the questions of an exam or reasoning source, in file order.

    Raises: BadDataError for bad rows (unless `drop_bad`), for wrong column names and for an empty file.
    """
    if source.path == rows.EMBEDDED:
        return Loaded(_embedded(source)[: source.limit or None], [])
    tally = Tally()
    # How keys count is decided over all rows, also where only the first, or a part, are wanted.
    whole = dataclasses.replace(source, limit=0, held_share=0.0, part="")
    left_out: set[int] = set()

    def convert(number: int, row: Row) -> tuple[int, Draft]:
        if not is_of_part(source, row):
            left_out.add(number)
        return number, draft_from_row(row, source, number)

    found = rows.convert_rows(whole, convert, tally=tally)
    items = [
        item for item in found if not isinstance(item, Note)
    ]  # the notes are taken from the tally, at the end
    drafts = [item for item in items if not isinstance(item, BadRow)]
    try:
        keys = read_keys(
            [draft.key for _, draft in drafts],
            answers_from=source.answers_from,
            name=source.name,
            tally=tally,
        )
    except AmbiguousKeys as error:
        bad = [
            BadRow(rows.file_label(source), 0, str(error)),
            *(item for item in items if isinstance(item, BadRow)),
        ]
        raise BadDataError(
            bad, advice="answers that can be read in two ways, which --drop-bad does not decide"
        ) from None
    answers = dict(zip((number for number, _ in drafts), keys))
    seen: dict[str, int] = {}
    read: list[Question | BadRow] = []
    mine = [item for item in items if isinstance(item, BadRow) or item[0] not in left_out]
    for item in mine[: source.limit or None]:
        if isinstance(item, BadRow):
            read.append(item)
            continue
        number, draft = item
        try:
            question = _question(draft, answers[number], source, number, tally)
            if seen.setdefault(question.id, number) != number:
                raise BadRowReason(f"id {question.id!r} is already that of row {seen[question.id]}")
            read.append(question)
        except BadRowReason as reason:
            read.append(BadRow(rows.file_label(source), number, str(reason)))
    return rows.settle(source, *rows.split_bad([*read, *tally.notes()]), drop_bad=drop_bad)


def _embedded(source: Source) -> list[Question]:
    """Raises: ValueError for what the embedded exam does not have."""
    if not source.language:
        raise ValueError(
            f"source {source.name!r}: the embedded exam is in two languages: say which (--language ko or en; in a config, `language` of the source)"
        )
    asked = (source.split, source.language, source.subset)
    if source.kind != "reasoning":
        return embedded.questions(*asked)
    return embedded.reasonings(*asked, "+".join(source.rationale) or "rationale")


def question_from_row(row: Row, source: Source, number: int) -> Question:
    """Returns the question that one row states by itself.

    Raises: BadRowReason if the row cannot be used, BadDataError if its columns are not those of an exam; AmbiguousKeys.
    """
    draft, tally = draft_from_row(row, source, number), Tally()
    (answer,) = read_keys(
        [draft.key], answers_from=source.answers_from, name=source.name, tally=tally
    )
    return _question(draft, answer, source, number, tally)


def _question(
    draft: Draft, answer: int | str, source: Source, number: int, tally: Tally
) -> Question:
    if isinstance(answer, str):
        raise BadRowReason(answer)
    row, subject, options = draft.row, draft.subject, draft.options
    exam = (
        f"kormedmcqa/{subject}"
        if subject in KORMEDMCQA_SUBJECTS
        else plain_number(row.get("exam")) or source.name
    )
    split = plain_number(row.get("split")) or rows.part_name(source)
    numbered = f"{subject or exam}/{split}/{row.get('row', number - 1)}"
    reasoning = next(
        (row[name] for name in ("cot", "rationale") if plain_number(row.get(name))), ""
    )
    rationale = text_of(reasoning, "reasoning").strip() if reasoning != "" else ""
    if stated_letter(rationale, len(options)) not in ("", LETTERS[answer]):
        rationale = ""
        if source.kind == "exam":  # `reasoning` counts its own
            tally.count("rationales left out, since they state another answer than the key")
    language = source.language or ("ko" if has_hangul(draft.question + "".join(options)) else "en")
    year = plain_number(row.get("year"))
    tally.count("years left out, since they are no number", bool(year) and not year.isdecimal())
    return Question(
        id=plain_number(row.get("id")) or numbered,
        exam=exam,
        year=int(year) if year.isdecimal() else None,
        language=language,
        question=draft.question,
        options=options,
        answer=answer,
        rationale=rationale,
        number=_number(row),
        origin=plain_number(row.get("translated_from")),
        asked_as=source.asked_as,
    )


def _number(row: Row) -> str:
    """Returns "period/number" of KorMedMCQA's columns, or what a row of ours says."""
    parts = [plain_number(row.get(name)) for name in ("period", "q_number")]
    return "/".join(parts) if all(parts) else plain_number(row.get("number"))


def stated_letter(reasoning: str, n_options: int = 5) -> str:
    """Returns the letter that the reasoning states last as the answer, or "" where it states none in plain words.

    Of up to five options A to E are letters, as they were for those who stated them; of more, those there are.
    """
    stated = [match["ko"] or match["en"] for match in _STATED.finditer(reasoning)]
    stated = [letter for letter in stated if letter in LETTERS[: max(5, n_options)]]
    return stated[-1] if stated else ""
