"""One thing is changed under a finished run, and the run is asked what it makes of it. The table is whole: every key of
every class of a recipe has a row, so that a new key cannot be forgotten."""

import copy
import dataclasses
import json
import shutil

import jax.numpy as jnp
import pytest

from medkor_jax.data import embedded
from medkor_jax.data.rows import Source
from medkor_jax.eval.verdict import GateClosed, read_verdict, waive
from medkor_jax.io.models import save_model
from medkor_jax.io.streaming import WeightsError
from medkor_jax.parallel.mesh import MeshShape, make_mesh
from medkor_jax.run import pipeline
from medkor_jax.run.config_file import make_recipe
from medkor_jax.run.corpora import Corpora
from medkor_jax.run.facts import facts_of
from medkor_jax.run.lineage import Lineage, Stale
from medkor_jax.run.named_model import open_model
from medkor_jax.run.phases import Exam, Phase, Recipe
from medkor_jax.run.restart import restart
from medkor_jax.run.roles import ROLES, TRAINED, roles_of
from medkor_jax.train.retention import Retention
from medkor_jax.train.stage import Stage

DONE, JUDGED, STALE = "done", "judged again", "stale"
PHASES = ("phase0", "phase1", "phase2")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An exam, a text to learn from and a text held out, as files that a person may edit."""
    directory = tmp_path_factory.mktemp("data")

    def row(q):
        return dict(question=q.question, **dict(zip("ABCDE", q.options)), answer="ABCDE"[q.answer])

    lines = {
        "exam.jsonl": [row(q) for q in embedded.questions("valid", "en")[:24]],
        "train.jsonl": [{"text": text} for _, text in embedded.texts("en", "train")[:40]],
        "watch.jsonl": [{"text": text} for _, text in embedded.texts("en", "test")[:4]],
    }
    for name, rows in lines.items():
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def make_config(run_dir, weights, data):
    gate = dict(reading="absolute", threshold=1.0, on_failure="continue", allow_chance=True)
    stage = dict(
        steps=1, batch_size=4, seq_len=64, warmup_steps=0, data=dict(text=dict(kind="text", path=str(data / "train.jsonl"), language="en")),
        rules=dict(lora=dict(pattern="lora/.*", learning_rate=0.01), lang=dict(pattern="lang/.*", learning_rate=0.01)),
    )  # fmt: skip
    lora = dict(rank=2, alpha=4.0, targets=("q",))
    return dict(
        run_dir=str(run_dir), weights=str(weights), run=PHASES, phases=PHASES, dtype="float32", param_dtype="float32", remat="none",
        exams=dict(english=dict(source=dict(path=str(data / "exam.jsonl"), language="en"), batch_size=8)),
        held_out=dict(held=dict(kind="text", path=str(data / "watch.jsonl"), language="en")), held_out_tokens=64,
        phase0=dict(exam="english", gate=gate, lora=lora, trees=("lora",), merge=True, **stage),
        phase1=dict(exam="english", gate=gate, after="phase0", lora=lora, trees=("lora",), is_reference=True, **stage),
        phase2=dict(exam="english", gate=gate, after="phase1", language=dict(kind="vector"), trees=("lang",), **stage),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_base_dir, files, tmp_path_factory):
    directory = tmp_path_factory.mktemp("lineage") / "run"
    pipeline.Run(make_recipe(make_config(directory, tiny_base_dir, files))).all()
    return directory


@pytest.fixture
def config(finished, tiny_base_dir, files):
    return make_config(finished, tiny_base_dir, files)


def state(config, phase="phase2"):
    """Returns what a run of this config would make of the phase, and the words it would say."""
    recipe = make_recipe(config)
    lineage = Lineage(
        recipe, Corpora(recipe.drop_bad, recipe.reasoning), pipeline.pathlib.Path(recipe.run_dir)
    )
    try:
        found = lineage.finished(next(p for p in recipe.phases if p.name == phase))
    except Stale as error:
        return STALE, str(error)
    return (JUDGED, " ".join(found.judged_otherwise)) if found.judged_otherwise else (DONE, "")


def test_nothing_changed_is_nothing_to_do(config):
    assert [state(config, phase)[0] for phase in PHASES] == [DONE] * 3


TEXT = dict(kind="text", path="embedded", language="en", subset="valid")
# class -> field -> (what to put there, what phase2 should be then); a path from the config's top, or from phase2
TABLE = {
    Recipe: {
        "run_dir": None, "run": (("phase2",), DONE), "phases": None, "exams": None, "final": (dict(last=dict(source=dict(path="embedded", language="en", split="test"))), DONE),
        "weights": None, "held_out": ({}, JUDGED), "held_out_tokens": (32, JUDGED), "max_translation_tokens": (9, DONE), "dtype": ("bfloat16", STALE),
        "param_dtype": ("bfloat16", STALE), "remat": ("full", DONE), "attention": ("blocked", DONE), "chunk": (64, DONE), "language_unit": ("document", STALE),
        "mesh": (dict(data=2, fsdp=2), DONE), "topology": ("v5e:4x4", DONE), "reasoning": (dict(opening="[", closing="]"), DONE), "seed": (1, STALE),
        "allow_leaks": (("x ~ y",), DONE), "drop_bad": (True, DONE), "log_every": (3, DONE),
        "style": None,  # of a checkpoint with a template: tests/run/test_chat_run.py
    },
    Phase: {
        "name": None, "title": ("another title", DONE), "after": ("phase0", STALE), "candidates": None, "lora": (dict(rank=3), STALE),
        "remedy_lora": (dict(rank=3), DONE), "language": (dict(kind="table"), STALE), "expand": (dict(front=1), STALE), "train": None,
        "merge": None, "is_reference": (True, DONE), "exam": None, "gate": (dict(reading="absolute", threshold=0.9, on_failure="continue", allow_chance=True), JUDGED),
        "remedy": (dict(steps=1, trees=("lang",), data=dict(t=TEXT)), DONE), "translations": (dict(p=dict(kind="translation", path="embedded", subset="test", limit=2)), JUDGED),
    },
    Stage: {
        "steps": (2, STALE), "trees": None, "data": (dict(text=TEXT), STALE), "batch_size": (8, STALE), "seq_len": (32, STALE),
        "microbatches": (2, STALE), "loss_positions": (32, STALE), "rules": (dict(lang=dict(pattern="lang/.*", learning_rate=0.02)), STALE),
        "warmup_steps": (1, STALE), "final_share": (0.5, STALE), "clip_norm": (2.0, STALE), "dropout": (0.5, STALE), "next_token_weight": (2.0, STALE),
        "retention": (dict(weight=0.5), STALE), "save_every": (7, DONE), "keep_last": (3, DONE), "spike_nats": (1.0, DONE), "on_spike": ("step_back", DONE),
        "validation": (dict(v=TEXT), DONE),
        "validate_every": (1, DONE), "take": None, "reward": None,
    },
    Exam: {
        "source": None, "mode": ("cloze", JUDGED), "shots": None, "fewshot": None, "batch_size": (4, DONE), "max_new_tokens": (9, DONE),
        "max_thinking_tokens": None,  # no letter exam has it: tests/commands/test_thinking.py
        "phases": (("phase0", "phase1", "phase2"), DONE),
    },
    Source: {
        "name": None, "kind": None, "path": None, "split": ("test", None), "subset": ("x", None), "language": ("ko", STALE), "weight": (2.0, STALE),
        "licence": ("CC BY 4.0", DONE), "fields": None, "limit": (20, STALE), "skip": None, "answers_from": None,
        "revision": ("abc", DONE), "rationale": None, "held_share": None, "part": None, "part_by": (("text",), DONE), "loss": ("next_token", STALE), "orders": None,
        "answered_by": None,  # of questions: tests/data/test_answered_by.py
        "asked_as": None, "translated_to": None, "translator": None,  # of exams: `test_translated`, `test_named_exams`
    },
}  # fmt: skip
PLACES = {
    Recipe: (),
    Phase: ("phase2",),
    Stage: ("phase2",),
    Exam: ("exams", "english"),
    Source: ("phase2", "data", "text"),
}
CASES = [
    (kind, name, *row)
    for kind, fields in TABLE.items()
    for name, row in fields.items()
    if row and row[1]
]


def test_every_key_has_a_row_here_and_a_role():
    for kind, rows in TABLE.items():
        fields, settings = (
            {field.name for field in dataclasses.fields(kind)},
            {field.name for field in dataclasses.fields(kind) if hasattr(field.default, "is_on")},
        )  # each key of these is changed by `test_lineage_whole`
        assert fields - settings <= set(rows), (
            f"{kind.__name__}: say in TABLE what a change of {fields - set(rows)} should do"
        )
        assert fields - settings <= set(ROLES[kind.__name__]) <= fields, (
            f"say in roles.ROLES what {fields - set(ROLES[kind.__name__])} decides"
        )


@pytest.mark.parametrize(
    "kind, name, value, expected",
    CASES,
    ids=[f"{kind.__name__}.{name}" for kind, name, *_ in CASES],
)
def test_a_changed_key_is_noticed_or_rightly_ignored(kind, name, value, expected, config):
    config = copy.deepcopy(config)
    place = config
    for key in PLACES[kind]:
        place = place[key]
    place[name] = (
        place[name] | value
        if isinstance(value, dict)
        and isinstance(place.get(name), dict)
        and name != "data"
        and value
        else value
    )
    # what judges every phase is asked of the first: the later ones wait for it
    found, words = state(
        config, "phase0" if expected == JUDGED and kind in (Recipe, Exam) else "phase2"
    )
    assert found == expected, words
    if expected == STALE:
        assert (
            "--restart phase2" in words
            or "--restart phase0" in words
            or "--restart phase1" in words
        )


@pytest.mark.parametrize(
    "name, expected", [("exam.jsonl", JUDGED), ("train.jsonl", STALE), ("watch.jsonl", JUDGED)]
)
@pytest.mark.parametrize("row", [0, 1, -1], ids=["first", "second", "last"])
def test_any_row_of_any_file_counts(
    name, expected, row, config, files, tmp_path, tiny_base_dir, finished
):
    data = shutil.copytree(files, tmp_path / "data")
    assert state(make_config(finished, tiny_base_dir, data))[0] == DONE  # moved, and the same
    lines = (data / name).read_text().splitlines(keepends=True)
    key = "question" if name == "exam.jsonl" else "text"
    lines[row] = (
        json.dumps(
            json.loads(lines[row])
            | {key: "Something quite different is said here, at some length?"}
        )
        + "\n"
    )
    (data / name).write_text("".join(lines))
    found, words = state(make_config(finished, tiny_base_dir, data), "phase0")
    assert found == expected, words
    if expected == STALE:
        assert (
            "data.text was 40 rows of kind text, digest"
            in state(make_config(finished, tiny_base_dir, data), "phase0")[1]
        )
        assert "--accept-changed" in state(make_config(finished, tiny_base_dir, data), "phase0")[1]


def test_another_exam_is_asked_anew_and_nothing_is_trained(
    finished, files, tiny_base_dir, tmp_path, monkeypatch
):
    """The gate once judged stored answers to the old questions, over the new file's digest."""
    run_dir, data = (
        shutil.copytree(finished, tmp_path / "run"),
        shutil.copytree(files, tmp_path / "data"),
    )
    other = [
        dict(question=q.question, **dict(zip("ABCDE", q.options)), answer="ABCDE"[q.answer])
        for q in embedded.questions("valid", "en")[30:54]
    ]
    (data / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    monkeypatch.setattr(pipeline, "run_stage", lambda *_: pytest.fail("a stage was trained"))
    pipeline.Run(make_recipe(make_config(run_dir, tiny_base_dir, data))).all()
    for phase in PHASES:
        summary = json.loads((run_dir / phase / "summary.json").read_text())
        answers = [
            json.loads(line)
            for line in (run_dir / phase / summary["after"]["answers"]["english"])
            .read_text()
            .splitlines()
        ]
        assert [a["key"] for a in answers] == [row["answer"] for row in other]
        verdict = read_verdict(run_dir / phase / "verdict.json")
        assert [look["of"] for look in verdict["earlier_looks"]] == [
            look["of"] for look in read_verdict(finished / phase / "verdict.json")["looks"]
        ]
    assert [state(make_config(run_dir, tiny_base_dir, data), phase)[0] for phase in PHASES] == [
        DONE
    ] * 3


def test_a_reward_of_a_users_own_counts_by_its_source(config, tmp_path):
    """Not by where its file lies: what the function is decides what is learnt."""
    text = "def brevity(response, bound):\n    return 1.0\n"
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "moved.py").write_text(text)
    (tmp_path / "other.py").write_text(text.replace("1.0", "0.5"))

    def facts(file, **part):
        parts = dict(
            answer=dict(weight=1.0),
            brevity=dict(function=f"{tmp_path / file}:brevity", weight=0.1, bound=9.0) | part,
        )
        data = dict(exam=dict(kind="exam", path="embedded", language="en", limit=8))
        reward = dict(algorithm="grpo", rollout=dict(group_size=4, max_new_tokens=8), parts=parts)
        recipe = make_recipe(
            config | {"phase2": config["phase2"] | dict(data=data, reward=reward, seq_len=128)}
        )
        return facts_of(
            recipe, Corpora(recipe.drop_bad, recipe.reasoning), recipe.phases[2]
        ).trained

    mine = facts("mine.py")
    assert (
        mine["train.reward.parts.brevity.function"] == "brevity"
        and mine["train.reward.parts.brevity.weight"] == 0.1
    )
    assert facts("moved.py") == mine
    changed = {name for name, value in facts("other.py").items() if mine[name] != value}
    assert changed == {"train.reward.parts.brevity.source"}
    assert facts("mine.py", weight=0.2) != mine != facts("mine.py", bound=8.0)


def test_a_phase_that_was_redone_makes_all_after_it_stale(finished, files, tiny_base_dir, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    config = make_config(run_dir, tiny_base_dir, files)
    config["phase1"] = config["phase1"] | {"seq_len": 32}
    recipe = make_recipe(config | {"run": ("phase0", "phase1")})
    restart(recipe, ["phase1"])
    pipeline.Run(recipe).all()
    with pytest.raises(
        Stale,
        match="phase2 was made from another phase1 than the present one. Run it again with --restart phase2",
    ):
        pipeline.Run(make_recipe(config | {"run": ("phase2",)})).all()
    assert open_model(run_dir).name.endswith(
        "phase1"
    )  # the old phase2 is not this run's model any more


def test_a_restart_of_phase_0_that_comes_to_the_same_leaves_the_rest_standing(
    finished, files, tiny_base_dir, tmp_path
):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    config = make_config(run_dir, tiny_base_dir, files)
    config["phase0"] = config["phase0"] | {"title": "another title"}
    config["exams"]["english"]["batch_size"] = 6
    recipe = make_recipe(config)
    restart(recipe, ["phase0"])
    pipeline.Run(recipe).all()
    assert [state(config, phase)[0] for phase in PHASES] == [DONE] * 3
    assert len(list((run_dir / "bases").iterdir())) == 1


def test_what_changed_can_be_accepted_and_stays_on_record(
    finished, files, tiny_base_dir, tmp_path, monkeypatch
):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    config = make_config(run_dir, tiny_base_dir, files)
    config["phase2"] = config["phase2"] | {"clip_norm": 2.0}
    monkeypatch.setattr(pipeline, "run_stage", lambda *_: pytest.fail("a stage was trained"))
    with pytest.raises(Stale, match="train.clip_norm was 1.0, is 2.0"):
        pipeline.Run(make_recipe(config)).all()
    pipeline.Run(make_recipe(config), accept_changed=True).all()
    pipeline.Run(make_recipe(config)).all()  # said once, held for ever
    record = json.loads((run_dir / "phase2/record.json").read_text())
    assert record["trained"]["train.clip_norm"] == 1.0 and record["accepted"] == {
        "train.clip_norm": 2.0
    }
    config["phase2"]["clip_norm"] = 3.0
    with pytest.raises(Stale, match="is 3.0"):
        pipeline.Run(make_recipe(config)).all()


@pytest.mark.parametrize(
    "name", ["record.json", "model.json", "verdict.json", "measured-after.json"]
)
def test_a_changed_record_is_noticed(
    name, finished, files, tiny_base_dir, tmp_path, monkeypatch, capsys
):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    path = run_dir / "phase2" / name
    text = path.read_text()
    at = text.index("digest") + 12
    path.write_text(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :])
    config = make_config(run_dir, tiny_base_dir, files)
    monkeypatch.setattr(pipeline, "run_stage", lambda *_: pytest.fail("a stage was trained"))
    if name == "measured-after.json":
        pipeline.Run(make_recipe(config)).all()  # nothing asks for it: the phase is done
        return
    with pytest.raises(
        (GateClosed, WeightsError),
        match=f"{name}.*(was changed after it was written|is not a whole verdict)",
    ):
        pipeline.Run(make_recipe(config)).all()


def test_a_run_is_its_furthest_open_phase_and_says_what_it_leaves_out(finished, tmp_path, capsys):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    assert open_model(run_dir).digest == open_model(run_dir / "phase2").digest
    capsys.readouterr()
    ledger = json.loads((run_dir / "ledger.json").read_text())
    (run_dir / "ledger.json").write_text(
        json.dumps([*ledger, ledger[2], ledger[3]])
    )  # phase1 was looked at last
    assert (
        open_model(run_dir).digest == open_model(run_dir / "phase2").digest
        and not capsys.readouterr().err
    )
    # phase2's waiver is gone: its gate is closed
    from medkor_jax.eval import verdict

    verdict._store(
        run_dir / "phase2/verdict.json",
        read_verdict(run_dir / "phase2/verdict.json") | {"waiver": None},
    )
    assert open_model(run_dir).digest == open_model(run_dir / "phase1").digest
    said = capsys.readouterr().err
    assert (
        "taken as phase1, its furthest open phase; left out: phase2" in said
        and "did not pass" in said
    )
    assert (
        open_model(run_dir / "phase2").directory.name == "phase2"
        and "did not pass" in capsys.readouterr().err
    )
    waive(run_dir / "phase2/verdict.json", "by hand")
    assert open_model(run_dir).directory.name == "phase2"
    # and moved, it is the same run
    shutil.move(run_dir, tmp_path / "elsewhere")
    model = open_model(tmp_path / "elsewhere")
    assert model.load(jnp.float32, make_mesh(MeshShape())).lora and str(
        tmp_path / "elsewhere"
    ) in str(model.base.name)


def test_a_run_without_an_open_phase_says_so(tmp_path, finished):
    (tmp_path / "ledger.json").write_text(json.dumps([{"phase": "phase0", "event": "started"}]))
    with pytest.raises(
        WeightsError,
        match="no open phase .phase0: it has not finished.*name the directory of a phase",
    ):
        open_model(tmp_path)


def test_adapters_put_in_by_hand_are_not_the_phase(finished, files, tiny_base_dir, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    model = open_model(run_dir / "phase2")
    params = model.load(jnp.float32, make_mesh(MeshShape()))
    save_model(
        run_dir / "phase2", params.replace(lang={"vector": params.lang["vector"] + 1}), model.base
    )
    assert state(make_config(run_dir, tiny_base_dir, files))[0] == STALE


def test_a_setting_that_came_later_and_is_off_leaves_finished_phases_as_they_were():
    """Records of runs before `retention.at` and `Source.loss` name neither; nor do those of today that do not set them."""
    held = dict(roles_of(Stage(retention=Retention(weight=1.0)), TRAINED))
    assert "retention.positions" in held and "retention.at" not in held
    other = dict(roles_of(Stage(retention=Retention(weight=1.0, at="last")), TRAINED))
    assert other["retention.at"] == "last"
    assert "loss" not in Source("t", "text", "embedded").settings()
    assert Source("t", "text", "embedded", loss="each_layer").settings()["loss"] == "each_layer"
