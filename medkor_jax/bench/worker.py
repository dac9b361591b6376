"""One side of a comparison in a process of its own, taking orders one line at a time.

    with Worker("ours", {"weights": "embedded"}) as worker:
        worker.call("prepare_training", documents=[...], batch_size=4, seq_len=512)
        worker.call("step")          # {"seconds": 7.9, "cpu_seconds": 15.2, "loss": 3.1}

Orders and answers are JSON lines on the pipes of the process; whatever libraries print goes elsewhere. An
order is the name of a method of `ours.Ours` or `peer.Peer`. Not a server: one order at a time.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import traceback
from typing import Any

SIDES = ("ours", "peer")
_FAKE_DEVICES = re.compile(r"--xla_force_host_platform_device_count=\d+")


class WorkerError(RuntimeError):
    """The other process failed; the message ends with what it said."""


class Worker:
    """The parent's end of one side. `settings` are the keyword arguments its class is made with; `environment`: what its process
    has beside or instead of this one's."""

    def __init__(
        self, side: str, settings: dict[str, Any], environment: dict[str, str] | None = None
    ) -> None:
        if side not in SIDES:
            raise ValueError(f"side {side!r} is none of {', '.join(SIDES)}")
        self.side = side
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from medkor_jax.bench.worker import main; main({side!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment() | (environment or {}),
            text=True,
            encoding="utf-8",
        )
        try:
            self.call("open", **settings)
        except BaseException:
            self.close()
            raise

    def call(self, order: str, **arguments: Any) -> Any:
        """Returns what the method `order` of the other side returned. Raises: WorkerError if it raised or died."""
        line = ""
        try:
            self._process.stdin.write(json.dumps([order, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass  # it died: reported below, as when it dies without an answer
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            tail = "".join(self._errors.readlines()[-8:]).strip()
            killed = {-9: " (killed; most likely out of memory)", -15: " (ended from outside)"}.get(
                code, ""
            )
            raise WorkerError(
                f"{self.side}: process ended with {code}{killed} during {order!r}. {tail}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.side}: {order!r} failed: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _environment() -> dict[str, str]:
    """Returns this process's environment, fit for one real device and this very package."""
    environment = dict(os.environ)
    flags = _FAKE_DEVICES.sub("", environment.pop("XLA_FLAGS", "")).strip()
    root = str(pathlib.Path(__file__).parents[2])
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return environment | ({"XLA_FLAGS": flags} if flags else {})


def _open(side: str, settings: dict[str, Any]) -> Any:
    if side == "ours":
        from medkor_jax.bench.ours import Ours

        return Ours(**settings)
    from medkor_jax.bench.peer import Peer

    return Peer(**settings)


def main(side: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be read as an answer
    model = None
    for line in sys.stdin:
        order, arguments = json.loads(line)
        try:
            if order == "open":
                model, result = _open(side, arguments), None
            elif order == "peak_memory_bytes":
                result = model.peak_memory_bytes()
            else:
                result = getattr(model, order)(**arguments)
            answer = {"result": result}
        except (
            Exception
        ) as error:  # the parent decides; it gets the sentence, the trace goes to stderr
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
