"""launch/local.sh: what it starts, what it hands on, how it ends; and two real processes."""

import os
import pathlib
import pty
import re
import signal
import time

import pytest

from medkor_jax.eval.verdict import read_verdict
from medkor_jax.io.models import open_model
from medkor_jax.train.metrics import read_metrics

QUICKSTART = "configs/quickstart.py"
# A stand-in for medkor. Each process says what it was told, then does what DO_<its id> says.
TOLD = """
place="process ${MEDKOR_PROCESS_ID:-} of ${MEDKOR_PROCESSES:-} at ${MEDKOR_COORDINATOR:-}"
echo "$place, cuda ${CUDA_VISIBLE_DEVICES:-}, xla ${XLA_FLAGS:-}: $*"
n=0; trap 'echo "signal $((n += 1))"; sleep 0.5; exit 143' TERM INT
echo started >"$STARTED.${MEDKOR_PROCESS_ID:-0}"
do=DO_${MEDKOR_PROCESS_ID:-0}; eval "${!do:-}"
"""
WAIT = "for i in $(seq 300); do sleep 0.1; done"


@pytest.fixture
def local(place):
    place.command("medkor", TOLD)
    place.env |= {
        "LOGS": str(place.directory / "logs"),
        "STARTED": str(place.directory / "started"),
    }
    return place


def log_of(place, process):
    return (place.directory / "logs" / f"process-{process}.log").read_text(encoding="utf-8")


def wait_until_started(place, n=2):
    deadline = time.monotonic() + 20
    while len(list(place.directory.glob("started.*"))) < n:
        assert time.monotonic() < deadline, "the processes have not started"
        time.sleep(0.05)
    time.sleep(0.3)  # the launcher has gone on to waiting


def test_one_process_is_medkor_itself(local):
    done = local.run("local.sh", QUICKSTART, "--config.run_dir=a b")
    assert done.returncode == 0
    assert (
        done.stdout.splitlines()[-1]
        == f"process  of  at , cuda , xla : run --config {QUICKSTART} --config.run_dir=a b"
    )
    assert local.run("local.sh", QUICKSTART, DO_0="exit 3").returncode == 3


def test_one_of_several_machines_is_told_its_place_by_hand(local):
    place = dict(MEDKOR_COORDINATOR="10.0.0.1:8476", MEDKOR_PROCESSES="4", MEDKOR_PROCESS_ID="2")
    assert local.run("local.sh", QUICKSTART, **place).stdout.startswith(
        "process 2 of 4 at 10.0.0.1:8476, "
    )


def test_several_processes_know_each_other_and_their_devices(local):
    done = local.run(
        "local.sh",
        QUICKSTART,
        "--restart",
        "phase1",
        PROCESSES="3",
        DEVICES="2",
        XLA_FLAGS="--mine",
    )
    assert done.returncode == 0, done.stderr
    said = [done.stdout.splitlines()[-1], log_of(local, 1), log_of(local, 2)]
    for i, line in enumerate(said):
        assert re.match(rf"process {i} of 3 at 127\.0\.0\.1:\d+, cuda , xla --mine --xla_force_host_platform_device_count=2: "
                        rf"run --config {QUICKSTART} --restart phase1$", line.strip())  # fmt: skip
    assert len({re.search(r":(\d+),", line)[1] for line in said}) == 1
    assert "process 1 of" not in done.stdout


def test_gpus_are_divided_and_a_coordinator_may_be_given(local):
    env = dict(PROCESSES="2", CUDA_VISIBLE_DEVICES="0,1,4,5", MEDKOR_COORDINATOR="127.0.0.1:4321")
    done = local.run("local.sh", QUICKSTART, **env)
    assert "process 0 of 2 at 127.0.0.1:4321, cuda 0,1, xla :" in done.stdout
    assert "process 1 of 2 at 127.0.0.1:4321, cuda 4,5, xla :" in log_of(local, 1)
    odd = local.run("local.sh", QUICKSTART, **(env | dict(PROCESSES="3")))
    assert odd.returncode == 2 and "4 GPUs are not divided evenly by PROCESSES=3" in odd.stderr


def test_the_gpus_of_the_host_are_found_and_its_environment_is_made_for_them(local):
    local.command("nvidia-smi", "printf '0\\n1\\n'")
    lines = local.dry("local.sh", QUICKSTART, PROCESSES="2", EXTRAS="")
    assert lines[0] == "source launch/environment.sh embedded,cuda"
    assert [re.search(r"CUDA_VISIBLE_DEVICES=(\S+)", line)[1] for line in lines[1:]] == ["0", "1"]
    assert (
        local.dry("local.sh", QUICKSTART, DEVICES="2", EXTRAS="")[0]
        == "source launch/environment.sh embedded"
    )


@pytest.mark.parametrize("setting", ["PROCESSES=0", "PROCESSES=two", "DEVICES=-1"])
def test_a_number_that_is_none_is_refused(setting, local):
    name, value = setting.split("=")
    done = local.run("local.sh", QUICKSTART, **{name: value})
    assert (
        done.returncode == 2 and setting in done.stderr and "whole numbers above 0" in done.stderr
    )


def test_what_a_failing_process_said_is_shown_and_the_worst_code_is_the_launcher_s(local):
    done = local.run(
        "local.sh",
        QUICKSTART,
        PROCESSES="2",
        DO_0="sleep 0.5; exit 143",
        DO_1="echo medkor: no space left; exit 1",
    )
    assert done.returncode == 1
    assert (
        "process 1 ended with exit code 1" in done.stderr and "medkor: no space left" in done.stderr
    )
    assert "process 0 ended" not in done.stderr  # 143 is no failure
    assert local.run("local.sh", QUICKSTART, PROCESSES="2", DO_1="exit 3").returncode == 3


def test_a_process_that_does_not_end_after_a_failure_is_killed(local):
    began = time.monotonic()
    stubborn = "trap '' TERM; " + WAIT
    done = local.run(
        "local.sh",
        QUICKSTART,
        PROCESSES="2",
        GRACE="1",
        DO_0=stubborn,
        DO_1="kill -KILL $$",
        timeout=20,
    )
    assert done.returncode == 137 and time.monotonic() - began < 15
    assert (
        "process 1 ended with exit code 137" in done.stderr
        and "process 0 has not ended 1 s after the failure" in done.stderr
    )


def test_a_signal_is_handed_on_once_to_every_process(local):
    process = local.start("local.sh", QUICKSTART, PROCESSES="2", DO_0=WAIT, DO_1=WAIT)
    wait_until_started(local)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 143, err
    assert out.count("signal 1") == log_of(local, 1).count("signal 1") == 1
    assert "signal 2" not in out + log_of(local, 1)


def test_a_signal_while_processes_are_being_started_is_handed_on_too(local):
    """Process 0 has it sent as soon as it is there; without that, it and those after it would be left alone."""
    n = 20
    waiting = {f"DO_{i}": WAIT for i in range(1, n)}
    sent = f"kill -TERM $PPID; {WAIT}"
    process = local.start("local.sh", QUICKSTART, PROCESSES=str(n), DO_0=sent, **waiting)
    out, err = process.communicate(timeout=25)
    assert process.returncode == 143, err
    assert out.count("signal 1") == 1 and "signal 2" not in out


def test_ctrl_c_in_a_terminal_reaches_every_process_once(local):
    """A second signal would end a process before it has saved."""
    root = pathlib.Path(__file__).parents[2]
    child, terminal = pty.fork()
    if child == 0:
        env = local.env | dict(PROCESSES="2", DO_0=WAIT, DO_1=WAIT)
        os.chdir(root)
        os.execvpe("bash", ["bash", "launch/local.sh", QUICKSTART], env)
    wait_until_started(local)
    os.write(terminal, b"\x03")
    written = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux says so when the other end of a terminal is closed
            break
        if not piece:
            break
        written += piece
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 143, written
    assert written.count(b"signal 1") == log_of(local, 1).count("signal 1") == 1
    assert b"signal 2" not in written and "signal 2" not in log_of(local, 1)


def the_first_phases(place, run_dir, *arguments, timeout=300, **env):
    """Phases 0 and 1 of the quick start; returns what phase 0 logged."""
    done = place.run(
        "local.sh",
        f"{QUICKSTART}:phase1",
        f"--config.run_dir={run_dir}",
        *arguments,
        timeout=timeout,
        **env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for phase in ("phase0", "phase1"):
        assert (
            read_verdict(run_dir / phase / "verdict.json")["digests"]["weights"]
            == open_model(run_dir / phase).digest
        )
    return [row for row in read_metrics(run_dir / "phase0" / "train") if "loss" in row]


def knowing_nothing(tiny_base_dir):
    """A model of seven layers of random numbers, four steps of it: its gates are open."""
    shorter = ["--config.phase0.steps=4", "--config.log_every=1", "--config.phase1.remedy.steps=0"]
    gates = ("allow_chance=True", "on_failure=continue")
    opened = [f"--config.{phase}.gate.{key}" for phase in ("phase0", "phase1") for key in gates]
    return [f"--config.weights={tiny_base_dir}", *shorter, *opened]


@pytest.fixture(scope="module")
def by_one_process(make_place, tiny_base_dir, tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("one"))
    place.medkor()
    return the_first_phases(
        place, place.directory / "run", *knowing_nothing(tiny_base_dir), DEVICES="4"
    )


def test_one_real_process_runs_the_first_phases(by_one_process):
    assert [row["step"] for row in by_one_process] == [1, 2, 3, 4]


def test_two_real_processes_run_the_first_phases_and_learn_the_same(
    place, tiny_base_dir, by_one_process
):
    pytest.importorskip("medkor_jax.parallel.hosts", reason="`medkor run` knows one process only")
    place.medkor()
    ours = dict(PROCESSES="2", DEVICES="2", LOGS=str(place.directory / "logs"))
    rows = the_first_phases(place, place.directory / "run", *knowing_nothing(tiny_base_dir), **ours)
    for found, expected in zip(rows, by_one_process, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert "Traceback" not in log_of(place, 1)


@pytest.mark.slow
def test_two_real_processes_run_the_first_phases_on_the_embedded_model(place):
    pytest.importorskip("medkor_jax.parallel.hosts", reason="`medkor run` knows one process only")
    place.medkor()
    rows = the_first_phases(
        place,
        place.directory / "run",
        timeout=1500,
        PROCESSES="2",
        LOGS=str(place.directory / "logs"),
    )
    assert rows[-1]["step"] == 12 and rows[-1]["loss"] < rows[0]["loss"]
    assert read_verdict(place.directory / "run" / "phase1" / "verdict.json")["passed"]
