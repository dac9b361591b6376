"""The real TPU compiler takes what the phases run, it fits, and its program has the FLOPs of the jaxpr. Needs `pip install libtpu`; no TPU."""

import dataclasses
import importlib.util

import pytest

from medkor_jax.adapt.lora import LoraSettings
from medkor_jax.model.config import preset
from medkor_jax.parallel.mesh import MeshShape
from medkor_jax.plan.compiling import compile_program, machine, prepare
from medkor_jax.plan.handcount import costly_share
from medkor_jax.plan.lowering import traceable
from medkor_jax.plan.stages import READ, STEP, WRITE, Program, Trees
from medkor_jax.plan.topology import GIB, parse_topology
from medkor_jax.plan.trace import jaxpr_work
from medkor_jax.train.compute import ComputeSettings
from medkor_jax.train.retention import Retention
from medkor_jax.train.reward_settings import RewardSettings
from medkor_jax.train.stage import Stage
from medkor_jax.train.step import step_spec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="needs libtpu, the TPU compiler: pip install libtpu",
    ),
]

CONFIG = preset("gemma3-4b")
TREES = Trees(LoraSettings(), "vector", (1, 1))
TEXT = Program(
    STEP,
    TREES,
    ("lora", "lang", "expand"),
    step_spec(Stage(), ComputeSettings()),
    16,
    1024,
    1024,
    "bfloat16",
)
GRPO = dataclasses.replace(
    TEXT, spec=step_spec(Stage(reward=RewardSettings("grpo")), ComputeSettings()), positions=128
)
RETENTION = step_spec(
    Stage(next_token_weight=0.0, retention=Retention(weight=1.0)), ComputeSettings()
)
PROGRAMS = {
    "text": TEXT,
    "each layer": dataclasses.replace(TEXT, spec=RETENTION, reference=Trees()),
    "grpo": GRPO,
    "read prompts": dataclasses.replace(GRPO, kind=READ, trained=(), length=512, room=1024),
    "write a token": dataclasses.replace(GRPO, kind=WRITE, trained=(), length=512, room=1024),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKOR_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    "shape", [MeshShape(data=-1), MeshShape(data=1, fsdp=-1)], ids=["whole", "sharded"]
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_4b_fits_eight_v5e_chips(name, shape):
    """16 rows of 1,024 tokens with everything a late phase has: text, each-layer, GRPO, and decoding."""
    topology, program = parse_topology("v5e:2x4"), PROGRAMS[name]
    prepare(topology)
    with machine(topology, shape) as mesh:
        found = compile_program(program, CONFIG, mesh, topology)
        open_trips = 1.0 if program.kind == WRITE else None
        work = jaxpr_work(
            traceable(program, CONFIG, mesh).jaxpr(),
            open_trips=open_trips,
            costly_share=costly_share(program, CONFIG),
        )
    print(
        name,
        {part: round(n / GIB, 2) for part, n in found.memory.items()},
        found.cost.flops / found.hand,
        found.cost.wire_bytes,
    )
    assert found.fits, found.refused or found.memory
    assert found.cost.flops == pytest.approx(work.flops / mesh.size, rel=0.01)
    parts = sum(
        found.memory.get(part, 0.0)
        for part in ("weights", "adapters", "optimizer", "batch", "cache")
    )
    assert found.memory["arguments"] == pytest.approx(parts, rel=0.02)
