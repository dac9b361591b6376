"""An exam translated, checked, and the same whether or not the run was killed."""

import dataclasses
import json

import pytest

from medkor_jax import cli
from medkor_jax.commands.data_translate import translate_exam
from medkor_jax.data import embedded
from medkor_jax.data.exams import load
from medkor_jax.data.likeness import content_key
from medkor_jax.data.pairs import LABELS
from medkor_jax.data.question import Question
from medkor_jax.data.rows import Source
from medkor_jax.data.style import Plain
from medkor_jax.eval.exam_translation import finish_exam
from medkor_jax.eval.scoring import Continuation
from medkor_jax.eval.translation_work import Work

KOREAN, ENGLISH = (embedded.questions("valid", language)[:20] for language in ("ko", "en"))


class Characters:
    bos_id = 2

    def encode_batch(self, texts):
        return [[ord(c) for c in text] for text in texts]


class Translator:
    """Knows the words of the embedded exam; dies at the call number `dies_at`."""

    style = Plain(Characters())

    def __init__(self, to, dies_at=None, spoil=None):
        given = {"en": "ko", "ko": "en"}[to]
        self.prompt = f"{LABELS[given]} {{}}\n{LABELS[to]}"
        sides = (KOREAN, ENGLISH) if to == "en" else (ENGLISH, KOREAN)
        self.known = {}
        for before, after in zip(*sides):
            self.known |= zip(
                (before.question, *before.options), (after.question, *after.options), strict=True
            )
        self.known |= spoil or {}
        self.calls, self.dies_at = [], dies_at

    def complete(self, prompts, *, max_new_tokens, stop):
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        asked = ["".join(map(chr, p[1:])) for p in prompts]
        self.calls.append(asked)
        answers = {self.prompt.format(text): answer for text, answer in self.known.items()}
        found = [answers[text] for text in asked]
        return [c if isinstance(c, Continuation) else Continuation(f" {c}", 5, True) for c in found]


def run(tmp_path, scorer, questions=KOREAN, to="en", batch_size=3, name="out.jsonl"):
    out = tmp_path / name
    work = Work(tmp_path / f"{name}.work.jsonl", {"to": to, "batch_size": batch_size}, questions)
    return finish_exam(scorer, questions, work, to=to, out=out, batch_size=batch_size)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("to, before, after", [("en", KOREAN, ENGLISH), ("ko", ENGLISH, KOREAN)])
def test_the_exam_reads_back_in_the_other_language(tmp_path, to, before, after):
    done = run(tmp_path, Translator(to), before, to)
    assert (done.n_questions, done.n_passed, done.faults, done.kept) == (20, 20, (), 0)
    back = load(Source("t", "exam", str(tmp_path / "out.jsonl")), drop_bad=False).rows
    assert list(back) == [
        dataclasses.replace(q, fact="", origin=content_key(given))
        for q, given in zip(after, before)
    ]
    assert read(tmp_path / "out.jsonl.failed.jsonl") == []


@pytest.mark.parametrize("half_a_line", ["", '{"id": "embedded/va'])
@pytest.mark.parametrize("whole_lines", [0, 1])
def test_a_killed_run_goes_on_to_the_same_file(tmp_path, half_a_line, whole_lines):
    run(tmp_path, unbroken := Translator("en"), name="a.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Translator("en", dies_at=4), name="b.jsonl")
    work = tmp_path / "b.jsonl.work.jsonl"
    whole = read(tmp_path / "a.jsonl.work.jsonl")[
        13 : 13 + whole_lines
    ]  # of a batch of which the rest was not written
    with work.open("a", encoding="utf-8") as file:
        file.write(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole) + half_a_line
        )
    second = Translator("en")
    done = run(tmp_path, second, name="b.jsonl")
    assert done.kept == 12 and second.calls == unbroken.calls[4:]
    for name in ("{}", "{}.work.jsonl", "{}.failed.jsonl"):
        assert (tmp_path / name.format("b.jsonl")).read_bytes() == (
            tmp_path / name.format("a.jsonl")
        ).read_bytes()
    again = run(tmp_path, None, name="b.jsonl")  # nothing is left to translate
    assert (
        again.kept == 20
        and (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    )


def test_work_begun_with_other_settings_is_refused(tmp_path):
    run(tmp_path, Translator("en"))
    with pytest.raises(ValueError, match="other settings: batch_size was 3, is 4"):
        run(tmp_path, Translator("en"), batch_size=4)
    (tmp_path / "out.jsonl.work.jsonl").write_text("something else\n")
    with pytest.raises(ValueError, match="no work file of this program"):
        run(tmp_path, Translator("en"))


def test_failed_rows_are_listed_with_reason_and_left_out(tmp_path):
    spoil = {
        KOREAN[1].question: "아직 한국어",
        KOREAN[4].options[2]: Continuation(" cut", 9, False),
    }
    done = run(tmp_path, Translator("en", spoil=spoil))
    held = [
        q.id
        for q in KOREAN
        if q.question == KOREAN[1].question or KOREAN[4].options[2] in q.options
    ]
    assert [fault.id for fault in done.faults] == held and done.n_passed == 20 - len(held)
    assert {row["id"] for row in read(tmp_path / "out.jsonl")} == {q.id for q in KOREAN} - set(held)
    failed = {row["id"]: row for row in read(tmp_path / "out.jsonl.failed.jsonl")}
    assert failed[KOREAN[1].id]["reasons"] == ["question has Korean left: '아직 한국어'"]
    assert failed[KOREAN[1].id]["translated_from"]["question"] == KOREAN[1].question
    assert failed[KOREAN[4].id]["reasons"][0] == "a text was cut by length"
    assert (
        f"failed: {KOREAN[1].id}: question has Korean left" in done.table()
        and "out.jsonl.failed.jsonl" in done.table()
    )


def test_nothing_that_passes_is_an_error_and_no_exam(tmp_path):
    scorer = Translator("en")
    scorer.known = dict.fromkeys(scorer.known, "")
    with pytest.raises(
        ValueError, match="none of the 20 translated questions passes.*question is empty"
    ):
        run(tmp_path, scorer)
    assert (
        not (tmp_path / "out.jsonl").exists()
        and len(read(tmp_path / "out.jsonl.failed.jsonl")) == 20
    )


def test_lines_are_translated_one_by_one_and_what_needs_none_is_kept(tmp_path):
    question = Question(
        "q", "x", 2020, "ko", "증례.\n\nHb 12.5 g/dL\n진단은?", ("1,000", "MRI", "암", "빈혈"), 3
    )
    scorer = Translator(
        "en", spoil={"증례.": "Case.", "진단은?": "What is it?", "암": "cancer", "빈혈": "anemia"}
    )
    run(tmp_path, scorer, [question])
    assert scorer.calls == [
        [scorer.prompt.format(text) for text in ("증례.", "진단은?", "암", "빈혈")]
    ]
    (row,) = read(tmp_path / "out.jsonl")
    assert row == {
        "id": "q", "exam": "x", "year": 2020, "translated_from": content_key(question), "question": "Case.\n\nHb 12.5 g/dL\nWhat is it?", "A": "1,000", "B": "MRI",
        "C": "cancer", "D": "anemia", "answer": "D",
    }  # fmt: skip


def test_a_model_translates_from_the_command_line_and_goes_on_after_a_kill(
    tiny_base_dir, tmp_path, capsys
):
    """A random model: nothing passes, but its work is the same with and without a kill in between."""
    arguments = {"to": "en", "limit": 4, "batch_size": 2, "max_new_tokens": 4}

    def kill(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        translate_exam(
            str(tiny_base_dir), "embedded", out=tmp_path / "a.jsonl", on_progress=kill, **arguments
        )
    assert len(read(tmp_path / "a.jsonl.work.jsonl")) == 1 + 2
    for out in ("a.jsonl", "b.jsonl"):
        code = cli.main([
            "data", "translate", "--weights", str(tiny_base_dir), "--exam", "embedded", "--to", "en", "--out", str(tmp_path / out),
            "--limit", "4", "--batch-size", "2", "--max-new-tokens", "4",
        ])  # fmt: skip
        assert code == 1 and "none of the 4 translated questions passes" in capsys.readouterr().err
    assert (tmp_path / "a.jsonl.work.jsonl").read_bytes() == (
        tmp_path / "b.jsonl.work.jsonl"
    ).read_bytes()
    (header, *lines) = read(tmp_path / "b.jsonl.work.jsonl")
    assert [line["id"] for line in lines] == [q.id for q in embedded.questions("train", "ko")[:4]]
    assert any(line["question"] for line in lines) and header["to"] == "en"


def test_an_exam_in_that_language_already_is_refused_before_the_weights_are_read(tmp_path):
    path = tmp_path / "en.jsonl"
    path.write_text(json.dumps({"question": "Which?", "A": "x", "B": "y", "answer": "A"}) + "\n")
    with pytest.raises(ValueError, match="in 'en' already"):
        translate_exam("nowhere", str(path), to="en", out=tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="language is 'fr'"):
        translate_exam("nowhere", str(path), to="fr", out=tmp_path / "out.jsonl")
