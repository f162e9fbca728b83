"""A `python -m vt_flax NAME` for scripts that takes no time to import anything.

It asks the tests, which fork the command from a process that has imported it all.
"""

import json
import os
import pathlib
import signal
import socket
import sys
import threading

# The place of the tests' socket, for the `python` that a script starts.
PLACE = "FORKED_PYTHON"


class Starter:
    """Forks what the scripts ask for, one after the other.

    Args:
      folder: for the commands' output.

    Attributes:
      bin: a folder with a `python` that asks this.
      processes: what has been started, in order; see `pods.Process`.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self.bin, self.processes = folder, folder / "bin", []
        self.bin.mkdir()
        python = self.bin / "python"
        place = folder / "socket"
        python.write_text(
            f'#!/bin/sh\n{PLACE}={place} exec {sys.executable} -S {__file__} "$@"\n'
        )
        python.chmod(0o755)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(place))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        from pods import Process

        while True:
            link, _ = self._server.accept()
            with link, link.makefile("rw") as stream:
                _, name, *words = json.loads(stream.readline())
                output = self._folder / f"{len(self.processes)}.out"
                process = Process(name, words, 1, output)
                self.processes.append(process)
                stream.write(f"{process.pid}\n")
                stream.flush()
                status = process.end()
                stream.write(json.dumps([status, process.out, process.err]) + "\n")


def ask(words: list[str]) -> int:
    """Has the tests start a command, and passes on what it is sent and what it says."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(os.environ[PLACE])
        with link.makefile("rw") as stream:
            stream.write(json.dumps(words) + "\n")
            stream.flush()
            pid = int(stream.readline())
            signal.signal(signal.SIGTERM, lambda number, _: os.kill(pid, number))
            status, out, errors = json.loads(stream.readline())
    print(out, end="")
    print(errors, end="", file=sys.stderr)
    return status


if __name__ == "__main__":
    if sys.argv[1] != "-m":
        # What else a script has Python do is done by itself.
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    sys.exit(ask(sys.argv[2:]))
