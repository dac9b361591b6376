"""What a plan says and decides: with costs made up, by arithmetic, and as a command."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from medkor_jax import cli
from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.model.config import preset
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.plan import auto, command, report, search
from medkor_jax.plan.command import config_of, plan_config, read_prices
from medkor_jax.plan.compiling import Found
from medkor_jax.plan.handcount import kernel_flops
from medkor_jax.plan.planner import HBM, ICI, MXU, Plan, StageCost, bound_of, make_plan
from medkor_jax.plan.program import Cost, Kernel
from medkor_jax.plan.stages import STEP, PlannedRun, PlannedStage, Program, Trees
from medkor_jax.plan.topology import GIB, parse_topology
from medkor_jax.plan.traffic import Collective
from medkor_jax.run.config_file import load_recipe
from medkor_jax.run.phases import ConfigError
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import step_spec

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
V5E = parse_topology("v5e:4x4")
TEXT = Program(
    STEP,
    Trees(LoraSettings(rank=2)),
    ("lora",),
    step_spec(Stage(), ComputeSettings()),
    16,
    64,
    64,
    "bfloat16",
)


def found(gib=1.0, flops=0.0, main=0.0, wire=0.0, refused=""):
    collectives = {("1",): Collective("all-gather", wire, wire, 0.0, 16)} if wire else {}
    return Found(
        {"total": gib * GIB, "temporary": 0.0},
        Cost(flops, main, collectives),
        1.0,
        "compiled",
        0.0,
        15.75 * GIB,
        refused,
    )


@pytest.mark.parametrize("cost, wall, seconds", [
    (dict(flops=197e12, main=819e8, wire=45e8), MXU, 1.0), (dict(flops=197e11, main=819e9 * 2, wire=45e8), HBM, 2.0),
    (dict(flops=197e11, main=819e8, wire=2 * 45e9 * 3), ICI, 3.0),
])  # fmt: skip
def test_a_step_takes_at_least_what_its_slowest_wall_takes(cost, wall, seconds):
    bound = bound_of(found(**cost), V5E)
    assert (bound.wall, bound.least) == (wall, pytest.approx(seconds))


def test_hours_tokens_and_money_follow_from_the_bounds():
    stage = PlannedStage("phase0/train", 3600, 1000, (PlannedRun(TEXT, 1.0), PlannedRun(TEXT, 4.0)))
    cost = StageCost(stage, (found(flops=197e12), found(main=819e9 / 4)), V5E)
    plan = Plan("m", V5E, MeshShape(), (cost,), price=1.5)
    assert cost.seconds_per_update == pytest.approx(2.0) and plan.hours == pytest.approx(2.0)
    assert cost.tokens_per_day == pytest.approx(1000 * 86400 / 2) and plan.money == pytest.approx(
        2 * 16 * 1.5
    )


def test_what_the_compiler_refused_does_not_fit_and_is_in_the_table():
    stage = PlannedStage("phase0/train", 1, 1, (PlannedRun(TEXT, 1.0),))
    plan = Plan(
        "m",
        V5E,
        MeshShape(),
        (StageCost(stage, (found(refused="Used 20G of 15.75G hbm"),), V5E),),
        change="remat='full'",
    )
    assert (
        not plan.fits
        and not Plan("m", V5E, MeshShape(), (StageCost(stage, (found(gib=16),), V5E),)).fits
    )
    table = report.table(plan)
    assert "Used 20G" in table and "It fits with remat='full'." in table


def small(gib, name="gpu:4x80GB"):
    topology = parse_topology(name)
    return dataclasses.replace(
        topology, chip=dataclasses.replace(topology.chip, memory_bytes=gib * GIB)
    )


def test_the_first_change_that_fits_is_found_by_trying():
    """A program that just does not fit takes more remat; one that is far off takes all of it, and microbatches."""
    from medkor_jax.plan.compiling import machine
    from medkor_jax.plan.measuring import measure

    config, shape = (
        dataclasses.replace(preset("tiny"), sliding_window=512),
        MeshShape(data=1, fsdp=4),
    )
    program = dataclasses.replace(TEXT, length=256, rows=32)
    everything = dataclasses.replace(program.spec, compute=ComputeSettings(remat="full"))
    remade = lambda **spec: dataclasses.replace(
        program, spec=dataclasses.replace(everything, **spec)
    )
    with machine(small(1), shape) as mesh:
        need = lambda program: measure(program, config, mesh, small(1)).memory["total"] / GIB
        full, four = need(remade()), need(remade(microbatches=4))
        assert four < full < need(program)
    said = []
    change, tried = search.first_that_fits(
        [program], shape, config, small(1.001 * four), said.append
    )
    assert change.remat == "full" and change.microbatches == 4 and change.rows == 1
    assert (
        len(tried) == len(said) >= 3
        and tried[-1].endswith("fits")
        and all("needs" in why for why in tried[:-1])
    )


def test_changes_keep_every_device_and_microbatch_whole():
    for change in search.changes([TEXT], MeshShape(data=-1), 4):
        program = change.of(TEXT)
        data, fsdp, _ = change.shape.resolve(4)
        assert program.rows % (data * fsdp * program.spec.microbatches) == 0


def test_a_fused_attention_is_counted_by_hand_and_another_kernel_is_named():
    """By hand: of 1,024 tokens in blocks of 512, three of four blocks are computed; 8 query heads of 256, 4 of keys; 34 layers."""
    program, config = dataclasses.replace(TEXT, length=1024), preset("gemma3-4b")
    forward = Kernel(
        "tpu_custom_call",
        "jit(step)/while/body/splash_mha_fwd",
        ((512, 128), (2, 8, 1024, 256)),
        times=34.0,
    )
    scores = 3 * 512 * 512
    assert kernel_flops(forward, program, config) == 34 * 2 * 2 * 8 * 2 * scores * 256
    keys = dataclasses.replace(forward, where="a/splash_mha_dkv", shapes=((2, 4, 1024, 256),))
    assert kernel_flops(keys, program, config) == 2 * kernel_flops(forward, program, config)
    long = dataclasses.replace(
        program, length=2048
    )  # of 4 x 4 blocks 10 are causal, 9 of them within a window of 1,024
    for grid, blocks in (((1, 4, 4), 10), ((1, 4, 3), 9)):
        kernel = dataclasses.replace(forward, shapes=((8, 2048, 256),), grid=grid, times=1.0)
        assert kernel_flops(kernel, long, config) == 2 * 2 * 8 * 256 * blocks * 512 * 512
    assert kernel_flops(dataclasses.replace(forward, where="a/other"), program, config) is None


# Machines on which fewer answers are written at once than the pipeline's.
SMALLER = {
    ("medgemma_27b_gpu80", "phase5d_exam", 16),
    ("medgemma_27b_v5e4", "phase5d_exam", 16),
    ("medgemma_4b_gpu16", "phase5d_exam", 8),
}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("medgemma_*.py")), ids=lambda file: file.stem)
def test_a_machines_file_is_every_phase_with_its_choices(file):
    recipe, phases = load_recipe(str(file)), load_recipe(str(CONFIGS / "pipeline.py"))
    topology = parse_topology(recipe.topology)
    data, fsdp, _tensor = recipe.mesh.resolve(topology.n_chips)
    assert [phase.name for phase in recipe.phases] == [phase.name for phase in phases.phases]
    for own, plain in zip(recipe.phases, phases.phases):
        for stage, written in ((own.train, plain.train), (own.remedy, plain.remedy)):
            if written.batch_size != stage.batch_size:  # said in the file: a device's memory
                assert (file.stem, own.name, stage.batch_size) in SMALLER
                stage = dataclasses.replace(stage, batch_size=written.batch_size)
            assert dataclasses.replace(stage, microbatches=1) == dataclasses.replace(
                written, microbatches=1
            )
        for stage in (own.train, own.remedy):
            assert not stage.steps or stage.batch_size % (data * fsdp * stage.microbatches) == 0
    assert [phase.name for phase in load_recipe(f"{file}:phase2").phases] == [
        "phase0",
        "phase1",
        "phase2",
    ]


@pytest.mark.parametrize(
    "name", ["medgemma_4b_gpu80", "medgemma_27b_8gpu80", "medgemma_27b_gpu80", "medgemma_4b_gpu16"]
)
def test_the_gpu_files_fit_by_arithmetic(name, quick):
    """The last phase has the longest model, its samples and all that decodes. In a process of its own, with as many devices."""
    path = os.pathsep.join([str(CONFIGS.parent), os.environ.get("PYTHONPATH", "")])
    arguments = [
        sys.executable,
        "-m",
        "medkor_jax.cli",
        "plan",
        "--config",
        CONFIGS / f"{name}.py",
        "--config.run=('phase5d_exam',)",
        "--json",
    ]
    done = subprocess.run(
        arguments, env=os.environ | quick | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(done.stdout)
    assert plan["fits"] and {
        one["how"] for stage in plan["stages"] for one in stage["programs"]
    } == {"by arithmetic"}


def test_the_command_prints_a_table_or_json_and_says_by_its_code_whether_it_fits(capsys):
    asked = [
        "plan",
        "--config",
        str(CONFIGS / "pipeline.py"),
        "--config.run=('phase0',)",
        "--topology",
        "gpu:4x80GB",
        "--model",
        "tiny",
    ]
    asked += ["--price", "gpu=2"]
    assert cli.main([*asked, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    (stage,) = plan["stages"]
    assert stage["stage"] == "phase0/train" and plan["fits"] and plan["usd"] > 0
    assert stage["programs"][0]["flops"] >= stage["programs"][0]["hand_flops"] > 0
    assert cli.main(asked) == 0
    table = capsys.readouterr().out
    assert "phase0/train" in table and "by arithmetic" in table and "Fits." in table


def test_a_candidate_that_is_tried_only_if_needed_is_named_and_not_planned(monkeypatch, capsys):
    planned = []
    monkeypatch.setattr(command, "make_plan", lambda recipe, name, *_, **__: planned.append(name))
    plan_config(str(CONFIGS / "pipeline.py"), [], topology="v5e:4x4")
    said = capsys.readouterr().err
    assert planned == ["google/medgemma-4b-it"]
    assert "phase1: phase0 on google/medgemma-27b-text-it (27.01B), opened only if phase0" in said
    assert "not in this plan of google/medgemma-4b-it; plan it with --model" in said
    planned.clear()
    plan_config(str(CONFIGS / "medgemma_4b_v5e4.py"), [])
    assert planned and "only if" not in capsys.readouterr().err


def test_without_a_machine_or_with_a_price_that_is_none_it_says_what_to_write():
    with pytest.raises(ConfigError, match="--topology"):
        plan_config(str(CONFIGS / "pipeline.py"), [])
    assert (
        read_prices("v5e=1.2,gpu=2.5") == {"v5e": 1.2, "gpu": 2.5}
        and read_prices("3") == {"": 3.0}
        and read_prices("") == {}
    )
    for wrong in ("v5e", "v9=1", "-1", "gpu=nan"):
        with pytest.raises(ValueError, match="expected"):
            read_prices(wrong)


def test_published_ids_have_sizes_and_others_are_asked_for():
    assert config_of("google/medgemma-27b-text-it").n_layers == 62 and config_of(
        "random:tiny"
    ) == preset("tiny")
    with pytest.raises(ValueError, match="--model"):
        config_of("someone/else")


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_is_compiled():
    recipe = load_recipe(
        str(CONFIGS / "pipeline.py"), ["--config.run=('phase0',)", "--config.phase0.batch_size=6"]
    )
    with pytest.raises(ValueError, match="not a multiple of"):
        make_plan(recipe, "tiny", preset("tiny"), parse_topology("gpu:4x80GB"))


def test_auto_takes_the_fewest_devices_that_fit_and_the_least_money(monkeypatch):
    """Two rows fit each of these but the last, over which they cannot be divided."""
    monkeypatch.setattr(auto, "AUTO", ("gpu:1x80GB", "gpu:1x16GB", "gpu:2x16GB", "gpu:4x16GB"))
    recipe = load_recipe(
        str(CONFIGS / "pipeline.py"), ["--config.run=('phase0',)", "--config.phase0.batch_size=2"]
    )
    choice = auto.choose(recipe, "tiny", preset("tiny"), prices={"gpu": 1.0}, say=print)
    assert choice.smallest.topology.name == "gpu:1x16GB" and choice.fits
    by_name = {one.topology.name: one for one in choice.candidates}
    assert by_name["gpu:4x16GB"].plan is None and "cannot be divided" in by_name["gpu:4x16GB"].how
    money = {name: one.plan.money for name, one in by_name.items() if one.plan}
    assert choice.cheapest.topology.name == min(money, key=money.get)
    assert (
        "Smallest: gpu:1x16GB." in report.table(choice)
        and report.to_json(choice)["smallest"] == "gpu:1x16GB"
    )
    none = auto.choose(
        recipe, "27b", dataclasses.replace(preset("tiny"), d_ff=400_000_000), prices={}, say=print
    )
    assert none.smallest is None and "Nothing here fits." in report.table(none)
