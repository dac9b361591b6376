"""What a compiler says is understood, and kept."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.model.config import preset
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.plan import compiling, kept
from medkor_jax.plan.compiling import Started, finish, machine
from medkor_jax.plan.program import Cost, Kernel
from medkor_jax.plan.stages import STEP, Program, Trees
from medkor_jax.plan.topology import GIB, parse_topology
from medkor_jax.plan.traffic import Collective
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import step_spec

PROGRAM = Program(
    STEP,
    Trees(LoraSettings()),
    ("lora",),
    step_spec(Stage(), ComputeSettings("float32", "none")),
    8,
    64,
    64,
    "float32",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path))


def started(lowered, topology):
    return Started(PROGRAM, preset("tiny"), lowered, topology, {}, 1.0, None, 1.0)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, the TPU compiler: pip install libtpu",
)
def test_a_program_too_large_for_the_chip_is_said_to_need_what_it_needs():
    """18 GiB go in and come out of a chip of 15.75."""
    topology = parse_topology("v5e:1x1")
    compiling.prepare(topology)
    with machine(topology, MeshShape()) as mesh:
        x = jax.ShapeDtypeStruct(
            (9 * 16, 4096, 4096), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())
        )
        found = finish(started(jax.jit(lambda x: x * 2).lower(x), topology))
    assert not found.fits and "15.75GiB" in found.refused
    assert found.memory["total"] / GIB == pytest.approx(18, abs=0.1)


@pytest.mark.parametrize("message, gib", [
    ("E1000: the total memory required for HLO temporaries (20.00G) exceeds available HBM (15.75G). HLO module: jit_f.", 20.0),
    ("Ran out of memory in memory space hbm. Used 18.5G of 15.75G hbm. Exceeded hbm capacity by 2.75G.", 18.5), ("INTERNAL: other", 0.0),
])  # fmt: skip
def test_both_forms_of_the_compilers_refusal_are_read(message, gib):
    assert compiling._used(message) == gib * GIB


def test_a_program_is_compiled_once_and_again_when_it_changes(monkeypatch):
    topology, compiled = parse_topology("cpu:1"), []
    compile_ = compiling._compile
    monkeypatch.setattr(compiling, "_compile", lambda one: compiled.append(one) or compile_(one))
    lower = lambda n: jax.jit(lambda x: x @ x * n).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32))
    first, again, other = (finish(started(lower(n), topology)) for n in (2, 2, 3))
    assert len(compiled) == 2
    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(again, seconds=0.0)
    assert first.cost.flops == other.cost.flops == 2 * 8**3


def test_what_is_kept_comes_back_whole_and_a_damaged_file_is_none(tmp_path):
    cost = Cost(
        1.5,
        2.5,
        {("while.1", "7"): Collective("all-gather", 8.0, 6.0, 0.0, 4, 34.0)},
        (Kernel("tpu_custom_call", "a/b", ((2, 3),), 2.0),),
    )
    said = {"memory": {"total": 3.0}, "cost": cost, "refused": ""}
    key = kept.key_of("text", "v5e:4x4", None)
    assert kept.read(key) is None and key != kept.key_of("text", "v5e:4x8", None)
    kept.write(key, said)
    back = kept.read(key)
    assert (
        back["memory"] == said["memory"]
        and back["cost"].collectives == cost.collectives
        and back["cost"] == cost
    )
    (file,) = (tmp_path / "plan").glob("*.json")
    file.write_text(file.read_text()[:40])
    assert kept.read(key) is None
