"""What weights of another run have read, and that `data check` and `run` refuse the same."""

import json
import shutil

import pytest

from medkor_jax import cli
from medkor_jax.data import embedded
from medkor_jax.data.rows import BadDataError
from medkor_jax.io.export import export_hf
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.corpora import Corpora, LeakError
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import ConfigError
from medkor_jax.run.readiness import check_recipe, checks

OPEN = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
LORA = dict(rank=2, alpha=4.0, targets=("q", "down"))
TEXT = dict(en=dict(kind="text", path="embedded", language="en", subset="train", limit=8))


def stage(data):
    return dict(
        data=data,
        steps=1,
        batch_size=4,
        seq_len=64,
        warmup_steps=0,
        rules=dict(lora=dict(pattern="lora/.*", learning_rate=0.01)),
    )


def make_config(run_dir, weights, data, **more):
    return dict(
        run_dir=str(run_dir), weights=str(weights), run=("phase0",), dtype="float32", param_dtype="float32", remat="none",
        exams=dict(english=dict(source=dict(path="embedded", split="valid", language="en", limit=20), batch_size=8)),
        phase0=dict(lora=LORA, trees=("lora",), exam="english", gate=OPEN, **stage(data)),
    ) | more  # fmt: skip


def judged_row(at=3, **more):
    asked = embedded.questions("valid", "en")[at]
    return dict(
        question=asked.question,
        **dict(zip("ABCDE", asked.options)),
        answer="ABCDE"[asked.answer],
        **more,
    )


@pytest.fixture(scope="module")
def read(tiny_base_dir, tmp_path_factory):
    """A run that was trained on a question that the next one is judged by; it is judged by others itself."""
    place = tmp_path_factory.mktemp("first")
    (place / "mine.jsonl").write_text(json.dumps(judged_row()) + "\n", "utf-8")
    data = TEXT | {"mine": dict(kind="exam", path=str(place / "mine.jsonl"), language="en")}
    config = make_config(place / "run", tiny_base_dir, data)
    config["exams"]["english"]["source"] |= dict(split="test")
    config["phase0"]["seq_len"] = 256
    pipeline.Run(make_recipe(config)).all()
    return place


@pytest.fixture(scope="module")
def merged(read, tmp_path_factory):
    """A second run on the first, which merges, and stands where the first one is not."""
    config = make_config(read / "second", read / "run", TEXT)
    config["exams"]["english"]["source"] |= dict(split="test")
    config["phase0"] |= dict(merge=True, lora=LORA)
    pipeline.Run(make_recipe(config)).all()
    return read / "second"


def weights_of(kind, read, merged, tmp_path):
    if kind == "exported":
        export_hf(open_model(read / "run"), tmp_path / "exported", dtype="float32")
        shutil.copy(
            read / "mine.jsonl", tmp_path
        )  # an export does not say on which machine its data lay
    return {
        "run": read / "run", "phase": read / "run/phase0", "run of a run": merged, "merged base": next((merged / "bases").iterdir()),
        "exported": tmp_path / "exported",
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["run", "phase", "run of a run", "merged base", "exported"])
def test_weights_bring_what_they_have_read(kind, read, merged, tmp_path, monkeypatch):
    weights = weights_of(kind, read, merged, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [one.source.name for one in open_model(weights).read] == ["en", "mine"]
    recipe = make_recipe(make_config(tmp_path / "next", weights, TEXT))
    with pytest.raises(
        LeakError, match=rf"1 documents .*\n.*mine@{weights}:.* ~ english:embedded/valid"
    ):
        pipeline.Run(recipe).all()
    assert [leak.trained_source for leak in check_recipe(recipe).leaks] == [f"mine@{weights}"]
    allowed = make_recipe(
        make_config(tmp_path / "next", weights, TEXT, allow_leaks=(f"mine@{weights} ~ english",))
    )
    assert Corpora(False).refuse_leaks(allowed) is None


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_what_cannot_be_compared_any_more_is_refused_by_name_and_can_be_accepted(
    change, read, tmp_path
):
    run = shutil.copytree(read, tmp_path / "first") / "run"
    mine = read / "mine.jsonl"
    kept = mine.read_text("utf-8")
    try:
        mine.unlink() if change == "gone" else mine.write_text(
            kept + kept.replace("?", " or not?"), "utf-8"
        )
        recipe = make_recipe(make_config(tmp_path / "next", run, TEXT))
        with pytest.raises(
            LeakError,
            match=rf"mine@{run}: {mine}, which phase0/train was trained on, is not there or not what it was",
        ):
            pipeline.Run(recipe).all()
        assert not check_recipe(recipe).is_clean
        accepted = make_recipe(
            make_config(tmp_path / "next", run, TEXT, allow_leaks=(f"mine@{run} ~ *",))
        )
        assert Corpora(False).refuse_leaks(accepted) is None
    finally:
        mine.write_text(kept, "utf-8")


def test_eval_says_what_its_weights_were_trained_on(read, tmp_path, capsys):
    (tmp_path / "exam.jsonl").write_text(
        "".join(json.dumps(judged_row(at)) + "\n" for at in (2, 3, 4)), "utf-8"
    )
    ask = [
        "eval",
        "--weights",
        str(read / "run"),
        "--exam",
        str(tmp_path / "exam.jsonl"),
        "--out",
        str(tmp_path / "out.json"),
    ]
    assert cli.main(ask) == 0
    assert f"ALARM: {read / 'run'} was trained on 1 of these 3" in capsys.readouterr().out
    assert '"questions": 1' in (tmp_path / "out.json").read_text("utf-8")


def rows(n, words):
    return "".join(
        json.dumps(dict(question=f"Question {i}: {words}?", A="yes", B="no", answer="A")) + "\n"
        for i in range(n)
    )


REFUSED = {
    "a question longer than the stage's rows": (dict(seq_len=48), rows(3, "is it so, and " * 4), BadDataError),
    "a row that cannot be read": ({}, rows(2, "is it so") + '{"question": "Broken?"}\n', BadDataError),
    "a judged question": ({}, json.dumps(judged_row()) + "\n", LeakError),
    "more positions with loss than there are": (dict(kind="reasoning", loss_positions=4), "".join(
        json.dumps(dict(question="Why?", A="yes", B="no", answer="A", cot="Since it is so, and has always been so, and so on.")) + "\n"
        for _ in range(2)), BadDataError),
}  # fmt: skip


@pytest.mark.parametrize("where", ["train", "remedy"])
@pytest.mark.parametrize("case", REFUSED)
def test_data_check_refuses_what_run_refuses_and_in_the_same_words(
    case, where, tiny_base_dir, tmp_path
):
    settings, lines, error = REFUSED[case]
    settings = dict(settings)
    (tmp_path / "mine.jsonl").write_text(lines, "utf-8")
    mine = dict(kind=settings.pop("kind", "exam"), path=str(tmp_path / "mine.jsonl"), language="en")
    data = {"mine": mine}
    config = make_config(tmp_path / "run", tiny_base_dir, data if where == "train" else TEXT)
    config["phase0"] |= dict(seq_len=256) | (settings if where == "train" else {})
    if where == "remedy":
        config["phase0"] |= dict(
            gate=dict(reading="absolute", threshold=0.5, on_failure="train", rounds=1, allow_chance=True),
            remedy=stage(data) | dict(seq_len=256, trees=("lora",)) | settings,
        )  # fmt: skip
    recipe = make_recipe(config)
    with pytest.raises(error) as refused:
        pipeline.Run(recipe).all()
    report = check_recipe(recipe)
    said = [
        *report.obstacles,
        *(str(bad) for source in report.sources for bad in source.bad),
        *(leak.key for leak in report.leaks),
    ]
    assert not report.is_clean and len(said) >= 1
    told = (
        [str(bad) for bad in refused.value.bad]
        if isinstance(refused.value, BadDataError)
        else [leak.key for leak in report.leaks]
    )
    assert all(any(words in line for line in said) for words in told) and told
    assert not (tmp_path / "run" / "phase0" / "train").exists()


def test_data_check_refuses_a_gate_that_run_refuses(tiny_base_dir, tmp_path):
    config = make_config(tmp_path / "run", tiny_base_dir, TEXT)
    config["phase0"] |= dict(gate=dict(reading="absolute", threshold=0.9, on_failure="stop"))
    config["exams"]["english"]["source"] |= dict(limit=2)
    recipe = make_recipe(config)
    with pytest.raises(ConfigError) as refused:
        pipeline.Run(recipe).all()
    report = check_recipe(recipe)
    assert not report.is_clean and report.obstacles == (f"gates: {refused.value}",)


def test_what_is_clean_for_data_check_runs(tiny_base_dir, tmp_path):
    recipe = make_recipe(make_config(tmp_path / "run", tiny_base_dir, TEXT))
    assert check_recipe(recipe).is_clean
    for check in checks(recipe, Corpora(False, recipe.reasoning)).values():
        check()
    pipeline.Run(recipe).all()
