"""What the processes of a run say to each other beside their arrays: who is there, who waits, who failed, when to stop.

    peers = Peers(place, time_limit_s=300)          # returns when all have come, or says who has not
    peers.exchange("phase0/model.json", None)       # waits until all are here; what each brought
    peers.fail("ValueError: ...", code=1)           # the others end too, and say why

Process 0 holds a star of TCP connections (the hub), one to every process, itself included; messages are lines of JSON. A
connection that ends without a farewell, or is silent for `SILENCE_S`, is a process that was killed or cut off: all others
hear of it at once, say so, and end. That is why this is not left to collectives of jax, which would wait for ever.

Trusts its network as jax's own coordination does; it runs nothing that it hears.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from medkor_jax.parallel.cluster import ClusterError, Place, host_name
from medkor_jax.parallel.hub import BEAT_S, MOMENT_S, SILENCE_S, VANISHED, Hub, named, read, send

_RETRY_S = 0.25
_SEE_OFF_S = 30.0


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
        self._stop_after: tuple[int, ...] | None = None
        self._passed, self._is_frozen = (0, 0), False
        self.is_ending = False
        self._outgoing: queue.SimpleQueue = queue.SimpleQueue()  # a signal handler may put, too
        self._hub = Hub(place, time_limit_s) if place.process_id == 0 else None
        self._socket = _connect(place, time_limit_s)
        self._file = self._socket.makefile("rb")
        send(self._socket, {"kind": "hello", "id": place.process_id, "n": place.processes, "host": host_name()})
        self._meet(time_limit_s)
        threading.Thread(target=self._listen, name="peers-listen", daemon=True).start()
        threading.Thread(target=self._speak, name="peers-speak", daemon=True).start()

    def _meet(self, time_limit_s: float) -> None:
        self._socket.settimeout(time_limit_s + 2 * BEAT_S)
        try:
            said = read(self._file)
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
                message = self._outgoing.get(timeout=BEAT_S)
            except queue.Empty:
                message = {"kind": "alive"}
            if isinstance(message, threading.Event):
                message.set()
                continue
            try:
                send(self._socket, message)
            except OSError:
                continue  # the listener sees it as well, and says so

    def _listen(self) -> None:
        self._socket.settimeout(SILENCE_S)
        while True:
            try:
                said = read(self._file)
            except (OSError, ValueError):
                said = None
            if said is None:
                said = {"kind": "over", "process": 0, "words": f"{named(self.place, 0, self.hosts)} {VANISHED}", "code": 1}
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
                if said["words"].endswith(VANISHED):
                    self._tell_and_end(said)
                else:  # what fails on one may be about to fail here too, and then says so itself
                    threading.Timer(MOMENT_S, self._tell_and_end, (said,)).start()
            self._lock.notify_all()

    def _tell_and_end(self, said: dict[str, Any]) -> None:
        if not self.is_ending:
            me = f"process {self.place.process_id} of {self.place.processes}"
            sys.stderr.write(f"medkor: {said['words']}. So {me} ends too, at {self.where}; what was saved is kept, and the same command goes on\n")
            sys.stderr.flush()
            self._end(said["code"])


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
