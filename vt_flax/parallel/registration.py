"""Registration of all processes with process 0, before JAX starts.

`jax.distributed.initialize` waits for all processes too, but aborts without naming a
missing one. So each process first sends a line of JSON to process 0, on the port that
JAX's service uses later.
"""

import contextlib
import json
import os
import platform
import socket
import time
from collections.abc import Sequence
from typing import Any

from vt_flax.errors import UserError, first_names
from vt_flax.parallel.cluster import Cluster

LOST = 5  # exit status where another process is missing or has ended
RETRY_SECONDS = 0.3
# Time for a message to arrive, and for a port scanner that sends nothing.
MESSAGE_SECONDS = 5.0


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
    reply = exchange(cluster, platform.node(), seconds)
    if "error" in reply:
        raise StartError(reply["error"], reply["status"])
    return reply["hosts"]


def _collect(cluster: Cluster, host: str, seconds: float) -> dict[str, Any]:
    """Receives index and host of all other processes, and replies to all."""
    port = cluster.address[1]
    deadline = time.monotonic() + seconds
    hosts, connections, error = {0: host}, [], ""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as taken:
            raise StartError(
                f"port {port} of process 0: {os.strerror(taken.errno)}: end the other "
                "run on this machine, or give --coordinator another port"
            ) from taken
        while len(hosts) < cluster.count and not error:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                break
            connection.settimeout(MESSAGE_SECONDS)
            try:
                index, host = _receive(connection)
            except (OSError, ValueError, TypeError):
                continue  # a port scanner
            connections.append(connection)
            if index in hosts or index >= cluster.count:
                error = (
                    f"process {index} ({host}) does not fit the others: give each "
                    f"--processes {cluster.count} and its own --process"
                )
            hosts[index] = host
        reply = _reply(hosts, error, cluster.count, seconds)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(reply).encode() + b"\n")
    return reply


def _reply(
    hosts: dict[int, str], error: str, count: int, seconds: float
) -> dict[str, Any]:
    if error:
        return {"error": error, "status": StartError.status}
    names = [hosts.get(i, "") for i in range(count)]
    if missing := [i for i in range(count) if i not in hosts]:
        error = f"{process_names(missing, names)} did not start in {seconds:.0f} s"
        return {"error": error, "status": LOST}
    return {"hosts": names}


def _send(cluster: Cluster, host: str, seconds: float) -> dict[str, Any]:
    """Sends this process's index and host, and returns the reply of process 0."""
    text = json.dumps([cluster.index, host]).encode() + b"\n"
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
