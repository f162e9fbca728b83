"""The processes of a run: detecting and registering them, before JAX starts.

`jax.distributed.initialize` waits for all processes too, but aborts without naming a
missing one. So each process first sends a line of JSON to process 0, on the port that
JAX's service uses later.
"""

import contextlib
import dataclasses
import json
import os
import platform
import socket
import time
from collections.abc import Sequence
from typing import Any

from vt_flax.errors import UserError, first_line, first_names

# Seconds to wait for the address of process 0.
DETECTION_SECONDS = 60
LOST = 5  # exit status where another process is missing or has ended
RETRY_SECONDS = 0.3
# Time for a message to arrive, and for a port scanner that sends nothing.
MESSAGE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, and which of them this one is.

    Attributes:
      index: index of this process.
      count: number of processes.
      coordinator: HOST:PORT of process 0; empty for a single process.
      local_device_ids: devices of this process; None for all of the machine.
    """

    index: int = 0
    count: int = 1
    coordinator: str = ""
    local_device_ids: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host, int(port)


def find_cluster(
    coordinator: str = "", count: int | None = None, index: int | None = None
) -> Cluster:
    """Returns the cluster that options describe, or the one that JAX detects.

    JAX detects Cloud TPU, Slurm, Open MPI and Kubernetes. Elsewhere a run has a single
    process.

    Args:
      coordinator: HOST:PORT of process 0.
      count: number of processes; 1 skips the detection.
      index: index of this process.

    Raises:
      UserError: if an option is missing or invalid, or the detection fails.
    """
    if count == 1 and not index:
        return Cluster()
    if not coordinator and count is None and index is None:
        cluster = _detect()
    elif coordinator and count is not None and index is not None:
        cluster = Cluster(index, count, coordinator)
    else:
        raise UserError(
            "several processes need all of --coordinator HOST:PORT, --processes N "
            "and --process I (or none, where JAX detects the cluster)"
        )
    if cluster.count == 1:
        return Cluster()
    if not 0 <= cluster.index < cluster.count:
        raise UserError(
            f"--process {cluster.index}: must be at least 0, and under --processes "
            f"{cluster.count}"
        )
    host, _, port = cluster.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator {cluster.coordinator}: write HOST:PORT")
    return cluster


def _detect() -> Cluster:
    # Imported here, since some commands run without JAX. It has no public detection.
    from jax._src.clusters import ClusterEnv

    try:
        address, count, index, ids = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, DETECTION_SECONDS
        )
    # Metadata servers and environment variables fail in many ways.
    except Exception as error:
        raise UserError(
            f"the cluster cannot be detected ({first_line(error)}): "
            "give --coordinator, --processes and --process, or --processes 1"
        ) from error
    if address is None or count is None or index is None:
        return Cluster()
    return Cluster(index, count, address, tuple(ids) if ids else None)


class StartError(UserError):
    """The processes cannot start together; all of them raise it."""

    everywhere = True

    def __init__(self, message: str, status: int = UserError.status):
        super().__init__(message)
        self.status = status


def process_names(indices: Sequence[int], hosts: Sequence[str]) -> str:
    """Returns `process 1 (host) of 4`, for one or several processes."""
    shown = first_names(f"{i} ({hosts[i]})" if hosts[i] else str(i) for i in indices)
    return f"process{'es' if len(indices) > 1 else ''} {shown} of {len(hosts)}"


def register(cluster: Cluster, seconds: float) -> list[str]:
    """Waits until all processes have registered, and returns their hosts.

    Args:
      cluster: this process and the address of process 0.
      seconds: timeout.

    Raises:
      StartError: in all registered processes, if the port is taken, or a process is
        missing or was started twice.
    """
    exchange = _send if cluster.index else _collect
    hosts, error, status = exchange(cluster, seconds)
    if error:
        raise StartError(error, status)
    return hosts


def _collect(cluster: Cluster, seconds: float) -> tuple[list[str], str, int]:
    """Receives index and host of the other processes, and replies to all of them.

    Returns the reply: the hosts, and an error, if any, with its exit status.
    """
    port, count = cluster.address[1], cluster.count
    deadline = time.monotonic() + seconds
    hosts, links, error, status = {0: platform.node()}, [], "", StartError.status
    try:
        server = socket.create_server(("", port))
    except OSError as taken:
        raise StartError(
            f"port {port} of process 0: {os.strerror(taken.errno)}: end the other run "
            "on this machine, or give --coordinator another port"
        ) from taken
    with server:
        while len(hosts) < count and not error:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                link, _ = server.accept()
            except TimeoutError:
                break
            link.settimeout(MESSAGE_SECONDS)
            try:
                index, host = _receive(link)
            except (OSError, ValueError, TypeError):
                link.close()
                continue  # it was a port scanner
            links.append(link)
            if index in hosts or index >= count:
                error = (
                    f"process {index} ({host}) does not fit the others: give each "
                    f"--processes {count} and its own --process"
                )
            hosts[index] = host
    names = [hosts.get(i, "") for i in range(count)]
    missing = [i for i in range(count) if i not in hosts]
    if missing and not error:
        error = f"{process_names(missing, names)} did not start in {seconds:.0f} s"
        status = LOST
    reply = names, error, status
    for link in links:
        with contextlib.suppress(OSError), link:
            link.sendall(json.dumps(reply).encode() + b"\n")
    return reply


def _send(cluster: Cluster, seconds: float) -> tuple[list[str], str, int]:
    """Sends this process's index and host, and returns the reply of process 0."""
    text = json.dumps([cluster.index, platform.node()]).encode() + b"\n"
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(cluster.address, MESSAGE_SECONDS) as link:
                link.sendall(text)
                # Process 0 replies when all have registered, or after its timeout.
                link.settimeout(seconds + MESSAGE_SECONDS)
                return _receive(link)
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise StartError(
                    f"process {cluster.index} of {cluster.count}: process 0 does not "
                    f"answer after {seconds:.0f} s ({error}): is it running, and its "
                    "port open?",
                    LOST,
                ) from error
        time.sleep(RETRY_SECONDS)


def _receive(connection: socket.socket) -> Any:
    with connection.makefile() as lines:
        return json.loads(lines.readline(2**16))
