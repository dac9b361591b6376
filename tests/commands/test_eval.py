"""What `medkor eval` does with files that were read as something else: through the whole evaluation, on tiny weights."""

import json
import unicodedata

import pytest

from medkor_jax.commands.eval import evaluate_file, evaluate_pairs
from medkor_jax.data.rows import BadDataError
from medkor_jax.train.rewards import Reward

ELEMENTS = [
    "sodium",
    "potassium",
    "calcium",
    "iron",
    "zinc",
    "copper",
    "iodine",
    "selenium",
    "magnesium",
    "fluoride",
]


@pytest.fixture
def write(tmp_path):
    def write(name, rows, form="NFC"):
        path = tmp_path / name
        path.write_text(
            "".join(
                unicodedata.normalize(form, json.dumps(row, ensure_ascii=False)) + "\n"
                for row in rows
            ),
            "utf-8",
        )
        return str(path)

    return write


def test_ten_options_are_asked_whole_and_chance_is_a_tenth(tiny_base_dir, write, capsys):
    rows = [
        {"question": f"Which is {i}?", "options": ELEMENTS, "answer_index": i} for i in (0, 6, 9)
    ]
    report = evaluate_file(
        str(tiny_base_dir), write("ten.jsonl", rows), mode="reason", max_new_tokens=3
    )
    assert [(a.key, a.n_options) for a in report.answers] == [("A", 10), ("G", 10), ("J", 10)]
    assert report.overall.chance == pytest.approx(0.1)
    assert "answers are numbers and count from 0 (0 to 9 are there)" in capsys.readouterr().out


def test_numbers_and_nulls_for_names_of_exams_are_scored(tiny_base_dir, write):
    row = {
        "question": "무엇인가?",
        "A": "가",
        "B": "나",
        "C": "다",
        "D": "라",
        "E": "마",
        "answer": 1,
    }
    path = write(
        "types.jsonl", [{**row, "exam": 2023, "year": 2020.0}, {**row, "exam": None, "year": None}]
    )
    report = evaluate_file(str(tiny_base_dir), path, mode="letter")
    assert "2023" in report.table() and json.dumps(report.summary())
    assert [a.exam for a in report.answers] == ["2023", path]


def test_decomposed_questions_have_the_score_of_composed_ones_and_it_is_said(
    tiny_base_dir, write, capsys
):
    row = {
        "question": "인슐린을 만드는 기관은?",
        "A": "간",
        "B": "폐",
        "C": "췌장",
        "D": "신장",
        "E": "비장",
        "answer": 3,
    }
    reports = [
        evaluate_file(str(tiny_base_dir), write(f"{form}.jsonl", [row], form), mode="letter")
        for form in ("NFC", "NFD")
    ]
    assert reports[0].answers[0].probabilities == reports[1].answers[0].probabilities
    assert (
        capsys.readouterr().out.count(
            "rows in decomposed form (macOS writes Hangul so), read as composed (NFC): 1"
        )
        == 1
    )


def test_keys_that_can_be_read_in_two_ways_are_refused_before_the_weights_are_read(write):
    path = write("either.jsonl", [{"question": "Which?", "options": ELEMENTS[:4], "answer": 1}])
    with pytest.raises(
        BadDataError, match="'potassium' counted from 0 and 'sodium' counted from 1"
    ):
        evaluate_file("no weights", path, mode="letter", drop_bad=True)


def test_notes_on_pairs_are_said(tiny_base_dir, tmp_path, capsys):
    (tmp_path / "a.tsv").write_text("One.\t하나.\tCC-BY\n", "utf-8")
    evaluate_pairs(str(tiny_base_dir), str(tmp_path / "a.tsv"), max_new_tokens=2)
    assert "lines with more than two cells, the further ones left out: 1" in capsys.readouterr().out


def test_a_letter_past_e_is_rewarded(make_ten):
    question, reward = make_ten(6), Reward()
    for letter, is_right, is_parsed in (("G", True, True), ("B", False, True), ("K", False, False)):
        earned = reward.score(f" <R> because <R/> {letter}", question, n_tokens=9, is_finished=True)
        assert (earned.is_right, earned.is_parsed) == (is_right, is_parsed)


@pytest.fixture
def make_ten():
    from medkor_jax.data.question import Question

    return lambda answer: Question("q", "exam", None, "en", "Which?", tuple(ELEMENTS), answer)
