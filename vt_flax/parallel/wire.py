"""Messages over TCP: JSON, a line each."""

import json
import socket
import time
from typing import Any

from vt_flax.errors import UserError

Message = dict[str, Any]


def listen(port: int, count: int) -> socket.socket:
    """Returns a socket that `count` others can connect to.

    Raises:
      UserError: if the port is taken.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"port {port} of process 0: {error.strerror}: end the other run on this "
            "machine, or give --coordinator another port"
        ) from error
    listener.listen(count)
    listener.setblocking(False)
    return listener


def connect(address: tuple[str, int], seconds: float) -> socket.socket:
    """Returns a connection, which may take a while to come about.

    Args:
      address: host and port.
      seconds: to try for.

    Raises:
      OSError: if nobody answers in time.
    """
    limit = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(address, timeout=5)
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.3)


def send(connection: socket.socket, message: Message) -> None:
    """Sends a message.

    Raises:
      OSError: if the connection is broken.
    """
    connection.sendall((json.dumps(message) + "\n").encode())


class Lines:
    """Puts together the lines of a connection."""

    def __init__(self):
        self._rest = b""

    def read(self, connection: socket.socket) -> tuple[list[Message], bool]:
        """Returns the messages that are there, and whether more may come."""
        try:
            data = connection.recv(1 << 16)
        except TimeoutError:
            return [], True
        except OSError:
            return [], False
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = []
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a stranger at the port
            if isinstance(message, dict):
                messages.append(message)
        return messages, bool(data)
