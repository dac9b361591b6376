"""What process 0 does for all: it lets them in, hears all and answers all. See `peers`, which talks to it.

One thread a connection. Messages are lines of JSON, each a mapping with its "kind":

    to the hub     hello {id, n, host}   at {number, name, value}   stop   frozen {passed}   failed {words, code}   bye   alive
    to a process   met {hosts}   refused {words}   all {number, values}   freeze   stop_after {last}   over {process, words, code}   alive

It runs nothing that it hears, and lets in nobody who does not greet it as one of the run's processes.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Any

from medkor_jax.parallel.cluster import ClusterError, Place, host_name

SILENCE_S = 45.0
BEAT_S = 5.0
MOMENT_S = 2.0
"""In which what happens to one process may be expected to be heard from another as well."""

_MOST = 2**28  # bytes of one message; more is no message of ours
VANISHED = "ended without a word: killed, out of memory, or its host or network is gone"


def named(place: Place, process: int, hosts: list[str]) -> str:
    return f"process {process} of {place.processes} (host {hosts[process]})"


class Hub:
    """Process 0's side: hears all, answers all. One thread a connection."""

    def __init__(self, place: Place, time_limit_s: float) -> None:
        self._place, self._limit_s = place, time_limit_s
        self._lock = threading.RLock()
        self._sockets: dict[int, socket.socket] = {}
        self._hosts: dict[int, str] = {}
        self._left: set[int] = set()
        self._closed: set[int] = set()
        self._at: dict[int, dict[int, tuple[str, Any]]] = {}
        self._frozen: dict[int, tuple[int, int]] | None = None
        self._is_over = False
        self._server = _listener(place.port + 1)
        threading.Thread(target=self._gather, name="hub-gather", daemon=True).start()

    @property
    def n_here(self) -> int:
        """How many processes are still connected."""
        return self._place.processes - len(self._closed)

    def settle(self) -> None:
        """Gives the last messages time to leave before the process does."""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and not (self._is_over or self._left):
            time.sleep(0.02)

    def _gather(self) -> None:
        files: dict[int, Any] = {}
        deadline, n = time.monotonic() + self._limit_s, self._place.processes
        while len(files) < n and (left := deadline - time.monotonic()) > 0:
            self._server.settimeout(left)
            try:
                connection, (_address, *_) = self._server.accept()
            except OSError:
                break
            connection.settimeout(10)
            file = connection.makefile("rb")
            try:
                said = read(file)
                if not said or said.get("kind") != "hello":
                    raise ValueError("no greeting")
            except (OSError, ValueError):
                connection.close()  # not one of ours: a port scan, a health check
                continue
            process = said["id"]
            if process in files or said["n"] != n:
                words = (
                    f"two processes say that they are process {process} of {n} (hosts {self._hosts[process]} and {said['host']}); give each its own --process-id"
                    if process in files else f"process {process} (host {said['host']}) was started as one of {said['n']} processes, process 0 as one of {n}"
                )  # fmt: skip
                self._refuse(words, connection)
                return
            files[process], self._sockets[process], self._hosts[process] = file, connection, said["host"]
        if missing := [i for i in range(n) if i not in files]:
            came = ", ".join(f"{i} ({self._hosts[i]})" for i in sorted(files))
            self._refuse(
                f"{len(missing)} of {n} processes did not come to {self._place.coordinator} within {self._limit_s:g} s: {', '.join(map(str, missing))}. "
                f"Came: {came}. See that they were started, and that ports {self._place.port} and {self._place.port + 1} of process 0's host are open to them"
            )
            return
        hosts = [self._hosts[i] for i in range(n)]
        for process, file in files.items():
            self._sockets[process].settimeout(SILENCE_S)
            threading.Thread(target=self._listen, args=(process, file), name=f"hub-{process}", daemon=True).start()
        self._tell({"kind": "met", "hosts": hosts})
        threading.Thread(target=self._beat, name="hub-beat", daemon=True).start()

    def _refuse(self, words: str, *others: socket.socket) -> None:
        """Tells all who came, and who comes within a moment, that this run cannot be."""
        deadline, told = time.monotonic() + MOMENT_S, [*others, *self._sockets.values()]
        while told or (left := deadline - time.monotonic()) > 0:
            try:
                if not told:
                    self._server.settimeout(left)
                    told.append(self._server.accept()[0])
                send(told.pop(), {"kind": "refused", "words": words})
            except OSError:
                continue
        self._server.close()

    def _tell(self, message: dict[str, Any]) -> None:
        with self._lock:
            for process in list(self._sockets):
                if process not in self._left:
                    with contextlib.suppress(OSError):  # its own reader notices
                        send(self._sockets[process], message)

    def _beat(self) -> None:
        while not self._is_over and len(self._left) < self._place.processes:
            self._tell({"kind": "alive"})
            time.sleep(BEAT_S)

    def _listen(self, process: int, file: Any) -> None:
        while True:
            try:
                said = read(file)
            except (OSError, ValueError):
                said = None
            with self._lock:
                if said is None:
                    self._closed.add(process)
                    if process not in self._left:
                        self._end(process, VANISHED, 1)
                    return
                self._heard(process, said)

    def _heard(self, process: int, said: dict[str, Any]) -> None:
        if said["kind"] == "at":
            self._arrived(process, said)
        elif said["kind"] == "stop" and self._frozen is None:
            self._frozen = {}
            self._tell({"kind": "freeze"})
        elif said["kind"] == "frozen":
            self._frozen[process] = tuple(said["passed"])
            if len(self._frozen) == self._place.processes:
                self._tell({"kind": "stop_after", "last": max(self._frozen.values())})
        elif said["kind"] == "failed":
            self._left.add(process)
            self._end(process, said["words"], said["code"])
        elif said["kind"] == "bye":
            self._left.add(process)

    def _arrived(self, process: int, said: dict[str, Any]) -> None:
        here = self._at.setdefault(said["number"], {})
        here[process] = (said["name"], said["value"])
        if len({name for name, _ in here.values()}) > 1:
            places = "; ".join(f"process {i} is at {name!r}" for i, (name, _) in sorted(here.items()))
            self._end(process, f"and the others no longer do the same ({places}); do all hosts run the same code, config and data?", 1)
        elif len(here) == self._place.processes:
            del self._at[said["number"]]
            self._tell({"kind": "all", "number": said["number"], "values": [here[i][1] for i in sorted(here)]})

    def _end(self, process: int, words: str, code: int) -> None:
        if not self._is_over:
            hosts = [self._hosts[i] for i in range(self._place.processes)]
            self._tell({"kind": "over", "process": process, "words": f"{named(self._place, process, hosts)} {words}", "code": code})
            self._is_over = True


def _listener(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ClusterError(
            f"process 0 cannot listen on port {port} of {host_name()} ({error.strerror}); is another run using it? Give another port with --coordinator"
        ) from error


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def read(file: Any) -> dict[str, Any] | None:
    """Returns the next message, None at the end. Raises: OSError after too long a silence; ValueError on what is no message."""
    line = file.readline(_MOST)
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    if not isinstance(message, dict) or "kind" not in message:
        raise ValueError("no message")
    return message
