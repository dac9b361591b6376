"""Which process of how many this one is: given, or found in the environment of TPU pods, SLURM, Open MPI, GKE.

    place = find_place(coordinator="10.0.0.1:8476", processes=4, process_id=2)      # or by MEDKOR_COORDINATOR, ...
    place = find_place()                                                            # None: one process, no cluster

Where a cluster is recognised, jax's own detection is asked (`jax._src.clusters`), with a port of our choosing: jax has
changed its default, and firewalls closed the new one. Starts nothing, connects to nothing.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Mapping

PORT = 8476
"""Where process 0 listens if nothing else is said; the next port is used as well."""

FLAGS = {
    "MEDKOR_COORDINATOR": "--coordinator",
    "MEDKOR_PROCESSES": "--processes",
    "MEDKOR_PROCESS_ID": "--process-id",
}


class ClusterError(ValueError):
    """The processes of a run cannot be brought together; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Place:
    """coordinator: the host and port of process 0; the port after it is ours too. found_by: who said so.

    local_id: which process of this host it is, where each of several takes one GPU; else None.
    """

    coordinator: str
    processes: int
    process_id: int
    found_by: str = "given"
    local_id: int | None = None

    @property
    def host(self) -> str:
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.coordinator.rpartition(":")[2])


def find_place(
    coordinator: str = "",
    processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """Returns this process's place, None if it is the only one. Arguments win over MEDKOR_* variables, those over a cluster.

    Raises: ClusterError if only a part is given, or what is given contradicts itself.
    """
    coordinator = coordinator or environment.get("MEDKOR_COORDINATOR", "")
    processes = _whole("MEDKOR_PROCESSES", environment) if processes is None else processes
    process_id = _whole("MEDKOR_PROCESS_ID", environment) if process_id is None else process_id
    given = {
        "MEDKOR_COORDINATOR": coordinator or None,
        "MEDKOR_PROCESSES": processes,
        "MEDKOR_PROCESS_ID": process_id,
    }
    if any(value is not None for value in given.values()) and processes != 1:
        if missing := [
            f"{FLAGS[name]} (or {name})" for name, value in given.items() if value is None
        ]:
            raise ClusterError(
                f"several processes are asked for, and {' and '.join(missing)} is missing; give all three to every process"
            )
        return _checked(Place(coordinator, processes, process_id))
    if processes == 1:
        if process_id:
            raise ClusterError(f"--process-id is {process_id}, and there is 1 process: its id is 0")
        return None
    return _found(environment)


def _whole(name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name, "")
    if text and not text.isdigit():
        raise ClusterError(f"{name} is {text!r}, expected a whole number")
    return int(text) if text else None


def _checked(place: Place) -> Place:
    if (
        not re.fullmatch(r"(\[[^\]]+\]|[^:\s]+):\d+", place.coordinator)
        or not 0 < place.port < 65535
    ):
        raise ClusterError(
            f"the coordinator is {place.coordinator!r}, expected HOST:PORT of process 0, such as 10.0.0.1:{PORT}"
        )
    if place.processes < 1 or not 0 <= place.process_id < place.processes:
        raise ClusterError(
            f"process id {place.process_id} of {place.processes} processes: ids go from 0 to {place.processes - 1}"
        )
    return place


def _found(environment: Mapping[str, str]) -> Place | None:
    """Returns what the cluster's environment says, None where there is none or it has one process."""
    try:
        from jax._src.clusters import ClusterEnv

        kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    except (ImportError, AttributeError) as error:
        raise ClusterError(
            f"this jax no longer finds clusters as medkor asks it to ({error}); give --coordinator, --processes and --process-id"
        ) from error
    for kind in kinds:
        if kind.is_env_present():
            name, n = kind.name or kind.__name__, int(kind.get_process_count())
            if n == 1:
                return None
            port = _whole("MEDKOR_PORT", environment) or PORT
            address = kind.get_coordinator_address(
                timeout_secs=300, override_coordinator_port=str(port)
            )
            return _checked(
                Place(address, n, int(kind.get_process_id()), name, _local_id(kind, environment))
            )
    return None


def _local_id(kind, environment: Mapping[str, str]) -> int | None:
    """Returns which of this host's processes this is, where there are several: each takes one of its GPUs. None where it was
    shown only its own (`--gpus-per-task`)."""
    if "," not in environment.get("CUDA_VISIBLE_DEVICES", ","):
        return None
    if (n := environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")).isdigit():
        return kind.get_local_process_id() if int(n) > 1 else None
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as "2(x3),1"
    return (
        kind.get_local_process_id()
        if any(int(n) > 1 for n in re.findall(r"(?:^|,)(\d+)", tasks))
        else None
    )


def host_name() -> str:
    return socket.gethostname()
