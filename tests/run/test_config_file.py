"""Every config that ships builds a recipe, and overrides are checked."""

import ast
import itertools
import pathlib

import pytest

from configs import phases
from medkor_jax.run.config_file import load_config, load_recipe, make_recipe
from medkor_jax.run.defaults import plain
from medkor_jax.run.phases import ConfigError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
RUNNABLE = sorted(
    p.name
    for p in CONFIGS.glob("*.py")
    if p.name not in ("__init__.py", "common.py", "phases.py", "public.py")
)
ORDER = (
    "phase0", "phase1", "phase2", "phase3", "phase4b_translation", "phase5c_reasoning",
)  # fmt: skip
SHEET = tuple(make.__name__ for make in phases.ORDER)
QUICKSTART, PIPELINE = str(CONFIGS / "quickstart.py"), str(CONFIGS / "pipeline.py")


def test_the_configs_are_found():
    assert {
        "phase0.py",
        "phase1.py",
        "phase2.py",
        "phase3.py",
        "pipeline.py",
        "quickstart.py",
        "rewarded.py",
    } <= set(RUNNABLE)


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_config_builds_a_recipe(name):
    recipe = load_recipe(str(CONFIGS / name))
    defined = tuple(phase.name for phase in recipe.phases)
    assert recipe.run == (
        tuple(n for n in defined if n.startswith(name[:-3]))
        if name.startswith("phase")
        else defined
    )
    assert defined == tuple(name for name in SHEET if name in defined)


def test_the_quick_start_goes_on_with_the_same_first_phases():
    first, whole = load_recipe(f"{QUICKSTART}:phase3"), load_recipe(QUICKSTART)
    assert whole.run == ORDER and whole.run_dir == first.run_dir
    assert whole.phases[:4] == first.phases
    rewarded = load_recipe(f"{QUICKSTART}:phase5d_exam")
    assert rewarded.phases[: len(ORDER)] == whole.phases and rewarded.run[-1] == "phase5d_exam"
    gates = [
        phase.gate for phase in whole.phases[2:]
    ]  # one reading and one threshold for all that compare
    assert {(gate.reading, gate.threshold, gate.metric) for gate in gates} == {
        ("relative", 0.9, "probability")
    }
    judging = {exam.source for exam in whole.exams if exam.source.name != "english-choice"}
    assert not judging & {exam.source for exam in whole.exams_of(whole.phases[0])}
    with pytest.raises(
        ConfigError, match="'phase9' is no phase to run up to; the phases are phase0"
    ):
        load_recipe(f"{QUICKSTART}:phase9")


def test_the_order_of_the_phases_is_the_one_the_method_names():
    phases = {phase.name: phase for phase in load_recipe(str(CONFIGS / "pipeline.py")).phases}
    assert phases["phase0"].merge and phases["phase0"].train.trees == ("lora",)
    assert phases["phase1"].is_reference and phases["phase1"].candidates == (
        "phase0",
        "phase0 on google/medgemma-27b-text-it",
    )
    assert phases["phase1"].remedy.trees == ("lora",)
    assert (phases["phase2"].after, phases["phase2"].train.trees) == ("phase1", ("lang",))
    assert (phases["phase3"].after, phases["phase3"].train.trees) == ("phase2", ("lora", "lang"))
    for name in ("phase2", "phase3"):
        assert phases[name].gate.threshold == 0.97 and phases[name].gate.on_failure == "retain"
        assert (
            phases[name].remedy.retention.weight == 1.0
            and phases[name].remedy.next_token_weight == 0.0
        )
        assert {source.language for source in phases[name].remedy.data} == {"en"}


def test_phases_4_and_5_are_in_the_order_of_the_method_and_each_holds_english():
    phases = load_recipe(str(CONFIGS / "pipeline.py")).phases
    for before, phase in itertools.pairwise(phases[3:]):
        assert phase.after == before.name
        assert (phase.gate.on_failure, phase.gate.threshold, phase.remedy.retention.weight) == (
            "retain",
            0.97,
            1.0,
        )
        assert phase.remedy.trees == phase.train.trees
    by_name = {phase.name: phase for phase in phases}
    assert by_name["phase4a_text"].train.trees == ("lora", "lang")
    assert (
        by_name["phase4b_translation"].expand.front,
        by_name["phase4b_translation"].expand.back,
    ) == (1, 1)
    assert by_name["phase5a_text"].train.trees == ("lora", "lang")  # the added layers rest
    whole = [phase for phase in phases[5:] if phase.name != "phase5a_text"]
    assert all(phase.train.trees == ("lora", "lang", "expand") for phase in whole)
    for name in ("phase4b_translation", "phase5b_translation"):
        assert by_name[name].translations and by_name[name].train.data[0].kind == "translation"
    assert by_name["phase5c_reasoning"].train.data[0].kind == "reasoning"
    assert by_name["phase5d_exam"].train.reward.algorithm == "grpo"


def test_overrides_reach_nested_keys():
    recipe = load_recipe(
        QUICKSTART,
        ["--config.phase3.steps=7", "--config.phase3.gate.threshold=0.9", "--config.seed=5"],
    )
    third = recipe.phases[3]
    assert (third.train.steps, third.gate.threshold, recipe.seed) == (7, 0.9, 5)
    assert recipe.phases[2].train.steps == load_recipe(QUICKSTART).phases[2].train.steps != 7


def test_a_config_file_that_still_says_true_or_false_is_told_the_names(tmp_path):
    file = tmp_path / "old.py"
    file.write_text(
        "from configs import quickstart\ndef get_config():\n    c = quickstart.get_config()\n    c.remat = True\n    return c\n"
    )
    with pytest.raises(
        ConfigError,
        match='remat is a name now: "full" for what was True, "none" for what was False$',
    ):
        load_recipe(str(file))


def test_overriding_one_load_leaves_the_next_alone():
    load_config(QUICKSTART, ["--config.seed=5"])
    assert load_config(QUICKSTART).seed == 0


@pytest.mark.parametrize(
    "override, words",
    [
        ("--config.phase3.stepz=7", "stepz"),
        ("--config.weigths=x", "config.weigths is not a key; nearest: 'weights'"),
        (
            "--config.phase3.groups.lora.learning_rate=1.0",
            "config.phase3.groups is not a key; groups is rules now",
        ),
        ("--config.watch.english.limit=3", "config.watch is not a key; watch is held_out now"),
        ("--config.phase3.gate.requires.korean-loss.watch=x", "watch is held_out now"),
        (
            "--config.phase5d_exam.reward.kl_weight=1.0",
            "reward.kl_weight is reward.policy.kl_weight now",
        ),
        ("--config.phase3.steps=many", "steps"),
        ("--config.phase3.gate.reading=exact", "reading is 'exact'"),
        ("--conf.phase3.steps=7", "not understood: --conf.phase3.steps=7"),
        ("phase3.steps=7", "overrides read --config.phase3.steps=100"),
        (
            "--config.remat=gates",
            "remat is 'gates'; expected one of none, gate_up, all_but_down, full; nearest: 'gate_up'",
        ),
        ("--config.remat=True", 'use "full"'),
        ("--config.remat=False", 'use "none"'),
    ],
)
def test_a_wrong_override_is_a_config_error(override, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe(PIPELINE, [override])


def test_a_missing_file_names_its_neighbour():
    with pytest.raises(ConfigError, match=r"nearest: .*quickstart\.py"):
        load_recipe(str(CONFIGS / "quikstart.py"))


@pytest.mark.parametrize(
    "line, words",
    [
        ("raise ValueError('no such data')", "no such data"),
        ("c.phase3.stepz = 4", "'stepz' is not a key; nearest: 'steps'$"),
        ("c.phase3.steps = 'many'", "'steps'"),
        (
            "c.phase5d_exam.reward.max_refills = 0",
            "'max_refills' is not a key; reward.max_refills is reward.rollout.max_refills now",
        ),
        ("c.phase3.groups.lora.learning_rate = 1.0", "'groups' is not a key; groups is rules now"),
        ("c.phase3.groups = {}", "config.phase3.groups is not a key of Phase; groups is rules now"),
        (
            "c.exams.english.sauce = dict(limit=5)",
            "config.exams.english.sauce is not a key of Exam; nearest: 'source'",
        ),
    ],
)
def test_a_file_that_builds_no_config_is_a_config_error(tmp_path, line, words):
    text = "from configs import pipeline\ndef get_config():\n    c = pipeline.get_config()\n    {}\n    return c\n"
    (tmp_path / "broken.py").write_text(
        text.format(f"with c.unlocked(): {line}" if "sauce" in line or "{}" in line else line)
    )
    with pytest.raises(ConfigError, match=words):
        load_recipe(str(tmp_path / "broken.py"))


def test_a_file_may_take_out_exams_of_another(tmp_path):
    """What it keeps are ConfigDicts that are locked, in a mapping that is not."""
    (tmp_path / "fewer.py").write_text(
        "from configs import quickstart\ndef get_config():\n    c = quickstart.get_config()\n"
        "    c.exams = {name: exam for name, exam in c.exams.items() if 'reasoned' not in name}\n    return c\n"
    )
    names = {exam.source.name for exam in load_recipe(str(tmp_path / "fewer.py")).exams}
    assert names == {"english-choice", "english", "korean"}


def test_a_key_that_a_file_leaves_out_can_be_overridden():
    """Sources, exams and conditions are written short; none of their keys is out of reach for it."""
    changes = (
        "exams.korean.source.limit=5",
        "phase3.data.korean-text.weight=2.5",
        "phase3.gate.requires.korean-kept.threshold=0.5",
    )
    recipe = load_recipe(str(CONFIGS / "pipeline.py"), [f"--config.{change}" for change in changes])
    phase = next(phase for phase in recipe.phases if phase.name == "phase3")
    assert recipe.exam("korean").source.limit == 5
    assert {source.name: source.weight for source in phase.train.data} == {
        "korean-exam-train": 1.0,
        "korean-text": 2.5,
    }
    assert {asked.name: asked.threshold for asked in phase.gate.requires}["korean-kept"] == 0.5


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_recipe_gives_back_its_config(name):
    recipe = load_recipe(str(CONFIGS / name))
    assert make_recipe(plain(recipe)) == recipe


def test_the_phases_run_in_the_order_of_the_sheet():
    assert load_recipe(PIPELINE).run == SHEET


def test_no_config_imports_another_that_imports_it():
    """Imports in functions count."""
    imports = {}
    for file in CONFIGS.glob("*.py"):
        nodes = [
            n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)
        ]
        among = [
            n.module.removeprefix("configs").strip(".")
            for n in nodes
            if n.module.split(".")[0] == "configs"
        ]
        among += [a.name for n in nodes if n.module == "configs" for a in n.names]
        imports[file.stem] = set(filter(None, among))
    done = set()
    while ready := {name for name in imports if name not in done and imports[name] <= done}:
        done |= ready
    assert done == set(imports)
