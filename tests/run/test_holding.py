"""One run directory, one run."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from medkor_jax import cli
from medkor_jax.parallel.cluster import host_name
from medkor_jax.run import holding, pipeline
from medkor_jax.run.holding import FILE, NotWritable, RunHeld, held, holder_of

HOLDS = (
    "import sys, time\n"
    "from medkor_jax.run.holding import held\n"
    "sys.argv = ['medkor', 'run', '--config', 'mine.py']\n"
    "with held(sys.argv_dir):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def other(tmp_path):
    """A process that has the directory."""
    code = HOLDS.replace("sys.argv_dir", repr(str(tmp_path / "run")))
    root = str(pathlib.Path(cli.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_named_and_its_death_frees_the_directory(other, tmp_path):
    with pytest.raises(RunHeld) as refused, held(tmp_path / "run"):
        pass
    said = str(refused.value)
    assert f"process {other.pid} on {host_name()}" in said and "medkor run --config mine.py" in said
    assert holder_of(tmp_path / "run") and "wait for it" in said
    other.send_signal(signal.SIGKILL)
    other.wait()
    with held(tmp_path / "run"):
        assert f"process {os.getpid()} " in holder_of(tmp_path / "run")
    assert holder_of(tmp_path / "run") == ""


def test_of_those_that_start_at_one_moment_one_runs(tmp_path):
    code = (
        "import sys\n"
        "from medkor_jax.run.holding import RunHeld, held\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n"
        f"    with held({str(tmp_path / 'run')!r}):\n"
        "        print('has it', flush=True); sys.stdin.readline()\n"
        "except RunHeld:\n"
        "    print('refused', flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(cli.__file__).parents[1])}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    started = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(3)]
    assert [process.stdout.readline().strip() for process in started] == ["ready"] * 3
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in started]
    for process in started:
        process.communicate("end\n")
    assert sorted(said) == ["has it", "refused", "refused"]


@pytest.mark.parametrize(
    ("who", "is_free"),
    [
        (None, True),
        ({"pid": os.getpid(), "host": host_name()}, False),
        ({"pid": 2**22 + 12345, "host": host_name()}, True),
        ({"pid": 1, "host": "another-host"}, False),
        ("not json", True),
    ],
)
def test_where_a_disk_has_no_locks_what_the_file_says_counts(who, is_free, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    if who is not None:
        (tmp_path / FILE).write_text(who if isinstance(who, str) else json.dumps(who))
    if is_free:
        with held(tmp_path):
            assert holding.holder_of(tmp_path)
        assert (tmp_path / FILE).read_text() == ""
    else:
        with pytest.raises(RunHeld, match="in use by process"), held(tmp_path):
            pass


def lock_it(place):
    with held(place):
        pass


SPOILT = {
    "the directory": lambda run: run.chmod(0o555),
    "its parent": lambda run: (run.rmdir(), run.parent.chmod(0o555)),
    "all but the lock": lambda run: (lock_it(run), (run / FILE).chmod(0o666), run.chmod(0o555)),
    "the lock": lambda run: (lock_it(run), (run / FILE).chmod(0o444), run.chmod(0o777)),
}


@pytest.fixture
def open_place():
    """A directory that every user reaches, unlike pytest's."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield pathlib.Path(place)
        os.chmod(place, 0o755)


@contextlib.contextmanager
def as_a_user():
    """As whoever has not all rights: root may write anywhere."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("what", SPOILT)
def test_a_run_directory_that_may_not_be_written_is_refused_at_once(what, open_place):
    run = open_place / "runs/run"
    run.mkdir(parents=True)
    SPOILT[what](run)
    words = (
        r"runs/run cannot be written \(Permission denied\).*run_dir=DIRECTORY. Nothing was begun"
    )
    with as_a_user(), pytest.raises(NotWritable, match=words), held(run):
        pass


@pytest.mark.parametrize("is_new", [False, True])
def test_a_run_on_a_disk_mounted_read_only_ends_in_a_sentence(
    is_new, tmp_path, capsys, monkeypatch
):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user may mount nothing")
    monkeypatch.setattr(pipeline, "Run", None)
    try:
        if not is_new:
            (disk / "run").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        arguments = ["run", "--config", "configs/quickstart.py", f"--config.run_dir={disk}/run"]
        assert cli.main(arguments) == 1
    finally:
        subprocess.run(["umount", disk], check=True)
    said = capsys.readouterr().err
    assert f"{disk}/run cannot be written (Read-only file system): " in said
    assert "Nothing was begun" in said


def test_a_run_that_is_held_is_refused_and_nothing_moves(other, tmp_path, capsys):
    run_dir = tmp_path / "run"
    (run_dir / "phase3").mkdir()
    (run_dir / "ledger.json").write_text("[]")
    config = str(pathlib.Path(cli.__file__).parents[1] / "configs/quickstart.py")
    asked = ["run", "--config", config, f"--config.run_dir={run_dir}", "--restart", "phase3"]
    assert cli.main(asked) == 1
    assert f"{run_dir} is in use by process {other.pid}" in capsys.readouterr().err
    assert (run_dir / "phase3").is_dir() and not (run_dir / "phase3.before-1").exists()
    (run_dir / "phase3.before-1").mkdir()
    assert cli.main(["gc", str(run_dir), "--delete"]) == 1
    assert f"{run_dir} is in use by process" in capsys.readouterr().err
    assert (run_dir / "phase3.before-1").is_dir()
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert "running" in capsys.readouterr().out
