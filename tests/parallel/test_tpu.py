"""The real TPU compiler takes what the phases run, and it fits. Needs `pip install libtpu`; no TPU."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("compile_for_tpu.py")
V5E_GIB = 15.75


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler: pip install libtpu")
@pytest.mark.parametrize("mesh", [{"data": -1}, {"data": 1, "fsdp": -1}], ids=["whole", "sharded"])
def test_4b_fits_eight_v5e_chips(mesh):
    """16 rows of 1,024 tokens with everything a late phase has: text, each-layer, GRPO, and decoding."""
    path = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])
    arguments = [sys.executable, SCRIPT, "v5e:2x4", "gemma3-4b", json.dumps(mesh), "16", "text,retention,grpo,decode"]
    done = subprocess.run(arguments, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print(*rows, sep="\n")
    assert [row["case"] for row in rows] == ["text", "retention", "grpo", "read prompts", "write tokens"]
    for row in rows:
        assert (row["fused"] > 0) == (row["case"] != "write tokens"), row
        assert sum(row[name] for name in ("arguments_gib", "temporary_gib", "not_aliased_gib")) < V5E_GIB, row
