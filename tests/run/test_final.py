"""The final exam: who sits it, how often its questions were looked at, and that nobody trains on it."""

import json

import pytest

from medkor_jax.data import embedded
from medkor_jax.eval.report import Report
from medkor_jax.io.models import open_model
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.corpora import LeakError
from medkor_jax.run.restart import restart
from medkor_jax.run.summary import closing_table

TEXT = {"en": dict(kind="text", path="embedded", language="en", subset="train", limit=20)}
PHASE = dict(
    exam="english", gate=dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True),
    lora=dict(rank=2, alpha=4.0, targets=("q",)), trees=("lora",), data=TEXT, steps=1, batch_size=4, seq_len=64, warmup_steps=0,
    rules=dict(lora=dict(pattern="lora/.*", learning_rate=0.01)),
)  # fmt: skip


def exam(split, limit, **more):
    return dict(
        source=dict(path="embedded", split=split, language="en", limit=limit), batch_size=8, **more
    )


@pytest.fixture(scope="module")
def config(tiny_base_dir, tmp_path_factory):
    return dict(
        run_dir=str(tmp_path_factory.mktemp("final") / "run"), weights=str(tiny_base_dir), run=("phase0",), dtype="float32",
        param_dtype="float32", remat="none", exams=dict(english=exam("valid", 8)), final=dict(last=exam("test", 12)), phase0=PHASE,
    )  # fmt: skip


def run(config):
    pipeline.Run(make_recipe(config)).all()
    directory = pipeline.pathlib.Path(config["run_dir"])
    return directory, json.loads((directory / "final.json").read_text())


def test_the_finished_model_sits_it_once_and_every_look_is_counted(config, capsys):
    directory, record = run(config)
    ((_, sat),) = record.items()
    (look,) = sat["looks"]
    assert sat["n"] == 12 and look["exam"] == "last" and look["phase"] == "phase0"
    assert look["model"] == open_model(directory / "phase0").digest
    report = Report.read(directory / look["answers"])
    assert [a.id for a in report.answers] == [q.id for q in embedded.questions("test", "en")[:12]]
    assert look["report"]["scores"][0]["correct"] == report.overall.correct
    said = capsys.readouterr().out
    assert "final exam" in said and "looked at once" in said
    assert "its questions were looked at once in this run" in closing_table(directory, ["phase0"])

    assert run(config)[1] == record  # the same model has sat it
    # Another model of this run, and the same questions asked in another way: two looks more.
    restart(make_recipe(config), ["phase0"])
    again = config | dict(seed=1, final=config["final"] | dict(twin=exam("test", 12, mode="cloze")))
    directory, record = run(again)
    ((_, sat),) = record.items()
    assert [look["exam"] for look in sat["looks"]] == ["last", "last", "twin"] and len(
        {look["model"] for look in sat["looks"]}
    ) == 2
    table = closing_table(directory, ["phase0"])
    assert (
        "final exam last" in table
        and "final exam twin" in table
        and table.count("looked at 3 times in this run") == 2
    )


def test_what_is_trained_on_may_not_be_a_final_exam(config, tmp_path):
    asked = embedded.questions("test", "en")[3]
    row = dict(
        question=asked.question, **dict(zip("ABCDE", asked.options)), answer=asked.answer + 1
    )
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    data = TEXT | {"mine": dict(kind="exam", path=str(tmp_path / "train.jsonl"), language="en")}
    with pytest.raises(LeakError, match=r"mine:.* ~ last:embedded/test"):
        run(config | dict(run_dir=str(tmp_path / "run"), phase0=PHASE | dict(data=data)))
