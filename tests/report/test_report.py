"""The report of a run: what it says, and that nothing in it becomes markup."""

import html.parser
import json
import pathlib
import shutil
import types

import numpy as np
import pytest

from medkor_jax import cli
from medkor_jax.commands import report as command
from medkor_jax.eval.gate import Gate
from medkor_jax.eval.judgement import judge
from medkor_jax.eval.report import Report
from medkor_jax.eval.verdict import GateClosed, read_verdict
from medkor_jax.io.files import read_sealed, write_json, write_sealed
from medkor_jax.report.english import gate_looks, over_the_run
from medkor_jax.report.files import read_run
from medkor_jax.report.opening import make_opening
from medkor_jax.report.page import as_markdown, facts_of, write_report
from medkor_jax.report.pictures import _averaged, draw
from medkor_jax.report.sections import make_sections
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.data_lock import Lock, write_lock
from medkor_jax.run.summary import closing_table

from ..run.conftest import finished  # noqa: F401
from ..run.test_pipeline import make_config

HOSTILE = (
    '</script><script>hacked=1</script><img src=x onerror="hacked=1">"><b>]]>\u2028|`$a$` {{7*7}}'
)


@pytest.fixture
def run_dir(finished, tmp_path):  # noqa: F811
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def answer_otherwise(run_dir, file, right):
    """Rewrites the answers in a phase's file: as many are right as said."""
    report = Report.read(run_dir / file)
    rows = [json.loads(line) for line in (run_dir / file).read_text().splitlines()]
    for i, row in enumerate(rows):
        row["predicted"] = row["key"] if i < right else "ABCDE"[(ord(row["key"]) - 64) % 5]
        row["correct"] = i < right
    (run_dir / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(report.answers)


def said_of(run_dir):
    return {one["question"]: one for one in make_opening(read_run(run_dir))["answers"]}


@pytest.mark.parametrize(
    ("before", "after", "tone", "words"),
    [
        (30, 8, "bad", "It fell: -55.0 points"),
        (20, 20, "unsure", "No fall can be told (+0.0 points"),
        (10, 38, "good", "Yes: +70.0 points"),
    ],
)
def test_whether_english_held_is_said_from_the_answers(before, after, tone, words, run_dir):
    # The reference is phase1's model; the last is phase3's.
    n = answer_otherwise(run_dir, "phase1/answers/english-after.jsonl", before)
    answer_otherwise(run_dir, "phase3/answers/english-after.jsonl", after)
    found = said_of(run_dir)["Did English hold?"]
    assert found["tone"] == tone and words in found["answer"] and n == 40
    assert "since phase1; now" in found["details"][0]


def test_a_closed_gate_and_a_doubt_come_first(run_dir):
    verdict = read_verdict(run_dir / "phase3/verdict.json")
    gate = verdict["gate"] | {"on_failure": "stop"}
    write_sealed(run_dir / "phase3/verdict.json", verdict | {"waiver": None, "gate": gate})
    found = said_of(run_dir)
    assert found["Why did a gate close?"]["answer"].startswith(
        "phase3's closed: The gate stays closed: "
    )
    assert any("phase0: Recorded" in line for line in found["Why did a gate close?"]["details"])
    doubts = found["Can these numbers be leaned on?"]
    assert "english at chance" in doubts["answer"]
    assert any("not told apart from guessing" in line for line in doubts["details"])
    assert "phase0 most" in found["Which phase cost what?"]["answer"]


def test_a_gate_that_a_remedy_opened_is_said(run_dir):
    """It had closed: "none did" would hide what training alone did to English."""
    verdict = read_verdict(run_dir / "phase3/verdict.json")
    write_sealed(run_dir / "phase3/verdict.json", verdict | {"waiver": None, "passed": True})
    said = said_of(run_dir)["Why did a gate close?"]["answer"]
    assert said.startswith("None did: 1 of ")
    shutil.copytree(run_dir / "phase3/train", run_dir / "phase3/remedy1")
    said = said_of(run_dir)["Why did a gate close?"]["answer"]
    assert said.startswith("None stayed closed: 1 of ") and "phase3's after a remedy" in said


def test_every_section_is_filled_from_the_files(finished):  # noqa: F811
    found = make_sections(read_run(finished), price=3600.0)
    assert [one["name"] for one in found["phases"]] == found["planned"]
    assert [curve["loss"][-1][0] for curve in found["curves"]] == [2] * 4
    assert {row["name"] for row in found["exams"]} == {"english"}
    (letters,) = found["letters"]
    assert sum(n for _, n, _ in letters["letters"]) + letters["unread"] == letters["n"] == 40
    assert len(found["examples"]) == 40 and all(
        one["question"] and one["options"] for one in found["examples"]
    )
    kinds = [one["kind"] for one in found["examples"]]
    changed = [kind in ("gained", "lost") for kind in kinds]
    assert changed == sorted(changed, reverse=True)
    for row, phase in zip(found["costs"], found["phases"]):
        summary = json.loads((finished / phase["name"] / "summary.json").read_text())
        assert row["cost"] == pytest.approx(summary["seconds"]) and row["tokens"] > 0
    start = found["lineage"]["phases"][0]["starts"][0]
    assert start["packages"]["jax"] and found["lineage"]["licences"]
    json.dumps(found)


@pytest.mark.parametrize("reading", ["absolute", "relative", "non_inferior"])
@pytest.mark.parametrize("metric", ["accuracy", "probability"])
def test_a_gate_opens_in_the_picture_where_it_opened(metric, reading, run_dir):
    """Its interval, moved to the score's own scale, is not below its line exactly where it passed."""
    before, after = (Report.read(run_dir / f"phase{i}/answers/english-after.jsonl") for i in (1, 3))
    for threshold in (0.5, 0.6, 0.75, 0.9, 0.99):
        if reading == "absolute":
            threshold /= 5
        gate = Gate(metric=metric, threshold=threshold, reading=reading, allow_chance=True)
        found = judge(gate, after, before, looks=2)
        verdict = read_verdict(run_dir / "phase3/verdict.json")
        verdict |= {"judgement": found.to_json(), "looks": [{"of": "x", **found.to_json()}]}
        write_sealed(run_dir / "phase3/verdict.json", verdict)
        *_, point = gate_looks(read_run(run_dir))["points"]
        assert point["at"] == "phase3" and point["passed"] == (point["low"] >= point["line"] - 1e-9)
        assert point["low"] <= point["score"] == found.score <= point["high"]
        if reading != "absolute":
            kept = found.reference * threshold
            line = kept if reading == "relative" else found.reference - (1 - threshold)
            assert point["line"] == pytest.approx(line)


def test_every_model_is_a_point_of_english_also_where_two_score_the_same(run_dir):
    run = read_run(run_dir)
    points = over_the_run(run)["points"]
    models = {phase.summary[when]["digest"] for phase in run.chain for when in ("before", "after")}
    asked = {
        phase.summary["after"]["digest"] for phase in run.chain if "english" in phase.exams("after")
    }
    assert len(points) >= len(asked) and len(points) <= len(models)
    for phase in run.chain:
        for when in ("before", "after"):
            for exam in phase.exams(when).values():
                exam["scores"] = run.chain[0].exams("after")["english"]["scores"]
    assert len(over_the_run(run)["points"]) == len(points)


def test_a_long_run_keeps_the_page_small():
    steps, layers = 6000, 34
    kl = [[None if (step + layer) % 3 else 0.5 for layer in range(layers)] for step in range(steps)]
    heat = {"phase": "p", "stage": "s", "steps": list(range(1, steps + 1)), "kl": kl}
    curve = {"phase": "p", "stage": "s", "loss": [(i, i % 7) for i in range(steps)], "held_out": []}
    series = {name: [i % 5 for i in range(steps)] for name in ("reward", "dead_groups")}
    reward = {"phase": "p", "stage": "s", "steps": heat["steps"], "series": series}
    made = draw(
        {"path": []},
        {
            "english": {},
            "gate_looks": {},
            "curves": [curve],
            "retention": [heat],
            "rewards": [reward],
        },
    )
    assert (
        sum(len(svg) for kind in ("curves", "retention", "rewards") for _, svg in made[kind])
        < 600_000
    )
    assert _averaged(np.array(kl[:3], float)).shape == (3, layers)
    whole = _averaged(np.array(kl, float))
    assert len(whole) <= 200 and np.nanmax(whole) == np.nanmin(whole) == 0.5


def test_exams_are_shown_by_subject_and_year_where_there_are_several(run_dir):
    file = run_dir / "phase3/answers/english-after.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"exam": ("doctor", "nurse")[i % 2], "year": 2020 + i % 4}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = read_sealed(run_dir / "phase3/summary.json")
    summary["after"]["exams"]["english"] = Report.read(file).summary()
    write_sealed(run_dir / "phase3/summary.json", summary)
    rows = make_sections(read_run(run_dir))["exams"]
    shown = [(row["score"]["exam"], row["score"]["year"], row["score"]["n"]) for row in rows[1:]]
    assert rows[0]["score"]["n"] == 40 and set(shown) == {
        ("doctor", None, 20), ("nurse", None, 20), ("doctor", 2020, 10), ("doctor", 2022, 10),
        ("nurse", 2021, 10), ("nurse", 2023, 10),
    }  # fmt: skip
    page = write_report(run_dir).read_text("utf-8")
    assert "By subject and year: 6 rows" in page and "nurse 2023" in page


def test_a_config_is_said_once_and_what_is_pinned_with_it(run_dir):
    pinned = Lock({"a/b": "1234"}, {"c/d": "5678"})
    write_lock(run_dir, pinned)
    found = make_sections(read_run(run_dir))["lineage"]
    assert [bool(one["config"]) for one in found["phases"]] == [True, False, False, False]
    assert {one["config_as"] for one in found["phases"][1:]} == {"phase0"}
    assert found["phases"][0]["data"] and [one["revision"] for one in found["pinned"]] == [
        "1234",
        "5678",
    ]


def test_what_a_stage_went_on_without_is_said_everywhere(run_dir, tiny_base_dir):
    assert "went on without" not in as_markdown(facts_of(read_run(run_dir)))
    (run_dir / "phase2/train/left-out.json").write_text('{"1": 2, "2": 1}')
    for name in ("verdict.json", "record.json", "summary.json"):
        (run_dir / "phase2" / name).unlink()
    shutil.rmtree(run_dir / "phase3")
    run = make_config(run_dir, tiny_base_dir) | {"run": ("phase0", "phase1", "phase2")}
    pipeline.Run(make_recipe(run)).all()
    said = "phase2/train went on without 3 batches, at step 1, 2"
    assert said in closing_table(run_dir, ["phase2"])
    assert read_sealed(run_dir / "phase2/summary.json")["left_out"] == {"train": {"1": 2, "2": 1}}
    found = json.loads(json.dumps(facts_of(read_run(run_dir))))
    assert found["sections"]["phases"][2]["left_out"] == {"train": {"1": 2, "2": 1}}
    assert said in as_markdown(found).replace("\\", "")
    page = write_report(run_dir).read_text("utf-8")
    assert page.count(f"{said}: the loss there was no number") == 2
    (run_dir / "phase2/train/left-out.json").write_text('{"1": "x"}')
    read = read_run(run_dir)
    assert read.phases[2].stages and any("left-out.json is damaged" in one for one in read.faults)


def make_hostile(run_dir):
    """Puts markup wherever a user's data, or a user, can put text."""
    for path in run_dir.glob("phase*/summary.json"):
        summary = read_sealed(path)
        summary["title"] = HOSTILE
        for source in summary["sources"]:
            source |= {"name": HOSTILE, "path": HOSTILE, "licence": HOSTILE}
        write_sealed(path, summary)
        verdict = read_verdict(path.with_name("verdict.json"))
        verdict["waiver"] = {"reason": HOSTILE, "time": HOSTILE}
        verdict["judgement"]["words"] = f"The gate stays closed: {HOSTILE}"
        write_sealed(path.with_name("verdict.json"), verdict)
    for path in (*run_dir.glob("questions/*.jsonl"), *run_dir.glob("phase*/answers/*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
        for row in rows:
            hostile = {
                "question": HOSTILE,
                "options": [HOSTILE] * 5,
                "text": HOSTILE,
                "exam": HOSTILE,
            }
            row |= {name: value for name, value in hostile.items() if name in row}
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for path in run_dir.glob("phase*/provenance.json"):
        found = json.loads(path.read_text())
        found["config"] = HOSTILE
        found["starts"][0]["command"] = ["medkor", HOSTILE]
        write_json(path, found)


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        self.attributes += [name for name, _ in attributes]


def test_nothing_in_a_run_becomes_markup(run_dir):
    plain = Elements(write_report(run_dir).read_text("utf-8"))
    make_hostile(run_dir)
    page = write_report(run_dir).read_text("utf-8")
    found = Elements(page)
    assert found.found.count("script") == plain.found.count("script") == 2
    assert set(found.found) - set(plain.found) == set()
    assert not any(name.startswith("on") for name in found.attributes)
    assert "hacked=1" in page and "{{7*7}}" in page
    for line in (run_dir / "report/report.md").read_text("utf-8").splitlines():
        assert "<script" not in line.replace("\\<", "") and "`$a$`" not in line


def test_a_table_in_markdown_keeps_its_columns(run_dir):
    make_hostile(run_dir)
    lines = as_markdown(facts_of(read_run(run_dir))).splitlines()
    for line in lines:
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in (5, 6)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "phase3/verdict.json").unlink(),
        lambda run: (run / "phase3/summary.json").unlink(),
        lambda run: (run / "phase2/summary.json").write_text("{"),
        lambda run: (run / "phase2/verdict.json").write_text("[]"),
        lambda run: (run / "phase3/train/metrics.jsonl").write_text('{"step": 1}\nnot json\n'),
        lambda run: [path.unlink() for path in run.glob("phase*/answers/*.jsonl")],
        lambda run: [path.write_text("x\n") for path in run.glob("questions/*")],
        lambda run: (run / "final.json").write_text("{"),
        lambda run: [path.unlink() for path in run.glob("phase*/provenance.json")],
        lambda run: [shutil.rmtree(run / f"phase{i}") for i in range(4)],
        lambda run: (run / "ledger.json").write_text("{"),
        lambda run: (run / "data-lock.json").write_text("{"),
        lambda run: (run / "phase3/record.json").write_text("[]"),
    ],
)
def test_what_is_missing_or_damaged_leaves_the_rest(damage, run_dir, capsys):
    damage(run_dir)
    assert cli.main(["report", str(run_dir)]) == 0
    page = (run_dir / "report/report.html").read_text("utf-8")
    assert f"report: {run_dir}/report/report.html" in capsys.readouterr().out
    assert "Did English hold?" in page


def test_a_run_that_never_began_has_none(tmp_path, capsys):
    command.write_at_the_end(str(tmp_path))
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_fails_no_run(run_dir, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr("medkor_jax.report.page.draw", broken)
    command.write_at_the_end(str(run_dir))
    said = capsys.readouterr().out
    assert (
        "could not be written (RuntimeError: no font)" in said
        and f"medkor report {run_dir}" in said
    )


@pytest.mark.parametrize("ends_by", ["its last phase", "a closed gate"])
def test_a_run_ends_by_saying_where_its_report_is(ends_by, run_dir, capsys, monkeypatch):
    class Ended:
        def __init__(self, *_, **__):
            pass

        def all(self):
            if ends_by == "a closed gate":
                raise GateClosed("phase3: closed")

    recipe = types.SimpleNamespace(run_dir=str(run_dir), all_phases=())
    monkeypatch.setattr("medkor_jax.commands.run.load_recipe", lambda *_: recipe)
    monkeypatch.setattr("medkor_jax.commands.run.with_lock", lambda recipe: recipe)
    monkeypatch.setattr("medkor_jax.commands.run.pipeline.Run", Ended)
    code = cli.main(["run", "--config", "any.py"])
    assert code == (0 if ends_by == "its last phase" else 3)
    said = capsys.readouterr().out.splitlines()
    at = said.index(f"report: {run_dir}/report/report.html")
    starts = [line.split(":")[0] for line in said[at - 4 : at]]
    assert starts == ["Korean", "English", "Without retention", "Reasoned answers"]
    assert json.loads((run_dir / "report/report.json").read_text())["state"] != "running"
    # what it shows leads; the table of all phases follows
    assert ("no phase has finished" in "".join(said[at + 1 :])) == (ends_by == "its last phase")
    assert (run_dir / "report/report.json").stat().st_mtime >= (
        run_dir / "ledger.json"
    ).stat().st_mtime


def test_what_is_no_run_is_said(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "is no run" in capsys.readouterr().err
