import datetime
import json

import pytest

from medkor_jax.eval import verdict as verdicts
from medkor_jax.eval.gate import Gate
from medkor_jax.eval.judgement import judge
from medkor_jax.eval.verdict import GateClosed, read_verdict, require_open, waive, write_verdict

DIGESTS = {"weights": "w" * 64, "data": "d" * 64, "config": "c" * 64}


@pytest.fixture
def write(make_report, tmp_path):
    """write(correct) stores the verdict on `correct` of 100 answers and returns its path."""

    def write(correct, **changed):
        report = make_report("A" * correct + "B" * (100 - correct))
        gate = Gate(reading="absolute", threshold=0.9)
        path = tmp_path / "phase1" / "verdict.json"
        settings = dict(
            phase="phase1", gate=gate, looks=[("after training", judge(gate, report))], report=report, reference=None, digests=DIGESTS,
            time=datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC),
        )  # fmt: skip
        write_verdict(path, **settings | changed)
        return path

    return write


def test_a_passed_verdict_opens_for_exactly_what_it_judged(write, make_report):
    path = write(98, reference=make_report("A" * 90 + "B" * 10))
    verdict = require_open(path, DIGESTS)
    assert require_open(path, {"weights": DIGESTS["weights"]}) == verdict == read_verdict(path)
    assert verdict["judgement"]["value"] == 0.98 and verdict["report"]["scores"][0]["low"] < 0.98
    assert verdict["reference"]["scores"][0]["correct"] == 90
    assert (verdict["phase"], verdict["mode"], verdict["time"]) == (
        "phase1",
        "letter",
        "2025-01-02T00:00:00+00:00",
    )
    assert verdict["gate"]["threshold"] == 0.9 and verdict["digests"] == DIGESTS
    assert [p.name for p in path.parent.iterdir()] == ["verdict.json"]


@pytest.mark.parametrize("name", ["weights", "data", "config"])
def test_other_weights_data_or_config_close_the_gate(write, name):
    with pytest.raises(
        GateClosed, match=rf"judged something else: {name} \(judged {name[0]}{{12}}, found other\)"
    ):
        require_open(write(98), DIGESTS | {name: "other"})


def test_a_digest_the_verdict_never_had_closes_the_gate(write):
    with pytest.raises(GateClosed, match="judged none"):
        require_open(write(98), DIGESTS | {"tokenizer": "t"})


def test_missing_and_failed_verdicts_close_the_gate(write, tmp_path):
    with pytest.raises(GateClosed, match="does not exist"):
        require_open(tmp_path / "verdict.json", DIGESTS)
    with pytest.raises(
        GateClosed, match=r"did not pass: The gate stays closed: 80.0% \(80 of 100\) \[70"
    ):
        require_open(write(80), DIGESTS)


def leaves(tree, path=()):
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield from (
            leaves(value, (*path, key))
            if isinstance(value, dict | list) and value
            else [(*path, key)]
        )


def test_every_single_edit_is_found(write):
    path = write(80)
    whole = path.read_text(encoding="utf-8")
    tried = 0
    for where in leaves(json.loads(whole)):
        edited = json.loads(whole)
        place = edited
        for key in where[:-1]:
            place = place[key]
        old = place[where[-1]]
        place[where[-1]] = (
            (not old)
            if isinstance(old, bool)
            else old + 1
            if isinstance(old, int | float)
            else "edited"
        )
        path.write_text(json.dumps(edited), encoding="utf-8")
        with pytest.raises(GateClosed, match="was changed"):
            read_verdict(path)
        tried += 1
    assert tried > 30
    path.write_text(json.dumps(json.loads(whole), separators=(",", ":")), encoding="utf-8")
    read_verdict(path)  # other white space is the same verdict


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "{}", "\x00"])
def test_a_damaged_file_closes_the_gate(write, damage):
    path = write(98)
    path.write_text(damage)
    with pytest.raises(GateClosed, match="not a whole verdict"):
        require_open(path, DIGESTS)


def test_bytes_that_are_no_text_close_the_gate(write):
    path = write(98)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GateClosed, match="not a whole verdict"):
        require_open(path, DIGESTS)


def test_a_waiver_opens_with_a_reason_and_rewrites_nothing_measured(write):
    path = write(80)
    before = read_verdict(path)
    waive(path, " the embedded exam is at chance for this size ")
    verdict = require_open(path, DIGESTS)
    assert (
        verdict["waiver"]["reason"] == "the embedded exam is at chance for this size"
        and verdict["waiver"]["time"]
    )
    assert verdict["passed"] is False and {**verdict, "waiver": None} == before
    with pytest.raises(GateClosed, match="judged something else"):  # a waiver is not a blank cheque
        require_open(path, DIGESTS | {"weights": "other"})
    edited = json.loads(path.read_text(encoding="utf-8"))
    edited["waiver"]["reason"] = "better words"
    path.write_text(json.dumps(edited), encoding="utf-8")
    with pytest.raises(GateClosed, match="was changed"):
        require_open(path, DIGESTS)


def test_waivers_need_a_reason_and_a_failed_whole_verdict(write, tmp_path):
    with pytest.raises(ValueError, match="needs a reason"):
        waive(write(80), "  ")
    with pytest.raises(ValueError, match="nothing to waive"):
        waive(write(98), "because")
    with pytest.raises(GateClosed, match="does not exist"):
        waive(tmp_path / "none.json", "because")


def test_a_verdict_without_digests_cannot_be_written_nor_a_check_without_any_asked(write):
    with pytest.raises(ValueError, match="missing: data, config"):
        write(98, digests={"weights": "w", "data": ""})
    with pytest.raises(ValueError, match="at least one digest"):
        require_open(write(98), {})


def test_another_format_is_refused(write, monkeypatch):
    path = write(98)
    monkeypatch.setattr("medkor_jax.eval.verdict.FORMAT", 3)
    with pytest.raises(GateClosed, match="has format 2, this program reads 3.*--restart PHASE"):
        read_verdict(path)


def test_every_look_stays_in_the_verdict_and_the_last_one_decides(write, make_report):
    gate = Gate(reading="absolute", threshold=0.9, on_failure="train", rounds=2)
    reports = {
        f"look {n}": make_report("A" * right + "B" * (100 - right))
        for n, right in enumerate((80, 93, 99))
    }
    looks = [(what, judge(gate, report)) for what, report in reports.items()]
    path = write(99, gate=gate, looks=looks, reference_account="The reference is phase0's.")
    verdict = require_open(path, DIGESTS)
    assert [(look["of"], look["passed"], look["score"]) for look in verdict["looks"]] == [
        ("look 0", False, 0.8), ("look 1", False, 0.93), ("look 2", True, 0.99),
    ]  # fmt: skip
    assert (
        verdict["looks"][-1] == {"of": "look 2", **verdict["judgement"]}
        and verdict["judgement"]["looks"] == 3
    )
    assert verdict["judgement"]["confidence"] == pytest.approx(1 - 0.05 / 3) and verdict["passed"]
    assert verdict["reference_account"] == "The reference is phase0's."
    assert not read_verdict(write(99, gate=gate, looks=looks[::-1]))["passed"]
    with pytest.raises(ValueError, match="there was none"):
        write(99, looks=[])


def test_a_verdict_of_before_looks_counted_says_what_to_do(write):
    path = write(98)
    verdict = read_verdict(path)
    verdicts._store(path, {**verdict, "format": 1})
    with pytest.raises(
        GateClosed, match="has format 1.*no account of how often.*Judge the phase again"
    ):
        require_open(path, DIGESTS)
