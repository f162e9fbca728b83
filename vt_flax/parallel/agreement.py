"""Checks that the processes of a run agree before anything is written.

All processes make each check together and raise the same error. With a single process
each check passes.
"""

import json
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

import jax

from vt_flax.errors import differences, first_few
from vt_flax.parallel import processes
from vt_flax.parallel.cluster import StartError

# Time that a network file system may take to show a file to another machine.
FILE_SECONDS = 15.0


def check_equal(what: str, value: Mapping[str, Any], advice: str) -> None:
    """Checks that a value is the same in all processes.

    Args:
      what: for the message, such as `has other data than`.
      value: this process's, as JSON can write it.
      advice: what to do where it differs.

    Raises:
      StartError: in all processes, naming one that differs, and the differences.
    """
    if not processes.several():
        return
    first = processes.broadcast(what, value)
    # As JSON has it, without tuples.
    own = differences(first, json.loads(json.dumps(value)))
    for index, lines in enumerate(processes.gather(what, own)):
        if lines:
            raise StartError(
                f"{processes.names([index])} {what} {processes.names([0])}: "
                f"{first_few(lines)}: {advice}"
            )


def check_shared(folder: pathlib.Path) -> None:
    """Checks that process 0 can write to a folder and that all processes see it.

    Raises:
      StartError: in all processes, naming those that do not see the folder.
    """
    if not processes.several():
        return
    file, problem = folder / f".seen-{secrets.token_hex(8)}", ""
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            problem = error.strerror or str(error)
    name, problem = processes.broadcast("workdir", [file.name, problem])
    if problem:
        raise StartError(f"--workdir {folder}: {problem}")
    seen = processes.gather("workdir seen", _appears(folder / name))
    if jax.process_index() == 0:
        file.unlink(missing_ok=True)
    if missing := [index for index, appears in enumerate(seen) if not appears]:
        raise StartError(
            f"{processes.names(missing)} does not see the --workdir {folder} of "
            f"{processes.names([0])}: name a folder that all machines share"
        )


def _appears(file: pathlib.Path) -> bool:
    deadline = time.monotonic() + FILE_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
