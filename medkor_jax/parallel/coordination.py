"""jax's coordination service in a process of its own, so that it outlives process 0 for a moment.

    service = Service(port=8476, processes=4)       # on process 0
    service.close()                                 # once its own client has been shut down

jax runs the service inside process 0, and where that is killed, every other process aborts with a C++ stack before it
can say why. Here the service stays for `LINGER_S` after process 0 has gone: by then `peers` has told and ended the rest.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from medkor_jax.parallel.cluster import ClusterError

LINGER_S = 3.0
HEARTBEAT_S = 100
_FAREWELL = "bye"


class Service:
    """The child process that serves; `close` ends it at once, the end of this process ends it `LINGER_S` later."""

    def __init__(self, port: int, processes: int) -> None:
        _wait_until_free(port)
        command = f"from medkor_jax.parallel.coordination import serve; serve({port}, {processes})"
        self._child = subprocess.Popen(
            [sys.executable, "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if self._child.stdout.readline().strip() != "ready":
            said = self._child.communicate()[1].strip().splitlines()
            raise ClusterError(
                f"jax's coordination service does not start on port {port}: {said[-1] if said else 'no word'}; give another port"
            )

    def close(self) -> None:
        """Ends it. This process's own client has to be shut down before."""
        try:
            self._child.communicate(_FAREWELL, timeout=10)
        except (subprocess.TimeoutExpired, OSError):
            self._child.kill()


def _wait_until_free(port: int) -> None:
    """Waits for the service of a run that was killed a moment ago. gRPC itself would share the port with it, and mix the two."""
    deadline = time.monotonic() + 5 * LINGER_S
    while True:
        try:
            with socket.socket(
                socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
            ) as probe:
                probe.bind(("", port))
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"port {port} of this host is taken ({error.strerror}); is another run using it? Give another with --coordinator"
                ) from error
            time.sleep(0.2)


def serve(port: int, processes: int) -> None:
    """Serves until standard input ends."""
    from jax._src.lib import _jax

    service = _jax.get_distributed_runtime_service(
        f"[::]:{port}", processes, heartbeat_timeout=HEARTBEAT_S, shutdown_timeout=HEARTBEAT_S
    )
    print("ready", flush=True)
    if sys.stdin.read() != _FAREWELL:
        time.sleep(LINGER_S)
    service.shutdown()
