"""Waiting for a condition, and a port to wait on."""

import socket
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Waits until a condition holds, and fails if it does not in time."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def free_port() -> int:
    """Returns a port that no program listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
