"""What the processes of a run must agree on before anything is written.

All processes make each check together, so that all end with the same message. A single
process agrees with itself.
"""

import contextlib
import hashlib
import json
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

import jax

from vt_flax.errors import differences, first_few
from vt_flax.parallel import processes
from vt_flax.parallel.registration import StartError

# Seconds that a network file system may take to show a file to another machine.
FILE_SECONDS = 15.0


def check_equal(what: str, value: Mapping[str, Any], advice: str) -> None:
    """Checks that a value is the same in all processes.

    Args:
      what: for the message, such as `has other data than`.
      value: this process's, as JSON can write it.
      advice: what to do where it differs.

    Raises:
      StartError: in all processes alike, naming one that differs, and in what.
    """
    if not processes.several():
        return
    first = processes.broadcast(what, value)
    # As JSON has it, without tuples.
    lines = differences(first, json.loads(json.dumps(value)))
    for index, found in enumerate(processes.gather(what, lines)):
        if found:
            raise StartError(
                f"{processes.names([index])} {what} {processes.names([0])}: "
                f"{first_few(found)}: {advice}"
            )


def check_data(splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that all processes read the same data, given each split's identity."""
    advice = "copy it again, or set data.data_dir to a folder that all machines share"
    check_equal("has other data than", splits, advice)


def check_shared(folder: pathlib.Path) -> None:
    """Checks that process 0 can write to a folder and that all processes see it.

    Nothing is left behind: the folder is removed again if it was missing.

    Raises:
      StartError: in all processes alike, naming those that do not see the folder.
    """
    if not processes.several():
        return
    name, problem = f".seen-{secrets.token_hex(8)}", ""
    with contextlib.ExitStack() as cleanup:
        if jax.process_index() == 0:
            try:
                _write_token(folder, name, cleanup)
            except OSError as error:
                problem = error.strerror or str(error)
        name, problem = processes.broadcast("workdir", [name, problem])
        if problem:
            raise StartError(f"--workdir {folder}: {problem}")
        seen = processes.gather("workdir seen", _appears(folder / name))
    missing = [index for index, found in enumerate(seen) if not found]
    if missing:
        raise StartError(
            f"{processes.names(missing)} does not see the --workdir {folder} of "
            f"{processes.names([0])}: name a folder that all machines share"
        )


def _write_token(
    folder: pathlib.Path, name: str, cleanup: contextlib.ExitStack
) -> None:
    """Writes a file to be removed by `cleanup`, with the folders made for it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(made):
        cleanup.callback(_remove_if_empty, path)
    (folder / name).touch()
    cleanup.callback((folder / name).unlink)


def _remove_if_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _appears(file: pathlib.Path) -> bool:
    limit = time.monotonic() + FILE_SECONDS
    while not file.exists():
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


def digest(content: Any) -> str:
    """Returns a digest of what JSON can write."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
