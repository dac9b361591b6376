import csv
import gzip
import json

import pytest

from medkor_jax.data.exams import stated_letter
from medkor_jax.data.question import LETTERS, Question, answer_text, example, prompt
from medkor_jax.data.rows import BadDataError, Source
from medkor_jax.data.sources import load_questions

ROW = {
    "subject": "doctor",
    "year": 2021,
    "question": "옳은 것은? ",
    "A": "가 ",
    "B": "나",
    "C": "다",
    "D": "라",
    "E": "마",
    "answer": 2,
}


def load(path, *, drop_bad=False, **settings):
    return load_questions(Source("exam", "exam", str(path), **settings), drop_bad=drop_bad)


def write_csv(path, rows, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, ["", *rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_prompt_is_that_of_the_harness():
    question = Question(
        "1", "kormedmcqa/doctor", 2021, "ko", " 옳은 것은? ", ("가 ", "나", "다", "라", "마"), 1
    )
    # lm-evaluation-harness 0.4.13, kormedmcqa: only the question is stripped, the colon is full-width.
    assert prompt(question) == "옳은 것은?\nA. 가 \nB. 나\nC. 다\nD. 라\nE. 마\n정답："
    assert answer_text(question) == " B"
    assert (
        prompt(Question("1", "x", None, "en", "Which?", ("a", "b"), 0))
        == "Which?\nA. a\nB. b\nAnswer:"
    )


def test_prompt_equals_the_template_of_an_installed_harness():
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    import pathlib

    import jinja2
    import yaml

    class IgnoresFunctions(yaml.SafeLoader):
        pass

    IgnoresFunctions.add_constructor("!function", lambda loader, node: None)
    template = pathlib.Path(lm_eval.__file__).parent / "tasks/kormedmcqa/_template_yaml"
    task = yaml.load(template.read_text("utf-8"), IgnoresFunctions)
    question = Question(
        "1", "x", None, "ko", ROW["question"], tuple(ROW[letter] for letter in LETTERS[:5]), 1
    )
    assert prompt(question) == jinja2.Template(task["doc_to_text"]).render(ROW)
    shown = jinja2.Template(task["fewshot_config"]["doc_to_text"]).render(ROW)
    assert shown.startswith(prompt(question) + answer_text(question))


def test_example_has_loss_on_the_answer_only():
    question = Question("q", "x", None, "ko", "가?", ("나", "다"), 0)
    assert example(question).parts == ((prompt(question), False), (" A", True))
    assert not example(question).splittable and example(question).eos


@pytest.mark.parametrize("answer", [2, "2", "B", " b ", 2.0])
def test_answer_forms(write_jsonl, answer):
    questions = load(write_jsonl("valid.jsonl", [{**ROW, "answer": answer}])).rows
    assert questions[0].answer == 1
    assert (questions[0].id, questions[0].exam, questions[0].year) == (
        "doctor/valid/0",
        "kormedmcqa/doctor",
        2021,
    )
    assert questions[0].language == "ko"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"C": ""}, "option C is empty"),
        ({"C": None}, "option C is missing"),
        ({"answer": 6}, "answer out of range: '6', expected A to E or 1 to 5"),
        ({"answer": "F"}, "answer out of range: 'F'"),
        ({"answer": ""}, "answer is empty"),
        ({"question": "  "}, "question is empty"),
        ({"question": "20 \ufffdm"}, "question holds U+FFFD"),
        ({"D": ["x"]}, "option D is list, expected text"),
    ],
)
def test_bad_rows_are_refused_with_file_row_and_reason(write_jsonl, change, reason):
    path = write_jsonl("exam.jsonl", [ROW, {**ROW, **change}, ROW])
    with pytest.raises(BadDataError) as caught:
        load(path)
    (bad,) = caught.value.bad
    assert (bad.file, bad.row) == (path, 2) and reason in bad.reason
    assert f"{path}, row 2: " in str(caught.value)
    loaded = load(path, drop_bad=True)
    assert len(loaded.rows) == 2 and loaded.bad == [bad]


def test_answer_must_be_among_the_options_there_are(write_jsonl):
    four = {name: value for name, value in ROW.items() if name != "E"}
    assert len(load(write_jsonl("four.jsonl", [four])).rows[0].options) == 4
    with pytest.raises(BadDataError, match="answer out of range: '5', expected A to D or 1 to 4"):
        load(write_jsonl("five.jsonl", [{**four, "answer": 5}]))


def test_wrong_columns_name_what_there_is_and_the_nearest(write_jsonl):
    row = {"Question": "가?", "A": "나", "B": "다", "anwser": 1}
    with pytest.raises(BadDataError) as caught:
        load(write_jsonl("exam.jsonl", [row]), drop_bad=True)
    assert "'question' (nearest: 'Question')" in str(
        caught.value
    ) and "'answer' (nearest: 'anwser')" in str(caught.value)
    assert "the columns are 'Question', 'A', 'B', 'anwser'" in str(caught.value)


def test_fields_name_other_columns(write_jsonl):
    path = write_jsonl("exam.jsonl", [{"stem": "Which?", "no": "x", "yes": "y", "key": 2}])
    (question,) = load(path, fields=("stem", "no", "yes", "key")).rows
    assert (question.question, question.options, question.answer) == ("Which?", ("x", "y"), 1)


def test_same_id_twice_is_refused(write_jsonl):
    with pytest.raises(BadDataError, match="row 2: id 'q1' is already that of row 1"):
        load(write_jsonl("exam.jsonl", [{**ROW, "id": "q1"}, {**ROW, "id": "q1"}]))


def test_csv_keeps_none_as_a_word_and_quoted_lines_as_one_row(tmp_path):
    rows = [{**ROW, "question": "첫 줄\n둘째 줄", "A": "None", "B": "NA"}, ROW]
    first, second = load(write_csv(tmp_path / "valid.csv", rows)).rows
    assert first.options[:2] == ("None", "NA") and "\n" in first.question
    assert second.id == "doctor/valid/1"


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = write_csv(tmp_path / "exam.csv", [ROW], encoding="cp949")
    with pytest.raises(
        BadDataError, match="row 1: question holds bytes that are not UTF-8 at character 0.*CP949"
    ):
        load(path)


def test_csv_row_with_a_lost_cell_is_refused(tmp_path):
    path = tmp_path / "exam.csv"
    path.write_text("question,A,B,answer\nWhich?,x,y,1\nWhich?,x,1\n")
    with pytest.raises(BadDataError, match="row 2: 3 cells, expected 4"):
        load(path)


def test_parquet_and_gzip_equal_csv(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW, ROW]), tmp_path / "valid.parquet")
    with gzip.open(tmp_path / "valid.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(ROW) + "\n\n" + json.dumps(ROW) + "\n")
    expected = load(write_csv(tmp_path / "valid.csv", [ROW, ROW])).rows
    assert load(tmp_path / "valid.parquet").rows == expected
    # The blank line counts as a row, so that row numbers stay line numbers.
    assert [q.id for q in load(tmp_path / "valid.jsonl.gz").rows] == [
        "doctor/valid/0",
        "doctor/valid/2",
    ]


def test_hub_layout(tmp_path, monkeypatch):
    """A directory as the hub lays KorMedMCQA out, read by `datasets` itself: integer answers, named splits."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "KorMedMCQA"
    for part, count in (("dev", 2), ("fewshot", 1)):
        (root / "doctor").mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([ROW] * count), root / f"doctor/{part}-00000-of-00001.parquet"
        )
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: doctor\n  data_files:\n  - split: dev\n    path: doctor/dev-*\n"
        "  - split: fewshot\n    path: doctor/fewshot-*\n---\n"
    )
    rows = load(root, subset="doctor", split="dev").rows
    assert [(q.id, q.answer) for q in rows] == [("doctor/dev/0", 1), ("doctor/dev/1", 1)]
    with pytest.raises(BadDataError, match="could not|could be loaded"):
        load(root, subset="doctor", split="test")


def test_hub_id_goes_to_datasets(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **named: asked.append((args, named)) or [ROW]
    )
    assert (
        load("sean0042/KorMedMCQA", subset="doctor", split="fewshot").rows[0].id
        == "doctor/fewshot/0"
    )
    assert asked == [(("sean0042/KorMedMCQA", "doctor"), {"split": "fewshot"})]


def test_missing_file_says_so():
    with pytest.raises(BadDataError, match="exams/none.csv: no such file"):
        load("exams/none.csv")


def test_medqa(write_jsonl):
    row = {
        "question": "Which drug?",
        "answer": "Ceftriaxone",
        "options": {"A": "X", "B": "Y", "C": "Ceftriaxone"},
        "meta_info": "step1",
        "answer_idx": "C",
    }
    (question,) = load(write_jsonl("dev.jsonl", [row])).rows
    assert (question.exam, question.language, question.answer, question.id) == (
        "medqa",
        "en",
        2,
        "medqa/dev/0",
    )


def test_questions_inside_chats(write_jsonl):
    asked = "풀이하세요.\n\n[문제]\n무엇인가?\n결과: A. 음성\n\n[선택지]\nA. 가\nB. 나\nC. 다"
    chat = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": "B는 아니다.\n정답: C"},
    ]
    rows = [
        {"messages": chat, "meta": {"subject": "nurse", "gold": "C", "id": "n1"}},
        {"messages": chat, "meta": {"subject": "nurse", "gold": "A", "id": "n2"}},
    ]
    agreed, disagreed = load(write_jsonl("cot.jsonl", rows)).rows
    assert agreed.question == "무엇인가?\n결과: A. 음성" and agreed.options == ("가", "나", "다")
    assert (agreed.answer, agreed.rationale, agreed.exam) == (2, "B는 아니다.", "kormedmcqa/nurse")
    assert (disagreed.answer, disagreed.rationale) == (
        0,
        "",
    )  # reasoning to another answer than the key


@pytest.mark.parametrize(
    "last_line, rationale",
    [
        ("The final answer is $\\boxed{\\text{B}}$", "Because."),
        ("B", "Because."),
        ("**Answer:** B.", "Because."),
        ("The final answer is $\\boxed{1/400}$", "Because."),
        ("The final answer is $\\boxed{C}$", ""),
        ("**Answer:** C", ""),
        ("So Bismuth is best.", "Because.\nSo Bismuth is best."),
    ],
)
def test_questions_in_markdown(write_jsonl, last_line, rationale):
    row = {
        "question": "# Read this.\n## Question: Which?\nNow?\n- A: x\n- B: y: z\n- C: w\n\nAnswer: \n",
        "label": "B",
        "answer": "Because.\n" + last_line,
    }
    (question,) = load(write_jsonl("cot.jsonl", [row])).rows
    assert (question.question, question.options, question.answer) == (
        "Which?\nNow?",
        ("x", "y: z", "w"),
        1,
    )
    assert question.rationale == rationale


@pytest.mark.parametrize(
    "reasoning, letter",
    [
        ("따라서, 정답은 (E) 입니다.", "E"),
        ("정답: **B**", "B"),
        ("정답은 A가 아니라 다르다. 정답은 C이다.", "C"),
        ("정답은 A가 아니다.", ""),
        ("정답은 C1인 B번입니다.", ""),
        ("the answer is (D).", "D"),
        ("Answer: A", "A"),
        ("The answer is an antibody. Answer: Asthma.", ""),
        ("answer is A, no: the answer is B", "B"),
        ("I'd say C.", ""),
        ("", ""),
    ],
)
def test_the_letter_that_a_reasoning_states_last(reasoning, letter):
    assert stated_letter(reasoning) == letter


def test_a_rationale_to_another_letter_than_the_key_is_left_out(write_jsonl):
    rows = [
        {**ROW, "cot": "따라서 정답은 (B) 입니다."},
        {**ROW, "rationale": "따라서 정답은 (C) 입니다."},
    ]
    assert [q.rationale for q in load(write_jsonl("cot.jsonl", rows)).rows] == [
        "따라서 정답은 (B) 입니다.",
        "",
    ]


def test_embedded_exam_needs_a_language():
    with pytest.raises(ValueError, match="two languages: say which .--language ko or en"):
        load("embedded", split="valid")
    korean, english = (
        load("embedded", split="valid", language=language).rows for language in ("ko", "en")
    )
    assert [q.answer for q in korean] == [q.answer for q in english] and korean[0].language == "ko"


REAL_COUNTS = {
    "doctor/train": 1890,
    "doctor/valid": 164,
    "doctor/test": 435,
    "doctor/fewshot": 5,
    "nurse/train": 582,
    "nurse/valid": 291,
    "nurse/fewshot": 5,
    "pharm/train": 632,
    "pharm/valid": 300,
    "pharm/fewshot": 5,
    "dentist/valid": 304,
    "dentist/fewshot": 5,
}


def test_real_exams_load_whole(shared_data):
    for part, count in REAL_COUNTS.items():
        questions = load(shared_data / f"kormedmcqa/{part}.csv").rows
        assert len(questions) == count, part
        assert all(
            q.language == "ko"
            and len(q.options) == 5
            and q.exam == f"kormedmcqa/{part.split('/')[0]}"
            for q in questions
        )


def test_real_broken_rows_are_refused(shared_data):
    with pytest.raises(BadDataError) as caught:
        load(shared_data / "kormedmcqa/dentist/train.csv")
    assert [(bad.row, "U+FFFD" in bad.reason) for bad in caught.value.bad] == [
        (44, True),
        (208, True),
    ]
    assert len(load(shared_data / "kormedmcqa/dentist/train.csv", drop_bad=True).rows) == 295


def test_real_fewshot_digits_mean_what_the_letters_mean(shared_data):
    for subject in ("doctor", "nurse", "pharm", "dentist"):
        valid = {q.question: q for q in load(shared_data / f"kormedmcqa/{subject}/valid.csv").rows}
        for shot in load(shared_data / f"kormedmcqa/{subject}/fewshot.csv").rows:
            assert valid[shot.question].answer == shot.answer


def test_real_english_exams(shared_data):
    english = load(shared_data / "kormedmcqa_en/doctor-valid.jsonl").rows
    korean = load(shared_data / "kormedmcqa/doctor/valid.csv").rows
    assert [(q.id, q.answer) for q in english] == [(q.id, q.answer) for q in korean]
    assert {q.language for q in english} == {"en"}
    assert len(load(shared_data / "kormedmcqa_en/doctor-train-sample.jsonl").rows) == 126
    assert len(load(shared_data / "english_exam/medqa-5-options-dev.jsonl").rows) == 1272


def test_real_reasoning(shared_data):
    medqa = load(shared_data / "english_exam/medqa-train-cot-458.jsonl").rows
    assert (
        len(medqa) == 458 and sum(bool(q.rationale) for q in medqa) == 434
    )  # the others end elsewhere than the key
    assert not any(
        "boxed" in q.rationale or q.rationale.endswith("\n" + LETTERS[q.answer]) for q in medqa
    )
    korean = load(shared_data / "kormedmcqa_cot/train-r1.jsonl.gz", drop_bad=True)
    assert len(korean.rows) == 2000 and [bad.row for bad in korean.bad] == [549, 1140, 1145, 1506]
    train = {
        "".join(q.question.split()): q
        for q in load(shared_data / "kormedmcqa/pharm/train.csv").rows
    }
    pharm = [q for q in korean.rows if q.exam == "kormedmcqa/pharm"]
    same = [q for q in pharm if "".join(q.question.split()) in train]
    assert len(same) >= 0.98 * len(pharm) and all(
        train["".join(q.question.split())].answer == q.answer for q in same
    )
