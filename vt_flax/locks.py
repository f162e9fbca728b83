"""Files that one process at a time holds."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator


class Held(Exception):
    """Another process holds the file."""


@contextlib.contextmanager
def lock(file: pathlib.Path) -> Iterator[OSError | None]:
    """Holds a file, made where it is missing, against other processes.

    The system lets go of it however the process ends.

    Yields:
      Why it is not held, where a file system knows no locks; else None.

    Raises:
      Held: if another process does.
      OSError: if the file cannot be written.
    """
    with file.open("a") as stream:
        problem = None
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Held(file) from error
        except OSError as error:
            problem = error
        yield problem
