"""Files that one process at a time holds."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator


class Held(Exception):
    """Another process holds the file."""


@contextlib.contextmanager
def lock(file: pathlib.Path) -> Iterator[None]:
    """Locks a file, made where it is missing, against other processes.

    The system unlocks it however this process ends. On a file system without locks
    nothing is locked.

    Raises:
      Held: if another process holds it.
      OSError: if the file cannot be written.
    """
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Held(file) from error
        except OSError:
            pass
        yield
