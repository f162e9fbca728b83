"""A way to process 0 that seems open when process 0 is gone.

JAX's client ends its process with a stack trace, from C++, in the very moment in which
the connection to process 0's service breaks. Over a relay it does not see that: the
link (see `link`) does, and ends the process with a line that says who is gone.
"""

import contextlib
import socket
import threading


class Relay:
    """Listens on this machine alone, and passes connections on to an address.

    Args:
      address: host and port to pass them on to.
    """

    def __init__(self, address: tuple[str, int]):
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        _start(self._accept)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listener.getsockname()[1]

    def close(self) -> None:
        """Ends it and what goes over it."""
        for connection in (self._listener, *self._open):
            # Wakes up whoever waits for it.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        # Closed by `close`.
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._address, timeout=10)
                except OSError:
                    near.close()  # the client tries again
                    continue
                far.settimeout(None)
                for connection in (near, far):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [near, far]
                _start(_pass_on, near, far, True)
                _start(_pass_on, far, near, False)


def _pass_on(source: socket.socket, target: socket.socket, closes: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    if closes:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _start(function, *arguments) -> None:
    threading.Thread(
        target=function, args=arguments, name="vt_flax-relay", daemon=True
    ).start()
