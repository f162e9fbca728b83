"""The roll call of a run's processes, before JAX starts.

`jax.distributed.initialize` waits for all processes and then aborts without naming the
missing ones. So each process first reports to process 0, over XML-RPC.
"""

import http.client
import secrets
import time
import xmlrpc.client
from collections.abc import Sequence
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from vt_flax.errors import UserError, differences, first_few, first_names

LOST = 5  # exit status where another process is missing or has ended
POLL_SECONDS = 0.3
RPC_SECONDS = 5.0


class StartError(UserError):
    """The processes cannot start together; all of them raise it."""

    everywhere = True

    def __init__(self, message: str, status: int = UserError.status):
        super().__init__(message)
        self.status = status


def names(indices: Sequence[int], hosts: Sequence[str]) -> str:
    """Returns `process 1 (host) of 4`, for one or several processes."""
    shown = first_names(f"{i} ({hosts[i]})" if hosts[i] else str(i) for i in indices)
    return f"process{'es' if len(indices) > 1 else ''} {shown} of {len(hosts)}"


def call_roll(
    index: int,
    address: tuple[str, int],
    hosts: Sequence[str],
    host: str,
    settings: dict[str, str],
    seconds: float,
) -> list[str]:
    """Waits until all processes have reported, and returns the names of their machines.

    Args:
      index: this process.
      address: host and port where process 0 listens.
      hosts: names of all machines as known beforehand, empty where unknown.
      host: name of this machine.
      settings: what must be the same in all processes.
      seconds: time to wait for all.

    Raises:
      StartError: if the port is taken, or a process is missing, was started twice or
        has other settings; in all processes that have reported.
    """
    report = {"host": host, "settings": settings, "id": secrets.token_hex(8)}
    if index == 0:
        answer = _collect(address[1], report, hosts, seconds)
    else:
        answer = _report(index, address, report, hosts, seconds)
    if "error" in answer:
        raise StartError(answer["error"], answer["status"])
    return answer["hosts"]


def _collect(
    port: int, first: dict[str, Any], hosts: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Returns process 0's answer to all reports, when it has been given to all."""
    reports, answer = {0: first}, {}
    # By `id`, since two processes may have the same index.
    reported, informed = {first["id"]}, {first["id"]}

    def report(index: int, other: dict[str, Any]) -> dict[str, Any]:
        """Takes a report; it is repeated until there is an answer."""
        known = reports.setdefault(index, other)
        reported.add(other["id"])
        who = f"process {index} ({other['host']}) of {len(hosts)}"
        if lines := differences(first["settings"], other["settings"]):
            fail(
                f"{who} differs from process 0 ({first['host']}): {first_few(lines)}: "
                "start the same on all"
            )
        elif known["id"] != other["id"]:
            fail(f"{who} was also started on {known['host']}: give each its --process")
        elif len(reports) == len(hosts):
            answer.setdefault("hosts", [reports[i]["host"] for i in range(len(hosts))])
        if answer:
            informed.add(other["id"])
        return answer

    def fail(error: str, status: int = StartError.status) -> None:
        if not answer:
            answer.update(error=error, status=status)

    try:
        server = SimpleXMLRPCServer(("", port), _Handler)
    except OSError as error:
        raise StartError(
            f"port {port} of process 0: {error.strerror}: end the other run on this "
            "machine, or give --coordinator another port"
        ) from error
    with server:
        server.timeout = POLL_SECONDS
        server.register_function(report)
        limit, expected = time.monotonic() + seconds, len(hosts)
        while not answer or informed != reported or len(reported) < expected:
            server.handle_request()
            now = time.monotonic()
            if "error" in answer:
                # Those that have not reported yet would wait in vain.
                limit = min(limit, now + RPC_SECONDS)
            if now > limit and answer:
                break
            if now > limit:
                missing = [i for i in range(len(hosts)) if i not in reports]
                fail(f"{names(missing, hosts)} did not start in {seconds:.0f} s", LOST)
                limit, expected = now + RPC_SECONDS, len(reports)
    return answer


def _report(
    index: int,
    address: tuple[str, int],
    report: dict[str, Any],
    hosts: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """Reports to process 0 until it answers."""
    url = f"http://{address[0]}:{address[1]}"
    server = xmlrpc.client.ServerProxy(url, _Transport())
    limit = time.monotonic() + seconds
    while True:
        try:
            if answer := server.report(index, report):
                return answer
            # Process 0 is there, and decides how long to wait for the others.
            limit = time.monotonic() + seconds
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            if time.monotonic() > limit:
                raise StartError(
                    f"process {index} of {len(hosts)}: {names([0], hosts)} does not "
                    f"answer after {seconds:.0f} s ({error}): is it running, and its "
                    "port open?",
                    LOST,
                ) from error
        time.sleep(POLL_SECONDS)


class _Handler(SimpleXMLRPCRequestHandler):
    timeout = RPC_SECONDS  # for a stranger that connects and sends nothing

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


class _Transport(xmlrpc.client.Transport):
    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = RPC_SECONDS
        return connection
