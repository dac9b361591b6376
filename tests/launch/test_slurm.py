"""launch/slurm.sbatch under a real SLURM of one node, started here from Debian's packages (slurm-wlm, munge)."""

import importlib.util
import os
import pathlib
import re
import shutil
import socket
import subprocess
import time

import pytest

from medkor_jax.eval.verdict import read_verdict
from medkor_jax.io.models import open_model

ROOT = pathlib.Path(__file__).parents[2]
BATCH = str(ROOT / "launch/slurm.sbatch")
CONFIG = "configs/quickstart.py:phase0"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# What a cluster's slurm.conf would say, in the fewest words: everything in one directory, ports of our own.
CONF = """
ClusterName=medkor
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={dir}/munge.socket
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class Slurm:
    def __init__(self, place):
        self.place, self.dir = place, place.directory
        for name in ("state", "spool"):
            (self.dir / name).mkdir()
        key = self.dir / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.dir.chmod(0o755)  # munged refuses a directory that others may write
        # At least two, so that two tasks have a core each; SLURM takes a node that has fewer with overrides only.
        self.cpus = os.cpu_count()
        (self.dir / "slurm.conf").write_text(CONF.format(
            dir=self.dir, host=socket.gethostname().split(".")[0], user=os.environ.get("USER", "root"), cpus=self.cpus,
            controller=_free_port(), node=_free_port()))  # fmt: skip
        self.env = place.env | {"PATH": f"{place.bin}:{SBIN}", "SLURM_CONF": str(self.dir / "slurm.conf")}
        self.daemons = []
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{name}={self.dir}/munge.{end}" for name, end in files.items()]
        try:
            self._daemon("munged", "--foreground", "--force", *munge)
            self.until((self.dir / "munge.socket").exists, "munged")
            self._daemon("slurmctld", "-D")
            self._daemon("slurmd", "-D", "-N", socket.gethostname().split(".")[0])
            self.until(self.is_idle, "the node is idle")
        except BaseException:
            self.stop()
            raise

    def _daemon(self, *command):
        log = (self.dir / f"{command[0]}.out").open("wb")
        self.daemons.append(subprocess.Popen(command, env=self.env, stdout=log, stderr=log))

    def is_idle(self):
        return self.tell("sinfo", "--noheader", "--format=%T").strip() == "idle"

    def until(self, is_so, what, seconds=30.0):
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                files = (*self.dir.glob("*.out"), *self.dir.glob("slurm*.log"))
                logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in files)
                raise AssertionError(f"{what}: not within {seconds} s\n{logs}")
            time.sleep(0.1)

    def stop(self):
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def tell(self, *command, **env):
        return subprocess.run(command, cwd=ROOT, env=self.env | env, capture_output=True, text=True).stdout

    def submit(self, *arguments, options=(), **env):
        out = self.tell("sbatch", "--parsable", f"--output={self.dir}/%j.log", *options, BATCH, *map(str, arguments), **env)
        return out.strip()

    def show(self, job):
        return dict(re.findall(r"(\w+)=(\S+)", self.tell("scontrol", "show", "job", job)))

    def log(self, job):
        path = self.dir / f"{job}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def ended(self, job, seconds=60.0):
        """Waits for the job's end; returns (state, exit code)."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.show(job)["JobState"] in over, f"job {job}: {self.log(job)}", seconds)
        shown = self.show(job)
        return shown["JobState"], int(shown["ExitCode"].split(":")[0])


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(make_place, tmp_path_factory):
    missing = [name for name in NEEDED if not shutil.which(name, path=SBIN)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd wants to be started by root")
    cluster = Slurm(make_place(tmp_path_factory.mktemp("slurm")))
    yield cluster
    cluster.stop()


# Says what a task sees, then does what DO says.
TASK = r"""
echo "task $SLURM_PROCID of $SLURM_NTASKS, port $MEDKOR_PORT, restart ${SLURM_RESTART_COUNT:-0}: $*"
trap 'echo "task $SLURM_PROCID saved"; exit 143' TERM
eval "${DO:-}"
"""
WAIT = 'if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then for i in $(seq 600); do sleep 0.1; done; fi'


@pytest.fixture
def tasks(slurm):
    slurm.place.command("medkor", TASK)
    return slurm


def test_without_slurm_the_dry_run_shows_the_step(place):
    lines = place.dry("slurm.sbatch", CONFIG, "--config.run_dir=a b", EXTRAS="")
    assert lines[0] == "source launch/environment.sh embedded"
    assert lines[1].startswith("srun --kill-on-bad-exit=0 --wait=180 medkor run ")
    assert lines[1].endswith(rf"--config {CONFIG} --config.run_dir=a\ b")
    assert place.dry("slurm.sbatch", CONFIG, EXTRAS="", SLURM_GPUS_ON_NODE="8")[0].endswith("embedded,cuda")
    refused = place.run("slurm.sbatch", CONFIG)
    assert refused.returncode == 2 and "not in a SLURM job; submit it: sbatch" in refused.stderr


def test_two_tasks_get_the_arguments_a_port_and_their_exit_code_counts(tasks):
    job = tasks.submit(CONFIG, "--config.run_dir=a b", options=("--ntasks-per-node=2",), DO='exit $((SLURM_PROCID * 3))')
    assert tasks.ended(job) == ("FAILED", 3)
    log = tasks.log(job)
    for process in (0, 1):
        assert f"task {process} of 2, port {20000 + 2 * int(job)}, restart 0: run --config {CONFIG} --config.run_dir=a b" in log


def test_before_the_time_limit_tasks_save_and_the_job_is_queued_again_and_goes_on(tasks):
    # SIGTERM comes 120 s before 2 minutes are over: as soon as SLURM looks
    job = tasks.submit(CONFIG, options=("--ntasks-per-node=2", "--time=2"), DO=WAIT)
    is_queued = lambda: (tasks.show(job).get("Restarts"), tasks.show(job)["JobState"]) == ("1", "PENDING")  # noqa: E731
    tasks.until(is_queued, f"job {job} is queued again", 60)
    assert "task 0 saved" in tasks.log(job) and "task 1 saved" in tasks.log(job)
    # SLURM itself waits two minutes; a start within the second of the requeue it refuses ("credential revoked").
    time.sleep(3)
    tasks.tell("scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=30")
    assert tasks.ended(job) == ("COMPLETED", 0), tasks.log(job)
    assert "restart 0: run" in tasks.log(job) and "restart 1: run" in tasks.log(job)  # one log: appended


def test_a_job_that_is_cancelled_saves_and_is_not_queued_again(tasks):
    job = tasks.submit(CONFIG, DO=WAIT)
    tasks.until(lambda: "task 0 of 1" in tasks.log(job), "start")
    tasks.tell("scancel", job)
    assert tasks.ended(job)[0] == "CANCELLED"
    tasks.until(lambda: "task 0 saved" in tasks.log(job), "saving")
    time.sleep(1)
    assert tasks.show(job)["JobState"] == "CANCELLED" and tasks.show(job)["Restarts"] == "0"


def test_the_quick_start_really_runs(slurm, tiny_base_dir, tmp_path):
    """In two tasks, where `medkor run` knows several processes."""
    tasks = 2 if importlib.util.find_spec("medkor_jax.parallel.hosts") else 1
    run_dir = tmp_path / "run"
    slurm.place.medkor()
    # named one by one: what a job inherits is what its submitter had
    env = {name: slurm.place.env[name] for name in ("PYTHONPATH", "JAX_PLATFORMS", *slurm.place.quick)}
    overrides = [f"--config.weights={tiny_base_dir}", f"--config.run_dir={run_dir}", "--config.phase0.steps=2"]
    job = slurm.submit(CONFIG, *overrides, options=(f"--ntasks-per-node={tasks}",), **env)
    state = slurm.ended(job, 300)
    assert state == ("COMPLETED", 0), slurm.log(job)
    assert read_verdict(run_dir / "phase0" / "verdict.json")["digests"]["weights"] == open_model(run_dir / "phase0").digest
    assert slurm.log(job).count("phase0/train: training") == 1  # one of the processes speaks
