import dataclasses
import json

import pytest

from medkor_jax.eval import stats
from medkor_jax.eval.report import Report
from medkor_jax.io.files import write_atomically


def test_every_score_carries_what_is_needed_to_quote_it(make_report):
    first, second = (
        make_report("AAB", exam="x", year=2020),
        make_report("BC", "BB", exam="x", year=2021, first_id=3),
    )
    third = make_report("A.", exam="y", year=None, n_options=2, first_id=5)
    report = dataclasses.replace(
        first, answers=first.answers + second.answers + third.answers, shots=5
    )
    found = {(s.group, s.exam, s.year): (s.correct, s.n, s.unparsed) for s in report.scores}
    assert found == {
        ("all", "unit exam", None): (4, 7, 1),
        ("exam", "x", None): (3, 5, 0),
        ("exam", "y", None): (1, 2, 1),
        ("year", "x", 2020): (2, 3, 0),
        ("year", "x", 2021): (1, 2, 0),
    }
    for score in report.scores:
        assert (score.mode, score.shots, score.source, score.split) == (
            "letter",
            5,
            "unit exam",
            "valid",
        )
        assert (score.low, score.high) == stats.wilson(score.correct, score.n)
    assert report.overall.chance == pytest.approx((5 * 0.2 + 2 * 0.5) / 7)

    summary = json.loads(json.dumps(report.summary()))
    assert summary["scores"][0]["accuracy"] == 4 / 7 and summary["at_chance"] is True
    table = report.table()
    assert (
        "letter mode, 5 shots" in table
        and "x 2021" in table
        and "1 unparsed" in table
        and "4/7" in table
    )


def test_answers_survive_the_file_and_nothing_else_is_stored(make_report, tmp_path):
    report = make_report("AB.", "ABC", mode="harness", shots=5)
    odd = dataclasses.replace(report.answers[0], text="줄\u2028바꿈\n", probabilities=(0.75, 0.25))
    report = dataclasses.replace(report, answers=(odd, *report.answers[1:]))
    report.write(tmp_path / "deep" / "answers.jsonl")
    assert Report.read(tmp_path / "deep" / "answers.jsonl") == report
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["answers.jsonl"]
    row = json.loads(
        (tmp_path / "deep" / "answers.jsonl").read_text(encoding="utf-8").split("\n")[2]
    )
    assert (row["id"], row["key"], row["predicted"], row["correct"], row["text"]) == (
        "q2",
        "C",
        None,
        False,
        ".",
    )
    assert (row["mode"], row["shots"], row["split"]) == ("harness", 5, "valid")


def test_a_file_of_two_runs_or_of_something_else_is_refused(make_report, tmp_path):
    path = tmp_path / "answers.jsonl"
    make_report("AB").write(path)
    one = path.read_text()
    make_report("CC", mode="harness", first_id=7).write(path)
    path.write_text(one + path.read_text())
    with pytest.raises(ValueError, match="line 3 is from another run"):
        Report.read(path)
    path.write_text(one + '{"id": "x"}\n')
    with pytest.raises(ValueError, match="line 3 is not an answer"):
        Report.read(path)


def test_refuses_repeated_ids_no_answers_and_unknown_modes(make_report):
    report = make_report("AB")
    with pytest.raises(ValueError, match="'q0' occurs more than once"):
        dataclasses.replace(report, answers=report.answers * 2)
    with pytest.raises(ValueError, match="nothing to score"):
        dataclasses.replace(report, answers=())
    with pytest.raises(ValueError, match="letter, harness, reason"):
        dataclasses.replace(report, mode="Letter")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with monkeypatch.context() as at_the_last_step:
        at_the_last_step.setattr(
            "os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk gone"))
        )
        with pytest.raises(OSError, match="disk gone"):
            write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \udc80")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_no_alarm_for_a_plain_good_score(make_report):
    assert make_report("ABCDE" * 8, "ABCDE" * 6 + "EABCD" * 2).alarms == ()


def reasoned(report, *written, max_new_tokens=64):
    """written: (has_format, is_whole, n_tokens) of each answer."""
    names = ("has_format", "is_whole", "n_tokens")
    answers = [
        dataclasses.replace(a, **dict(zip(names, how)))
        for a, how in zip(report.answers, written, strict=True)
    ]
    return dataclasses.replace(
        report, mode="reason", answers=tuple(answers), max_new_tokens=max_new_tokens
    )


def test_a_reasoned_report_says_how_its_answers_are_written(make_report, tmp_path):
    report = reasoned(
        make_report("AB.C.", "ABCCC"),
        (True, True, 10),
        (False, True, 1),
        (False, False, 64),
        (True, True, 20),
        (True, True, 5),
    )
    shares = report.reasoning
    assert (shares.has_format, shares.one_letter, shares.both, shares.cut, shares.mean_tokens) == (
        0.6,
        0.6,
        0.4,
        0.2,
        20.0,
    )
    summary = json.loads(json.dumps(report.summary()))
    assert summary["reasoning"] == dataclasses.asdict(shares) and summary["max_new_tokens"] == 64
    assert (
        "format 60.0%, one valid letter 60.0%, both 40.0%, cut at 64 tokens 20.0%, 20 tokens on average"
        in report.table()
    )
    report.write(tmp_path / "a.jsonl")
    assert Report.read(tmp_path / "a.jsonl") == report
    first = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert (first["has_format"], first["is_whole"], first["n_tokens"], first["max_new_tokens"]) == (
        True,
        True,
        10,
        64,
    )
    with pytest.raises(ValueError, match="must say max_new_tokens and has_format"):
        dataclasses.replace(report, answers=make_report("A").answers)


def test_other_modes_are_written_as_before_reasoning_was_known(make_report, tmp_path):
    report = make_report("A")
    report.write(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == (
        '{"id": "q0", "key": "A", "predicted": "A", "correct": true, "text": "A", "exam": "unit", "year": 2020, '
        '"language": "ko", "n_options": 5, "probabilities": null, "among_shots": false, "truncated": false, '
        '"mode": "letter", "shots": 0, "source": "unit exam", "split": "valid", "confidence": 0.95, "style": "plain"}\n'
    )
    assert Report.read(tmp_path / "a.jsonl") == report and report.reasoning is None
    assert set(report.summary()) == {
        "mode",
        "shots",
        "source",
        "split",
        "confidence",
        "style",
        "at_chance",
        "scores",
        "alarms",
    }


def test_unread_reasoning_says_how_many_were_cut(make_report):
    written = [(False, i % 2 == 0, 64) for i in range(20)]
    report = make_report("." * 20)
    report = dataclasses.replace(
        report, answers=tuple(dataclasses.replace(a, text="x" * 99 + "end") for a in report.answers)
    )
    (alarm,) = [a for a in reasoned(report, *written).alarms if "no answer could be read" in a]
    assert (
        "in 20 of 20 texts, 10 of them cut at 64 tokens; one ends in 'xxx" in alarm
        and "end'. Likely cause" in alarm
    )


@pytest.mark.parametrize(
    ("predicted", "key", "words"),
    [
        ("ABCDE" * 8, "ABCDE" * 2 + "BCDEA" * 6, "not told apart from guessing"),
        ("ABCDE" * 8, "BCDEA" * 8, "below what guessing gives"),
        (
            "A" * 20 + "BCDE" * 3,
            "A" * 8 + "BCDE" * 6,
            "62% of the answers are A, which is right in 25%",
        ),
        ("ABCD" * 5 + "...", "ABCD" * 5 + "AAA", "no answer could be read in 3 of 23 texts"),
    ],
)
def test_each_fault_raises_its_alarm_with_a_cause(make_report, predicted, key, words):
    alarms = make_report(predicted, key).alarms
    (alarm,) = [alarm for alarm in alarms if words in alarm]
    assert "Likely cause" in alarm
    assert f"ALARM: {alarm}" in make_report(predicted, key).table()


@pytest.mark.parametrize(
    ("n", "likeliest", "first"),
    [
        (8, 0.2, "weights not loaded"),
        (80, 0.2, "weights not loaded"),
        (8, 0.7, "too few questions: of 8, less than 50% right can be luck"),
        (200, 0.7, "a model that does not know this"),
        (200, None, "a model that does not know this"),
    ],
)
def test_the_likeliest_cause_of_chance_comes_first(make_report, n, likeliest, first):
    report = make_report(("ABCDE" * n)[:n], (("BCDEA" * 4 + "ABCDE") * n)[:n])
    if likeliest:
        rest = (1 - likeliest) / 4
        sure = [(likeliest, rest, rest, rest, rest)] * n
        answers = [dataclasses.replace(a, probabilities=p) for a, p in zip(report.answers, sure)]
        report = dataclasses.replace(report, answers=tuple(answers))
    (alarm,) = [alarm for alarm in report.alarms if "not told apart from guessing" in alarm]
    assert f"Likely cause: {first}" in alarm
    assert report.alarming[0] == "at chance"


def test_chance_follows_the_number_of_options(make_report):
    assert not make_report(
        "AB" * 10, "AB" * 5 + "BA" * 5, n_options=5
    ).is_at_chance  # 50 % where guessing gives 20 %
    assert make_report("AB" * 10, "AB" * 5 + "BA" * 5, n_options=2).is_at_chance


def test_one_letter_is_no_alarm_where_the_key_has_it_too(make_report):
    assert make_report("A" * 18 + "BC", "A" * 18 + "BC").alarms == ()


def test_unread_answers_alone_do_not_break_the_alarms(make_report):
    assert any(
        "no answer could be read in 12 of 12" in alarm for alarm in make_report("." * 12).alarms
    )


def test_shown_and_cut_questions_are_told(make_report):
    report = make_report("ABCDE" * 4, "ABCDE" * 4, shots=5)
    answers = [
        dataclasses.replace(a, among_shots=i < 2, truncated=i < 3)
        for i, a in enumerate(report.answers)
    ]
    shown, cut = dataclasses.replace(report, answers=tuple(answers)).alarms
    assert shown.startswith("2 of the 20 questions are among the 5 shots") and cut.startswith(
        "3 prompts were longer"
    )


def lengthy(make_report, predicted, key, lengths, mode="cloze"):
    report = make_report(predicted, key, mode=mode)
    return dataclasses.replace(
        report,
        answers=tuple(dataclasses.replace(a, option_lengths=lengths) for a in report.answers),
    )


def test_a_score_that_follows_the_length_of_the_options_raises_its_alarm(make_report, tmp_path):
    """KorMedMCQA doctor/valid: A is the shortest option in 155 of 164 questions, and a sum chose it in 15 of 20."""
    key = "ABCDE" * 4
    short_first, long_last = (2, 5, 6, 7, 8), (4, 4, 5, 6, 9)
    report = lengthy(make_report, "A" * 15 + "BCDEB", key, short_first)
    (alarm,) = [alarm for alarm in report.alarms if "follows length" in alarm]
    assert alarm.startswith(
        "the shortest option is taken in 75% of 20 questions that have one and is right in 20%: the score follows"
    )
    assert "Compare mode 'cloze_norm'" in alarm
    report.write(tmp_path / "answers.jsonl")
    assert Report.read(tmp_path / "answers.jsonl") == report
    (alarm,) = [
        a
        for a in lengthy(make_report, "E" * 16 + "ABCD", key, long_last, "cloze_norm").alarms
        if "follows length" in a
    ]
    assert (
        alarm.startswith("the longest option is taken in 80% of 20")
        and "Compare mode 'cloze'" in alarm
    )
    quiet = (
        lengthy(make_report, "A" * 15 + "BCDEB", key, (5, 5, 6, 6, 6)),  # none is the shortest
        lengthy(make_report, key, key, short_first),
        lengthy(make_report, "A" * 20, "A" * 20, short_first),  # the shortest is right
        make_report("A" * 15 + "BCDEB", key),
    )
    assert not any("follows length" in alarm for report in quiet for alarm in report.alarms)
