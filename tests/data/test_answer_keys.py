"""How keys are meant, decided over the source: a shifted key makes no row bad, so each reading is held to its answers."""

import math

import pytest

from medkor_jax.data.question import answer_text, prompt
from medkor_jax.data.rows import BadDataError, Source
from medkor_jax.data.sources import load_questions

ORGANS = ["liver", "pancreas", "lung", "spleen"]


def load(path, *, drop_bad=False, **settings):
    return load_questions(Source("mine", "exam", str(path), **settings), drop_bad=drop_bad)


def answers(path, **settings):
    return [q.options[q.answer] for q in load(path, **settings).rows]


def listed(keys, name="answer", options=ORGANS, where="options", **more):
    return [
        {"question": f"Which organ is {i}?", where: options, name: key, **more}
        for i, key in enumerate(keys)
    ]


@pytest.mark.parametrize(
    "keys, expected",
    [
        ([1, 2, 3, 0], ["pancreas", "lung", "spleen", "liver"]),
        ([1, 2, 3, 4], ORGANS),
        ([2, 4], ["pancreas", "spleen"]),
        ([0, 2], ["liver", "lung"]),
        (["0", "3"], ["liver", "spleen"]),
        (["1.0", 4.0], ["liver", "spleen"]),
        (["A", "d"], ["liver", "spleen"]),
    ],
)
@pytest.mark.parametrize(
    "name, where",
    [
        ("answer", "options"),
        ("answer_idx", "options"),
        ("answer_index", "choices"),
        ("answer", "choices"),
    ],
)
def test_numbers_count_from_what_the_source_shows(write_jsonl, keys, expected, name, where):
    assert answers(write_jsonl("a.jsonl", listed(keys, name, where=where))) == expected


@pytest.mark.parametrize("drop_bad", [False, True])
@pytest.mark.parametrize(
    "keys, why",
    [
        ([1, 2, 3], "neither a 0 nor"),
        ([3], "neither a 0 nor"),
        ([0, 1, 4], "both 0 .row 1. and .* .row 3."),
    ],
)
def test_numbers_that_could_count_from_either_are_refused_with_both_readings(
    write_jsonl, keys, why, drop_bad
):
    path = write_jsonl("a.jsonl", listed(keys))
    with pytest.raises(BadDataError, match=why) as caught:
        load(path, drop_bad=drop_bad)
    shown = next(key for key in keys if 0 < key < 4)
    assert f"{ORGANS[shown]!r} counted from 0 and {ORGANS[shown - 1]!r} counted from 1" in str(
        caught.value
    )
    assert "answers_from of source 'mine'" in str(caught.value)
    assert answers(path, answers_from=1, drop_bad=True) == [ORGANS[key - 1] for key in keys if key]
    assert answers(path, answers_from=0, drop_bad=True) == [ORGANS[key] for key in keys if key < 4]


def test_how_numbers_count_is_decided_beyond_the_limit(write_jsonl):
    path = write_jsonl("a.jsonl", listed([1, 2, 3, 0]))
    assert answers(path, limit=1) == ["pancreas"] and answers(path, limit=1, skip=1) == ["lung"]


def test_text_beside_the_number_settles_it_and_must_agree(write_jsonl):
    rows = [
        {**row, "answer": text}
        for row, text in zip(listed([1, 2], "answer_idx"), ["pancreas", "lung"])
    ]
    assert answers(write_jsonl("a.jsonl", rows)) == ["pancreas", "lung"]
    rows = [{**row, "answer": text} for row, text in zip(listed([1, 2], "answer_index"), "AB")]
    assert answers(write_jsonl("b.jsonl", rows)) == ["liver", "pancreas"]
    rows = [
        {**row, "answer": text}
        for row, text in zip(listed([1, 2, 0], "answer_idx"), ["pancreas", "liver", "liver"])
    ]
    loaded = load(write_jsonl("c.jsonl", rows), drop_bad=True)
    assert (
        len(loaded.rows) == 2
        and "is option C, but the row also says that it is A" in loaded.bad[0].reason
    )


def test_kormedmcqas_numbers_count_from_one_without_a_five(write_jsonl):
    row = {"question": "무엇인가?", "A": "가", "B": "나", "C": "다", "D": "라", "E": "마"}
    keyed = [{**row, "answer": key} for key in (1, 2)]
    assert answers(write_jsonl("a.jsonl", keyed)) == ["가", "나"]
    assert answers(
        write_jsonl(
            "b.jsonl", [{**row, "subject": "nurse", "answer": key} for key in (1, "B", "5", 3.0)]
        )
    ) == ["가", "나", "마", "다"]
    whole = [{**row, "subject": "nurse", "answer": key} for key in (1, 2, 0, 3, 4)]
    assert answers(write_jsonl("d.jsonl", whole)) == ["나", "다", "가", "라", "마"]
    del row["E"]
    with pytest.raises(BadDataError, match="from 0 or from 1"):
        load(write_jsonl("e.jsonl", [{**row, "answer": 2}]))


@pytest.mark.parametrize("drop_bad", [False, True])
@pytest.mark.parametrize("keys", [(1, 0, 3), (0, 1, 2, 3, 1), (0, 2, 5)])
@pytest.mark.parametrize("more", [{"subject": "doctor"}, {}])
def test_a_zero_in_kormedmcqas_form_never_leaves_rows_one_letter_off(
    write_jsonl, keys, more, drop_bad
):
    row = {"question": "무엇인가?", "A": "가", "B": "나", "C": "다", "D": "라", "E": "마", **more}
    path = write_jsonl("a.jsonl", [{**row, "answer": key} for key in keys])
    if not more and 5 not in keys:  # its columns alone do not say that it is KorMedMCQA
        assert answers(path, drop_bad=drop_bad) == ["가나다라마"[key] for key in keys]
        return
    with pytest.raises(BadDataError, match="counted from 0 and .* counted from 1"):
        load(path, drop_bad=drop_bad)
    assert answers(path, answers_from=1, drop_bad=True) == [
        "가나다라마"[key - 1] for key in keys if key
    ]


def test_numbers_that_only_the_columns_explain_are_said(write_jsonl):
    row = {"question": "Which?", **dict(zip("ABCDE", "vwxyz"))}
    assert any(
        "count from 1, as in KorMedMCQA" in note
        for note in load(write_jsonl("a.jsonl", [{**row, "answer": 2}])).notes
    )
    assert load(write_jsonl("b.jsonl", [{**row, "subject": "nurse", "answer": 2}])).notes == ()
    with pytest.raises(BadDataError, match="from 0 or from 1"):  # six options: not its columns
        load(write_jsonl("c.jsonl", [{**row, "F": "u", "answer": 2}]))


def test_texts_beside_numbers_that_contradict_each_other_settle_nothing(write_jsonl):
    rows = [
        {**row, "answer": text}
        for row, text in zip(listed([1, 2, 3], "answer_idx"), ["pancreas", "lung", "lung"])
    ]
    with pytest.raises(BadDataError, match="the one in some rows and the other in others"):
        load(write_jsonl("a.jsonl", rows), drop_bad=True)


def test_medmcqa(write_jsonl):
    rows = [
        {
            "question": f"Which {i}?",
            **{f"op{x}": o for x, o in zip("abcd", ORGANS)},
            "cop": key,
            "exp": None,
        }
        for i, key in enumerate((1, 3, 0))
    ]
    assert answers(write_jsonl("a.jsonl", rows)) == ["pancreas", "spleen", "liver"]
    rows = [{**row, "cop": row["cop"] + 1} for row in rows]
    assert answers(write_jsonl("b.jsonl", rows)) == ["pancreas", "spleen", "liver"]


def test_answers_as_texts(write_jsonl):
    numbers = [
        {"question": "How many chambers?", "options": ["2", "4", "3", "5"], "answer": "4"},
        {"question": "How many lobes?", "options": ["1", "2", "4", "3"], "answer": 3},
    ]
    letters = [
        {"question": "Ascorbic acid is vitamin?", "options": ["D", "C", "B", "A"], "answer": "C"}
    ]
    words = [{"question": "What makes insulin?", "options": ORGANS, "answer": "Pancreas "}]
    for rows, expected in (
        (numbers + letters, ["4", "3", "C"]),
        (numbers + words, ["4", "3", "pancreas"]),
        (letters + words, ["C", "pancreas"]),
    ):
        path = write_jsonl("a.jsonl", rows)
        assert answers(path) == expected
        assert load(path).notes == (
            f"answers given as the text of an option, read as that option: {len(rows)}",
        )
    for rows in (numbers, letters):
        with pytest.raises(BadDataError, match="also texts of options.*by its text"):
            load(write_jsonl("b.jsonl", rows), drop_bad=True)
    counted = [
        {"question": f"How many {i}?", "options": ["1", "2", "3", "4"], "answer": i} for i in (2, 3)
    ]
    assert answers(write_jsonl("e.jsonl", counted)) == [
        "2",
        "3",
    ]  # the texts are the numbers counted from 1
    assert answers(write_jsonl("c.jsonl", letters + listed(["A", "B"]))) == [
        "B",
        "liver",
        "pancreas",
    ]  # a file of letters
    both = write_jsonl("d.jsonl", letters + words + listed(["A"]))
    assert answers(both, drop_bad=True) == [
        "pancreas",
        "liver",
    ]  # the first can be either, and the others do not tell


@pytest.mark.parametrize(
    "options",
    [
        {"A": "x", "B": "y", "C": "z"},
        {"c": "z", "a": "x", "b": "y"},
        ["x", "y", "z"],
        [{"key": k, "value": v} for k, v in zip("ABC", "xyz")],
        {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
        {"1": "x", "2": "y", "3": "z"},
        ["x", "y", "z", None],
    ],
)
def test_forms_of_options(write_jsonl, options):
    key = "2" if isinstance(options, dict) and "1" in options else "B"
    for where in ("options", "choices"):
        (question,) = load(
            write_jsonl("a.jsonl", [{"question": "Which?", where: options, "answer": key}])
        ).rows
        assert (question.options, question.answer) == (("x", "y", "z"), 1)


@pytest.mark.parametrize("n", [6, 7, 10])
def test_more_than_five_options_are_read_whole(write_jsonl, n):
    options = [f"option {i}" for i in range(n)]
    rows = [
        {"question": f"Which {i}?", "options": options, "answer": "ABCDEFGHIJ"[i]} for i in range(n)
    ]
    flat = [
        {"question": row["question"], **dict(zip("ABCDEFGHIJ", options)), "answer": row["answer"]}
        for row in rows
    ]
    for form in (rows, flat):
        questions = load(write_jsonl("a.jsonl", form)).rows
        assert [(q.answer, q.options) for q in questions] == [(i, tuple(options)) for i in range(n)]
    assert (
        prompt(questions[0]).endswith(f"\n{'ABCDEFGHIJ'[n - 1]}. option {n - 1}\nAnswer:")
        and answer_text(questions[-1]) == f" {'ABCDEFGHIJ'[n - 1]}"
    )


def test_more_options_than_letters_are_refused(write_jsonl):
    options = [f"option {i}" for i in range(12)]
    flat = {"question": "Which?", **dict(zip("ABCDEFGHIJKL", options)), "answer": "A"}
    for row in ({"question": "Which?", "options": options, "answer": "A"}, flat):
        easy = {"question": "Easy?", **dict(zip("ABCD", ORGANS)), "answer": "A"}
        for drop_bad in (False, True):  # without them the exam would be an easier one
            with pytest.raises(BadDataError, match="12 options, expected 2 to 10"):
                load(write_jsonl("a.jsonl", [easy, row]), drop_bad=drop_bad)


def test_numbers_and_nulls_where_text_was_expected(write_jsonl):
    row = {
        "question": "무엇인가?",
        "A": "가",
        "B": "나",
        "C": "다",
        "D": "라",
        "E": "마",
        "answer": "1.0",
        "cot": math.nan,
    }
    rows = [
        {**row, "exam": 2023, "year": "2020.0"},
        {**row, "exam": None, "year": 2021.0, "subject": None},
        {**row, "exam": math.nan, "year": "spring", "id": 7.0},
    ]
    loaded = load(write_jsonl("a.jsonl", rows))
    assert [(q.exam, q.year, q.id) for q in loaded.rows] == [
        ("2023", 2020, "2023/a/0"),
        ("mine", 2021, "mine/a/1"),
        ("mine", None, "7"),
    ]
    assert [note for note in loaded.notes if "years" in note] == [
        "years left out, since they are no number: 1"
    ]


def test_answers_from_is_zero_or_one():
    with pytest.raises(ValueError, match="answers_from is 2, expected 0 or 1"):
        Source("mine", "exam", "a.csv", answers_from=2)


def test_a_rationale_left_out_is_counted(write_jsonl):
    rows = [
        {"question": "Which?", "A": "x", "B": "y", "answer": "A", "cot": f"The answer is {letter}."}
        for letter in "AB"
    ]
    assert load(write_jsonl("a.jsonl", rows)).notes == (
        "rationales left out, since they state another answer than the key: 1",
    )
