"""Several processes as one run: process 0 writes and speaks, all wait for what it wrote, and they end together.

    with hosts.connected(place):                   # nothing where place is None: one process
        if hosts.is_first(): path.write_text(...)
        hosts.wait(path)                           # a barrier: afterwards all may read
        digest = hosts.first("digest", make)       # made by process 0, given to all
        hosts.say("phase0: ...")                   # printed once

The only module that asks which process this is. Barriers and failures go over `peers`, arrays over jax (`gather`). Every process runs
the same program on the same data, and so calls these in the same order; where one does not, it is found by name.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from medkor_jax.parallel import stopping
from medkor_jax.parallel.cluster import Place, host_name
from medkor_jax.parallel.coordination import HEARTBEAT_S, Service
from medkor_jax.parallel.peers import Peers
from medkor_jax.parallel.stopping import Stopped

WAIT_S = 300.0
"""How long the processes wait for each other at the start; MEDKOR_WAIT_S sets another limit."""

SEEN_S = 20.0  # for a file on a shared disk to be seen by all hosts
_NEWS_S = 5.0  # for the reason to arrive, where an error may only be what another's end looks like

T = TypeVar("T")
_peers: Peers | None = None
_is_alone = False  # inside `first`: what process 0 does there, it does by itself
_n_stages = 0
_END = 2**62  # behind every step of a stage


def is_first() -> bool:
    return _peers is None or _peers.place.process_id == 0


def n_processes() -> int:
    return 1 if _peers is None else _peers.place.processes


def process_id() -> int:
    return 0 if _peers is None else _peers.place.process_id


def say(*words: Any) -> None:
    """Prints on process 0."""
    if is_first():
        print(*words, flush=n_processes() > 1)


def at(place: str) -> None:
    """Notes where this process is, for what is said if one fails or is stopped."""
    stopping.at(place)
    if _peers:
        _peers.where = place


def wait(name: Any) -> None:
    """Returns when every process is here. name: of what they wait for, the same on all; a path that process 0 wrote is
    then seen by all, also over a network disk that is slow to show a new file."""
    if _peers and not _is_alone:
        _peers.exchange(_spelt(name), None)
        if isinstance(name, pathlib.Path):
            is_seen(name)


def collect(name: str, value: T) -> list[T]:
    """Returns every process's `value` (JSON), in their order."""
    return [value] if _peers is None or _is_alone else _peers.exchange(name, value)


def first(name: Any, make: Callable[[], T]) -> T:
    """Returns make(), called on process 0 alone; its result (JSON) or its exception reaches all."""
    if _peers is None or _is_alone:
        return make()
    made, error = None, None
    if is_first():
        try:
            made = alone(make)
        except Exception as caught:
            error = caught
    said = {
        "made": made,
        "error": error and [type(error).__module__, type(error).__qualname__, str(error)],
    }
    found = _peers.exchange(_spelt(name), said if is_first() else None)[0]
    if error is not None:
        raise error
    if found["error"]:
        raise _as_raised(*found["error"])
    return found["made"]


def alone(make: Callable[[], T]) -> T:
    """Returns make(), in which this process waits for no other: what it writes there is its own business."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        return make()
    finally:
        _is_alone = before


def is_seen(path: pathlib.Path) -> bool:
    """Whether the path is there, waiting a while for a network disk to show it."""
    deadline = time.monotonic() + SEEN_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # makes NFS look again
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def stops(first_step: int, name: str) -> Iterator[Callable[[int], bool]]:
    """Yields may_begin(step): whether the stage's next step may begin, the same answer on every process.

    False once SIGTERM or SIGINT came to any process; a second signal ends this process as usual.
    """
    global _n_stages
    _n_stages += 1
    stage, caught = _n_stages, []

    def note(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])
        if _peers:
            _peers.ask_to_stop()

    def may_begin(step: int) -> bool:
        if _peers is None:
            is_free = not caught
        else:
            is_free = _peers.pass_step(stage, step)
        if is_free:
            at(f"{name}, step {step}")
        return is_free

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever runs us there has the signals
        pass
    try:
        if not may_begin(first_step):
            raise Stopped(
                f"stopped by a signal before {name} began; what was saved is kept, and the same command goes on"
            )
        yield may_begin
    finally:
        for heard, handler in before.items():
            signal.signal(heard, handler)
    if caught:  # at the last step
        raise Stopped(stopping.words_of(caught[0], f"the end of {name}"))
    if _peers and not _peers.pass_step(stage, _END):
        raise Stopped(
            f"another process was stopped at the end of {name}; what was saved is kept, and the same command goes on"
        )


@contextlib.contextmanager
def connected(
    place: Place | None, code_of: Callable[[BaseException], int] = lambda error: 1
) -> Iterator[None]:
    """Joins the other processes for the time of the block. What ends it by an exception ends the others too.

    code_of: the exit code that an exception means; the others end with it.
    Raises: ClusterError if they do not come together.
    """
    global _peers
    if place is None:
        with stopping.ended_by_sigterm():
            yield
        return
    _peers = _join(place)
    before = signal.signal(signal.SIGTERM, stopping.stop)
    try:
        yield
        wait("the end")
        _peers.leave()
        jax.distributed.shutdown()
        if _service:
            _service.close()
    except BaseException as error:
        _fail(error, code_of(error))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


_service: Service | None = None


def _join(place: Place) -> Peers:
    global _service
    peers = Peers(place, time_limit_s=float(os.environ.get("MEDKOR_WAIT_S", WAIT_S)))
    if place.process_id == 0:
        _service = Service(place.port, place.processes)
    peers.exchange("the coordination service", None)
    if place.local_id is not None:
        jax.config.update("jax_cuda_visible_devices", str(place.local_id))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _connect_jax(place)
    return peers


def _connect_jax(place: Place) -> None:
    """Does what `jax.distributed.initialize` does, with the service already running (see `coordination`)."""
    from jax._src import distributed
    from jax._src.lib import _jax

    state, address = (
        distributed.global_state,
        f"localhost:{place.port}" if place.process_id == 0 else place.coordinator,
    )
    state.coordinator_address, state.process_id, state.num_processes = (
        place.coordinator,
        place.process_id,
        place.processes,
    )
    state.client = _jax.get_distributed_runtime_client(
        address,
        place.process_id,
        init_timeout=int(WAIT_S),
        use_compression=True,
        heartbeat_timeout=HEARTBEAT_S,
    )
    state.client.connect()


def _fail(error: BaseException, code: int) -> None:
    """Tells the others, unless this is how their end looks from here: then their reason comes first and ends this process."""
    if not type(error).__module__.startswith("medkor_jax"):
        time.sleep(_NEWS_S)
    _peers.fail(
        f"failed at {_peers.where}: {type(error).__name__}: {str(error).strip()[:2000]}", code
    )
    _peers.see_others_off()  # the service stays: this process's own client aborts without it


def _as_raised(module: str, name: str, words: str) -> Exception:
    """Returns the exception of that name, where it is made from its words alone; else a RuntimeError of them."""
    try:
        kind: Any = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
        made = kind(words)
        return made if isinstance(made, Exception) and str(made) == words else RuntimeError(words)
    except Exception:
        return RuntimeError(words)


def _spelt(name: Any) -> str:
    """Returns the name as all hosts spell it: they may have mounted a disk at different places."""
    return name.name if isinstance(name, pathlib.Path) else str(name)


def name_of(process: int) -> str:
    """Returns the name of the host that the process is on."""
    return _peers.hosts[process] if _peers else host_name()


def signed(words: str) -> str:
    """Returns words of this process, with its name where there are several."""
    return (
        words
        if _peers is None
        else f"process {process_id()} of {n_processes()} ({host_name()}): {words}"
    )


def leave(code: int) -> int:
    """Returns `code`; ends a process of several at once, whose run failed: nothing in it waits for the others any more."""
    if _peers:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
