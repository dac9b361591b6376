"""launch/sky.sh and launch/skypilot.yaml: names of SkyPilot's own, and what a node does with what it is given."""

import itertools
import pathlib
import shlex
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
TASK = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text(encoding="utf-8"))


def test_the_task_has_keys_that_skypilot_knows():
    """sky/utils/schemas.py of SkyPilot 0.14: those of a task, of its resources, and of job_recovery."""
    assert set(TASK) <= {
        "name", "workdir", "num_nodes", "resources", "file_mounts", "setup", "run", "envs", "secrets", "config",
        "volumes"}  # fmt: skip
    assert set(TASK["resources"]) <= {
        "infra", "accelerators", "accelerator_args", "cpus", "memory", "instance_type", "use_spot", "disk_size", "disk_tier",
        "network_tier", "image_id", "ports", "labels", "autostop", "any_of", "ordered", "job_recovery"}  # fmt: skip
    assert set(TASK["resources"]["job_recovery"]) <= {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
    assert all(value is None or isinstance(value, str) for value in (TASK["envs"] | TASK["secrets"]).values())
    assert 143 in TASK["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert TASK["file_mounts"]["/medkor-shared"]["mode"] == "MOUNT"


def test_the_dry_run_hands_on_everything(place):
    env = dict(BUCKET="gs://mine", ACCELERATORS="tpu-v5litepod-16", NODES="2", SPOT="0", INFRA="gcp/us-central1", HF_TOKEN="hf_x")
    (line,) = place.dry("sky.sh", "configs/pipeline.py", "--config.run_dir=a b", "--restart", "phase1", EXTRAS="", **env)
    words = shlex.split(line)
    assert words[:3] == ["sky", "jobs", "launch"] and words[-1] == "launch/skypilot.yaml"
    given = dict(word.split("=", 1) for flag, word in itertools.pairwise(words) if flag == "--env")
    assert set(given) <= set(TASK["envs"]) and {name for name, value in TASK["envs"].items() if value is None} <= set(given)
    assert given["CONFIG"] == "configs/pipeline.py" and given["BUCKET"] == "gs://mine" and given["EXTRAS"] == "tpu,embedded"
    assert shlex.split(given["ARGUMENTS"]) == ["--config.run_dir=a b", "--restart", "phase1"]
    flags = dict(itertools.pairwise(words))
    assert (flags["--gpus"], flags["--num-nodes"], flags["--infra"]) == ("tpu-v5litepod-16", "2", "gcp/us-central1")
    assert flags["--secret"] == "HF_TOKEN" and "hf_x" not in line and "--no-use-spot" in words
    (line,) = place.dry("sky.sh", "configs/pipeline.py", BUCKET="s3://mine", EXTRAS="")
    assert "EXTRAS=cuda,embedded" in shlex.split(line) and "--use-spot" in shlex.split(line) and "--secret" not in line


@pytest.fixture
def node(place):
    """A node with a checkout whose environment is a stand-in."""
    work = place.directory / "sky_workdir"
    (work / "launch").mkdir(parents=True)
    (work / "launch/environment.sh").write_text('echo "environment $1 by $PYTHON"\n')
    told = 'echo "$MEDKOR_COORDINATOR $MEDKOR_PROCESSES $MEDKOR_PROCESS_ID ${HF_TOKEN-unset}"'
    place.command("medkor", f'{told}; printf "<%s>" "$@"; exit 3')
    place.work = work
    return place


def on_node(node, script, **env):
    given = dict(CONFIG="configs/pipeline.py", ARGUMENTS=r"--config.run_dir=a\ b --restart phase1 ", EXTRAS="cuda", HF_TOKEN="",
                 SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2", SKYPILOT_NUM_NODES="2", SKYPILOT_NODE_RANK="1")  # fmt: skip
    return subprocess.run(["bash", "-c", script], cwd=node.work, env=node.env | given | env, capture_output=True, text=True)


def test_nodes_are_told_of_each_other_and_the_exit_code_is_medkor_s(node):
    done = on_node(node, TASK["run"])
    assert done.returncode == 3, done.stderr
    told, words = done.stdout.splitlines()[1:]
    assert told == "10.0.0.1:8476 2 1 unset"
    assert words == "<run><--config><configs/pipeline.py><--config.run_dir=a b><--restart><phase1>"


def test_tpu_hosts_and_a_node_alone_find_out_by_themselves(node):
    assert on_node(node, TASK["run"], EXTRAS="tpu,embedded", HF_TOKEN="t").stdout.splitlines()[1] == "   t"
    assert on_node(node, TASK["run"], SKYPILOT_NUM_NODES="1", ARGUMENTS="").stdout.splitlines()[1:] == [
        "   unset", "<run><--config><configs/pipeline.py>"]  # fmt: skip


def test_data_and_runs_are_in_the_bucket(node):
    shared = node.directory / "shared"
    done = on_node(node, TASK["setup"].replace("/medkor-shared", str(shared)))
    assert done.returncode == 0 and "environment cuda by uv" in done.stdout
    assert (node.work / "runs").resolve() == shared / "runs" and (node.work / "data").resolve() == shared / "data"
