"""A large candidate behind a small one: opened, trained on and judged only if the small one did not pass."""

import dataclasses
import gc
import json
import shutil
import weakref

import jax
import pytest

from medkor_jax.data import embedded
from medkor_jax.data.reading import add_readings
from medkor_jax.data.rows import Source
from medkor_jax.eval.verdict import GateClosed, read_verdict
from medkor_jax.io.bases import save_base
from medkor_jax.io.models import open_model, read_ledger
from medkor_jax.io.streaming import WeightsError
from medkor_jax.run import pipeline
from medkor_jax.run.choosing import told
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.corpora import Corpora, LeakError
from medkor_jax.run.lineage import Stale
from medkor_jax.run.named_model import open_model as open_named
from medkor_jax.run.phases import ConfigError
from medkor_jax.run.readiness import checks
from medkor_jax.run.restart import restart
from medkor_jax.run.summary import closing_table

from .test_pipeline import TEXT, make_config, report_of

ON_LARGE = "phase0-large"
GATE = dict(reading="absolute", threshold=0.6, on_failure="stop")  # 38 of 40 open it, 30 do not


@pytest.fixture(scope="module")
def large(make_base, tiny_base_dir, tmp_path_factory):
    model = open_model(tiny_base_dir)
    config = dataclasses.replace(model.config, d_ff=2 * model.config.d_ff)
    directory = tmp_path_factory.mktemp("large") / "large"
    save_base(directory, make_base(config), config, model.tokenizer, {"made_by": "tests"})
    return directory


@pytest.fixture
def asked(monkeypatch, tiny_base_dir):
    """Exams that are not asked: the small model has `asked.small` of 40 right, the large one `asked.large`; `asked.of` counts."""

    class Asked:
        small, large, of = 30, 38, []

    n_small = open_model(tiny_base_dir).config.n_params
    Asked.of = []

    def examine(self, loaded, name):
        is_small = loaded.config.n_params == n_small
        Asked.of.append(("small" if is_small else "large", name))
        return report_of(Asked.small if is_small else Asked.large)

    monkeypatch.setattr(pipeline.Measurer, "examine", examine)
    return Asked


def config_of(tmp_path, weights, large, run=("phase0", "phase1")):
    config = make_config(tmp_path / "run", weights)
    exam = dict(source=dict(path="embedded", split="valid", language="en", limit=40), batch_size=8)
    # phase 0 is measured by one exam and phase 1 chooses by another, put to phase 0's model as to its copy's
    config["exams"]["english"]["phases"] = ("phase0", "phase2", "phase3")
    config["exams"]["choice"] = exam | dict(phases=("phase1",))
    config["phase1"] = dict(
        candidates=("phase0", f"phase0 on {large}"), exam="choice", gate=GATE, is_reference=True
    )
    return config | {"run": run}


def run(config):
    pipeline.Run(make_recipe(config)).all()


@pytest.fixture(scope="module")
def made(tiny_base_dir, large, tmp_path_factory):
    """A run that took the large model, and a copy of the large model that it names."""
    place = tmp_path_factory.mktemp("made")
    shutil.copytree(large, place / "large")
    with pytest.MonkeyPatch.context() as patch:
        n_small = open_model(tiny_base_dir).config.n_params
        right = lambda loaded: 30 if loaded.config.n_params == n_small else 38
        patch.setattr(
            pipeline.Measurer, "examine", lambda self, loaded, name: report_of(right(loaded))
        )
        run(config_of(place, tiny_base_dir, place / "large", ("phase0", "phase1", "phase2")))
    return place


@pytest.fixture
def nothing_is_done(monkeypatch):
    monkeypatch.setattr(pipeline, "run_stage", lambda *_: pytest.fail("a stage was trained"))
    monkeypatch.setattr(pipeline, "merge_held", lambda *_, **__: pytest.fail("merged"))
    monkeypatch.setattr(pipeline.Measurer, "examine", lambda *_: pytest.fail("an exam was asked"))


def test_the_large_one_need_not_exist_while_the_small_one_passes(
    tmp_path, tiny_base_dir, asked, capsys
):
    asked.small = 38
    config = config_of(tmp_path, tiny_base_dir, "no-such-org/large")
    run(config)
    assert open_model(tmp_path / "run/phase1").base.digest == (
        open_model(tmp_path / "run/phase0").base.digest
    )
    assert [name for name, _ in asked.of] == ["small"] * 3  # phase 0 before and after, the choice
    said = capsys.readouterr().out
    assert "phase0 on no-such-org/large, opened only if phase0 does not pass" in said
    assert "is taken, the first that passes; 1 behind it not opened" in said
    verdict = read_verdict(tmp_path / "run/phase1/verdict.json")
    assert verdict["passed"] and verdict["judgement"]["looks"] == 2
    record = json.loads((tmp_path / "run/phase1/record.json").read_text())
    assert [one["phase"] for one in record["upstream"]] == ["phase0"]
    assert not (tmp_path / "run" / ON_LARGE).exists()

    before = read_ledger(tmp_path / "run")
    run(config)
    assert len(asked.of) == 3 and read_ledger(tmp_path / "run") == before
    # what stands behind the one that passed decides nothing; that something does, counts as a look
    run(config_of(tmp_path, tiny_base_dir, "no-such-org/other"))
    assert read_ledger(tmp_path / "run") == before
    alone = config_of(tmp_path, tiny_base_dir, "x")
    alone["phase1"]["candidates"] = ("phase0",)
    run(alone)
    assert [one["event"] for one in read_ledger(tmp_path / "run")[len(before) :]] == [
        "judged again",
        "finished",
    ]


def test_a_missing_large_one_loses_nothing_and_the_same_command_goes_on(
    tmp_path, tiny_base_dir, large, asked, monkeypatch
):
    config = config_of(tmp_path, tiny_base_dir, tmp_path / "large")
    with pytest.raises(
        WeightsError,
        match=r"phase1: no candidate before it passed, and the next, .*/large, cannot be opened: no weights are called .*"
        r"Nothing is lost: .*the same command goes on",
    ):
        run(config)
    assert [name for name, _ in asked.of] == ["small"] * 3
    assert read_verdict(tmp_path / "run/phase0/verdict.json")
    assert not (tmp_path / "run/phase1/verdict.json").exists()

    shutil.copytree(large, tmp_path / "large")
    trained, true_stage = [], pipeline.run_stage
    monkeypatch.setattr(
        pipeline, "run_stage", lambda plan, *a: trained.append(plan) or true_stage(plan, *a)
    )
    run(config)
    assert [name for name, _ in asked.of[3:]] == ["large"] * 3  # the small one is not asked again
    assert [plan.name for plan in trained] == [f"{ON_LARGE}/train"]
    taken, chosen = open_model(tmp_path / "run" / ON_LARGE), open_model(tmp_path / "run/phase1")
    assert taken.digest == chosen.digest != open_model(tmp_path / "large").digest
    assert chosen.base.name.startswith(str(tmp_path / f"run/bases/{ON_LARGE}-"))
    lineage = json.loads((tmp_path / "run/bases").glob(f"{ON_LARGE}-*").__next__().joinpath("lineage.json").read_text())  # fmt: skip
    assert lineage["base_digest"] == open_model(tmp_path / "large").base.digest


def test_phase_0_on_the_large_one_is_phase_0_by_its_recipe(made, tiny_base_dir):
    run_dir = made / "run"
    own, other = (
        json.loads((run_dir / name / "record.json").read_text()) for name in ("phase0", ON_LARGE)
    )
    assert own["trained"] == other["trained"] and own["judged"] == other["judged"]
    assert other["upstream"] == [{"phase": "", "digest": open_model(made / "large").digest}]
    record = json.loads((run_dir / "phase1/record.json").read_text())
    assert [one["phase"] for one in record["upstream"]] == ["phase0", ON_LARGE]
    assert record["judged"]["candidates"] == 2
    assert [
        (entry["phase"], entry["event"])
        for entry in read_ledger(run_dir)
        if entry["phase"] in (ON_LARGE, "phase1")
    ] == [
        ("phase1", "started"),
        (ON_LARGE, "started"),
        (ON_LARGE, "finished"),
        ("phase1", "finished"),
    ]
    looks = read_verdict(run_dir / "phase1/verdict.json")["looks"]
    assert [(look["passed"], look["looks"]) for look in looks] == [(False, 2), (True, 2), (True, 2)]
    # later phases stand on it, and the run is its furthest phase
    assert open_model(run_dir / "phase2").base.digest == open_model(run_dir / ON_LARGE).base.digest
    assert open_named(str(run_dir)).name.endswith("phase2")


def test_a_second_run_does_nothing_twice(made, tiny_base_dir, nothing_is_done, capsys):
    before = read_ledger(made / "run")
    run(config_of(made, tiny_base_dir, made / "large", ("phase0", "phase1", "phase2")))
    assert read_ledger(made / "run") == before
    assert "phase1: done before" in capsys.readouterr().out
    assert f"{ON_LARGE}  " in closing_table(made / "run", ["phase0", ON_LARGE, "phase1", "phase2"])


@pytest.fixture
def copied(made, tmp_path, tiny_base_dir):
    """A copy of that run, to be spoilt: it names the large model where it was."""
    shutil.copytree(made / "run", tmp_path / "run")
    return config_of(tmp_path, tiny_base_dir, made / "large", ("phase0", "phase1", "phase2"))


def test_a_changed_recipe_makes_the_copy_stale_too(copied, tmp_path, nothing_is_done):
    copied["phase0"] = copied["phase0"] | {"clip_norm": 2.0}
    with pytest.raises(Stale, match="phase0 was trained otherwise: train.clip_norm"):
        run(copied)
    with pytest.raises(
        Stale,
        match=rf"{ON_LARGE} was trained otherwise: train.clip_norm was 1.0, is 2.0. Run it again with "
        rf"--restart {ON_LARGE} --restart phase1 --restart phase2, or keep it with --accept-changed",
    ):
        pipeline.Run(make_recipe(copied | {"run": ("phase1",)})).lineage.open(ON_LARGE)
    pipeline.Run(make_recipe(copied), accept_changed=True).all()
    record = json.loads((tmp_path / "run" / ON_LARGE / "record.json").read_text())
    assert record["accepted"] == {"train.clip_norm": 2.0}


def test_other_large_weights_make_stale_what_was_made_from_them(
    copied, tmp_path, make_base, tiny_base_dir, nothing_is_done
):
    model = open_model(tiny_base_dir)
    config = dataclasses.replace(model.config, d_ff=2 * model.config.d_ff)
    other = tmp_path / "other/large"
    save_base(other, make_base(config, seed=1), config, model.tokenizer, {"made_by": "tests"})
    copied["phase1"]["candidates"] = ("phase0", f"phase0 on {other}")
    with pytest.raises(Stale, match=f"{ON_LARGE} was made from another {other}"):
        run(copied)
    copied["phase1"]["candidates"] = ("phase0", "phase0 on no-such-org/elsewhere")
    with pytest.raises(
        Stale, match="phase1 was made from another phase0 and phase0-elsewhere than the present one"
    ):
        run(copied)


def test_the_copy_is_restarted_by_its_name(copied, tmp_path, asked):
    recipe = make_recipe(copied)
    moved = restart(recipe, [ON_LARGE, "phase1", "phase2"])
    assert [path.name for path in moved] == [
        f"{name}.before-1" for name in (ON_LARGE, "phase1", "phase2")
    ]
    pipeline.Run(recipe).all()
    assert open_model(tmp_path / "run/phase2").digest == open_model(moved[2]).digest
    with pytest.raises(ConfigError, match=f"nearest: '{ON_LARGE}'"):
        restart(recipe, [f"{ON_LARGE}r"])


def test_never_two_bases_in_memory(tmp_path, tiny_base_dir, large, asked, monkeypatch):
    asked.large = 20  # none passes: the small one is loaded once more
    bases, true_load = [], pipeline.load

    def load(model, *arguments, base=None, **rest):
        gc.collect()
        if base is None:
            alive = [name for name, of in bases if of() is not None]
            assert not alive, f"{model.name} is loaded beside {alive}"
        loaded = true_load(model, *arguments, base=base, **rest)
        if base is None:
            bases.append((model.name, weakref.ref(jax.tree.leaves(loaded.params.base)[0])))
        return loaded

    monkeypatch.setattr(pipeline, "load", load)
    with pytest.raises(GateClosed):
        run(config_of(tmp_path, tiny_base_dir, large))
    assert len(bases) >= 3 and bases[-1][0].endswith("phase0")


def test_what_the_large_one_has_read_is_compared_when_it_is_opened(
    tmp_path, tiny_base_dir, make_base, asked
):
    question = embedded.questions("valid", "en")[3]
    row = dict(question=question.question, **dict(zip("ABCDE", question.options)), answer=1)
    (tmp_path / "read.jsonl").write_text(json.dumps(row) + "\n")
    source = Source("mine", "exam", str(tmp_path / "read.jsonl"), language="en")
    model = open_model(tiny_base_dir)
    config = dataclasses.replace(model.config, d_ff=2 * model.config.d_ff)
    read = [one.to_json() for one in add_readings((), [source], by="phase9")]
    large = tmp_path / "large"
    save_base(large, make_base(config), config, model.tokenizer, {"made_by": "tests", "read": read})
    with pytest.raises(LeakError, match=rf"mine@{large}:.* ~ choice:embedded/valid"):
        run(config_of(tmp_path, tiny_base_dir, large))
    assert not (tmp_path / "run" / ON_LARGE).exists()


@pytest.mark.parametrize(
    "candidates, words",
    [
        (("phase0", "phse0 on a/b"), "'phse0' is no phase of this config; nearest: 'phase0'"),
        (("phase0", "phase2 on a/b"), "phase2 runs after it, or is it"),
        (("phase0", "phase0 on a/b", "phase0 on c/b"), "would share the directory phase0-b with 'a/b'"),
    ],
)  # fmt: skip
def test_a_candidate_that_cannot_be_meant_is_refused(candidates, words, tmp_path, tiny_base_dir):
    config = config_of(tmp_path, tiny_base_dir, "x/y")
    config["phase1"]["candidates"] = candidates
    with pytest.raises(ConfigError, match=words):
        make_recipe(config)


def test_only_a_phase_that_starts_from_the_runs_weights_goes_on_others(tmp_path, tiny_base_dir):
    config = config_of(tmp_path, tiny_base_dir, "x/y")
    config["phase2"]["candidates"] = ("phase1", "phase1 on x/y")
    with pytest.raises(ConfigError, match="only a phase that starts from the run's weights"):
        make_recipe(config)


def test_sizes_that_are_known_and_fall_are_refused(tmp_path, tiny_base_dir):
    order = lambda recipe: checks(recipe, Corpora(False))["order"]()
    config = config_of(tmp_path, tiny_base_dir, "x/y") | {"weights": "google/medgemma-27b-text-it"}
    for small, is_refused in (("google/medgemma-4b-it", True), ("nobody/knows", False)):
        config["phase1"]["candidates"] = ("phase0", f"phase0 on {small}")
        if is_refused:
            with pytest.raises(ConfigError, match=r"'phase0 on .*4b-it' \(3.88B\) stands behind 'phase0' \(27.01B\)"):  # fmt: skip
                order(make_recipe(config))
        else:
            assert "phase0 on nobody/knows, opened only if phase0 does not pass" in order(
                make_recipe(config)
            )


def test_what_is_tried_only_if_needed_is_said(tmp_path, tiny_base_dir):
    config = config_of(tmp_path, tiny_base_dir, "google/medgemma-27b-text-it")
    assert told(make_recipe(config)) == (
        "Tried only if needed:\n  phase1: phase0 on google/medgemma-27b-text-it (27.01B), opened only if phase0 does not pass; "
        "phase0 is then run on it first"
    )
    config["phase1"]["candidates"] = ("phase0",)
    assert told(make_recipe(config)) == "" and TEXT
