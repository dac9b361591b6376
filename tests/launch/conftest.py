"""Launchers run as a user runs them, with stand-ins for the commands of clouds on PATH."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    """A shell starts what it puts into the background deaf to SIGINT, and so would be all that these tests start."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Place:
    """A directory with commands of its own before all others on PATH."""

    def __init__(self, directory: pathlib.Path, quick: dict[str, str]):
        self.directory, self.bin, self.quick = directory, directory / "bin", quick
        self.bin.mkdir()
        keep = ("PATH", "HOME", "TMPDIR", "LANG")
        self.env = {name: os.environ[name] for name in keep if name in os.environ} | {"EXTRAS": "none"}
        self.env["PATH"] = f"{self.bin}:{self.env['PATH']}"

    def command(self, name: str, script: str) -> pathlib.Path:
        path = self.bin / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def medkor(self) -> None:
        """Makes `medkor` this checkout's own, whatever is installed."""
        self.command("medkor", f'exec {sys.executable} -m medkor_jax.cli "$@"')
        self.env |= self.quick | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def start(self, script: str, *arguments: str, cwd: pathlib.Path = ROOT, **env: str) -> subprocess.Popen:
        command = ["bash", str(ROOT / "launch" / script), *map(str, arguments)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(command, cwd=cwd, env=self.env | env, start_new_session=True, **pipes)

    def run(self, script: str, *arguments: str, timeout: float = 60, **more) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **more)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            said = "\n".join(map(str, process.communicate()))
            raise AssertionError(f"{script} has not ended after {timeout} s:\n{said}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def dry(self, script: str, *arguments: str, **env: str) -> list[str]:
        """The commands a launcher would give; none of them is given: those of clouds are not even there."""
        done = self.run(script, *arguments, DRY_RUN="1", **env)
        assert done.returncode == 0, done.stderr
        return [line[2:] for line in done.stdout.splitlines() if line.startswith("+ ")]


@pytest.fixture(scope="session")
def make_place(quick):
    return lambda directory: Place(directory, quick)


@pytest.fixture
def place(tmp_path, make_place) -> Place:
    return make_place(tmp_path)
