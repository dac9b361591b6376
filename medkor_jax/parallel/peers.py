"""What the processes of a run say to each other beside their arrays: who is there, who waits, who failed, when to stop.

    peers = Peers(place, time_limit_s=300)          # returns when all have come, or says who has not
    peers.exchange("phase0/model.json", None)       # waits until all are here; what each brought
    peers.fail("phase0, step 7", "ValueError: ...", code=1)

Process 0 holds a star of TCP connections (the hub), one to every process, itself included; messages are lines of JSON. A
connection that ends without a farewell, or is silent for `SILENCE_S`, is a process that was killed or cut off: all others
hear of it at once, say so, and end. That is why this is not left to collectives of jax, which would wait for ever.

Trusts its network as jax's own coordination does; it runs nothing that it hears.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from medkor_jax.parallel.cluster import ClusterError, Place, host_name

SILENCE_S = 45.0
_BEAT_S = 5.0
_RETRY_S = 0.25
_OWN_WORDS_S = 2.0
_SEE_OFF_S = 30.0
_MOST = 2**28  # bytes of one message; more is no message of ours


class Peers:
    """One process's connection to the others. Every process makes the same exchanges in the same order."""

    def __init__(self, place: Place, *, time_limit_s: float, end: Callable[[int], None] = os._exit) -> None:
        """end: how this process ends when another one has.

        Raises: ClusterError, naming them, if some have not come within `time_limit_s`, or one came twice.
        """
        self.place, self._end = place, end
        self.where = "the start"
        self._lock = threading.Condition()
        self._answers: dict[int, list[Any]] = {}
        self._n_exchanges = 0
        self._passed, self._stop_after, self._is_frozen = (0, 0), None, False
        self.is_ending = False
        self._outgoing: queue.SimpleQueue = queue.SimpleQueue()  # a signal handler may put, too
        self._hub = _Hub(place, time_limit_s) if place.process_id == 0 else None
        self._socket = _connect(place, time_limit_s)
        self._file = self._socket.makefile("rb")
        _send(self._socket, {"kind": "hello", "id": place.process_id, "n": place.processes, "host": host_name()})
        self._meet(time_limit_s)
        threading.Thread(target=self._listen, name="peers-listen", daemon=True).start()
        threading.Thread(target=self._speak, name="peers-speak", daemon=True).start()

    def _meet(self, time_limit_s: float) -> None:
        self._socket.settimeout(time_limit_s + 2 * _BEAT_S)
        try:
            said = _read(self._file)
        except OSError as error:
            said = {"kind": "refused", "words": f"process 0 at {self.place.coordinator} did not answer: {error}"}
        self._socket.settimeout(None)
        if said is None or said["kind"] != "met":
            raise ClusterError(said["words"] if said else f"process 0 at {self.place.coordinator} ended before all had come")
        self.hosts = said["hosts"]

    def exchange(self, name: str, value: Any) -> list[Any]:
        """Returns what every process brought to `name`, by process; waits until all are there. Values are JSON."""
        with self._lock:
            number, self._n_exchanges = self._n_exchanges, self._n_exchanges + 1
            self._outgoing.put({"kind": "at", "number": number, "name": name, "value": value})
            self._lock.wait_for(lambda: number in self._answers)
            return self._answers.pop(number)

    def ask_to_stop(self) -> None:
        """Asks all processes to stop after the same step. Safe in a signal handler."""
        self._outgoing.put({"kind": "stop"})

    def pass_step(self, stage: int, step: int) -> bool:
        """Whether step `step` of the run's stage number `stage` may begin; every process gets the same answer for it."""
        with self._lock:
            self._lock.wait_for(lambda: not self._is_frozen)
            if self._stop_after is not None and (stage, step) > self._stop_after:
                return False
            self._passed = (stage, step)
            return True

    def fail(self, words: str, code: int) -> None:
        """Tells the others that this process ends, and why."""
        self.is_ending = True
        self._outgoing.put({"kind": "failed", "words": words, "code": code})
        self._flush()

    def leave(self) -> None:
        """Ends the connection in good order."""
        self.is_ending = True
        self._outgoing.put({"kind": "bye"})
        self._flush()

    def see_others_off(self) -> None:
        """Returns when every other process has ended or left; on process 0, which what they need rests on."""
        deadline = time.monotonic() + _SEE_OFF_S
        while self._hub and self._hub.n_here > 1 and time.monotonic() < deadline:
            time.sleep(0.05)

    def _flush(self) -> None:
        written = threading.Event()
        self._outgoing.put(written)
        written.wait(timeout=5)
        if self._hub:
            self._hub.settle()

    def _speak(self) -> None:
        while True:
            try:
                message = self._outgoing.get(timeout=_BEAT_S)
            except queue.Empty:
                message = {"kind": "alive"}
            if isinstance(message, threading.Event):
                message.set()
                continue
            try:
                _send(self._socket, message)
            except OSError:
                continue  # the listener sees it as well, and says so

    def _listen(self) -> None:
        self._socket.settimeout(SILENCE_S)
        while True:
            try:
                said = _read(self._file)
            except (OSError, ValueError):
                said = None
            if said is None:
                said = {"kind": "over", "process": 0, "words": f"{_named(self.place, 0, self.hosts)} {_VANISHED}", "code": 1}
            self._heard(said)
            if said["kind"] == "over":
                return

    def _heard(self, said: dict[str, Any]) -> None:
        with self._lock:
            if said["kind"] == "all":
                self._answers[said["number"]] = said["values"]
            elif said["kind"] == "freeze":
                self._is_frozen = True
                self._outgoing.put({"kind": "frozen", "passed": self._passed})
            elif said["kind"] == "stop_after":
                self._is_frozen, self._stop_after = False, tuple(said["last"])
            elif said["kind"] == "over":
                if said["words"].endswith(_VANISHED):
                    self._tell_and_end(said)
                else:  # what fails on one may be about to fail here too, and then says so itself
                    threading.Timer(_OWN_WORDS_S, self._tell_and_end, (said,)).start()
            self._lock.notify_all()

    def _tell_and_end(self, said: dict[str, Any]) -> None:
        if not self.is_ending:
            me = f"process {self.place.process_id} of {self.place.processes}"
            sys.stderr.write(f"medkor: {said['words']}. So {me} ends too, at {self.where}; what was saved is kept, and the same command goes on\n")
            sys.stderr.flush()
            self._end(said["code"])


_VANISHED = "ended without a word: killed, out of memory, or its host or network is gone"


def _named(place: Place, process: int, hosts: list[str]) -> str:
    return f"process {process} of {place.processes} (host {hosts[process]})"


class _Hub:
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
        files, deadline, n = {}, time.monotonic() + self._limit_s, self._place.processes
        while len(files) < n and (left := deadline - time.monotonic()) > 0:
            self._server.settimeout(left)
            try:
                connection, (address, *_) = self._server.accept()
            except OSError:
                break
            connection.settimeout(10)
            file = connection.makefile("rb")
            try:
                said = _read(file)
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
        deadline, told = time.monotonic() + _OWN_WORDS_S, [*others, *self._sockets.values()]
        while told or (left := deadline - time.monotonic()) > 0:
            try:
                if not told:
                    self._server.settimeout(left)
                    told.append(self._server.accept()[0])
                _send(told.pop(), {"kind": "refused", "words": words})
            except OSError:
                continue
        self._server.close()

    def _tell(self, message: dict[str, Any]) -> None:
        with self._lock:
            for process in list(self._sockets):
                if process not in self._left:
                    try:
                        _send(self._sockets[process], message)
                    except OSError:
                        pass  # its own reader notices

    def _beat(self) -> None:
        while not self._is_over and len(self._left) < self._place.processes:
            self._tell({"kind": "alive"})
            time.sleep(_BEAT_S)

    def _listen(self, process: int, file: Any) -> None:
        while True:
            try:
                said = _read(file)
            except (OSError, ValueError):
                said = None
            with self._lock:
                if said is None:
                    self._closed.add(process)
                    if process not in self._left:
                        self._end(process, _VANISHED, 1)
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
            self._tell({"kind": "over", "process": process, "words": f"{_named(self._place, process, hosts)} {words}", "code": code})
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


def _connect(place: Place, time_limit_s: float) -> socket.socket:
    deadline, host = time.monotonic() + time_limit_s, "localhost" if place.process_id == 0 else place.host
    while True:
        try:
            return socket.create_connection((host, place.port + 1), timeout=10)
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"process 0 did not come: nothing answers at {place.host} port {place.port + 1} within {time_limit_s:g} s ({error}). See that it was "
                    f"started, that {place.coordinator} is its address, and that ports {place.port} and {place.port + 1} are open"
                ) from error
            time.sleep(_RETRY_S)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read(file: Any) -> dict[str, Any] | None:
    """Returns the next message, None at the end. Raises: OSError after too long a silence; ValueError on what is no message."""
    line = file.readline(_MOST)
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    if not isinstance(message, dict) or "kind" not in message:
        raise ValueError("no message")
    return message
