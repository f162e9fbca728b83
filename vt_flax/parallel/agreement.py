"""What the processes of a run must agree on before anything is written.

Each check is made by all processes alike, of what all have brought, so that all end
with the same line. For a single process there is nothing to check.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import secrets
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from vt_flax.errors import UserError, differences, first_few
from vt_flax.parallel import processes
from vt_flax.version import __version__

# Seconds that a network file system may take to show a file to another machine.
FILE_SECONDS = 15.0


def check_code() -> None:
    """Checks that all processes run the same code.

    Raises:
      UserError: everywhere alike, naming who does not.
    """
    everyone = processes.gather("code", versions())
    index = _other(everyone)
    if index is not None:
        lines = differences(everyone[0], everyone[index])
        raise UserError(
            f"{processes.names([index])} has other code than {processes.names([0])}: "
            f"{'; '.join(lines)}: install the same on all"
        )


def check_agreement(command: str, config: Mapping[str, Any]) -> None:
    """Checks that all processes were started to do the same.

    Args:
      command: the front door's name.
      config: the resolved configuration, as JSON can write it.

    Raises:
      UserError: everywhere alike, naming who differs in what.
    """
    if not processes.several():
        return
    everyone = processes.gather(
        "agreement", {"command": command, "configuration": digest(config)}
    )
    index = _other(everyone)
    if index is None:
        return
    who, first = processes.names([index]), processes.names([0])
    if everyone[index]["command"] != command:
        raise UserError(
            f"{who} runs {everyone[index]['command']}, {first} "
            f"{everyone[0]['command']}: start the same command on all"
        )
    raise UserError(
        f"{who} has another configuration than {first}: "
        f"{_told('configuration', config, index)}"
    )


def check_data(splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that all processes read the same data.

    A copy that is incomplete, or whose classes are others, would be trained on.

    Args:
      splits: the identity of each split, by its name; see `Source.identity`.

    Raises:
      UserError: everywhere alike, naming who differs in what.
    """
    index = _other(processes.gather("data read", digest(splits)))
    if index is not None:
        raise UserError(
            f"{processes.names([index])} reads other data than {processes.names([0])}: "
            f"{_told('data found', splits, index)}; copy it anew, or set data.data_dir "
            "to a folder that all machines share"
        )


def digest(content: Any) -> str:
    """Returns a digest of what JSON can write."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _told(name: str, own: Mapping[str, Any], index: int) -> str:
    """Says in what a process differs from process 0; all are to call it."""
    # Only what is in doubt is sent: on a large pod it would be much.
    found = processes.gather(name, own if jax.process_index() in (0, index) else 0)
    return first_few(differences(found[0], found[index]))


def _other(everyone: Sequence[Any]) -> int | None:
    """Returns the first process that brought something else than process 0."""
    return next((i for i, other in enumerate(everyone) if other != everyone[0]), None)


def check_shared(folder: pathlib.Path) -> None:
    """Checks that all processes see one and the same folder, and makes it.

    Raises:
      UserError: everywhere alike, if process 0 cannot write there or another does not
        see what it wrote; nothing is left behind.
    """
    if not processes.several():
        return
    with contextlib.ExitStack() as traces:
        told = {"token": f".seen-{secrets.token_hex(8)}", "problem": ""}
        if jax.process_index() == 0:
            try:
                _leave_token(folder, told["token"], traces)
            except OSError as error:
                told["problem"] = error.strerror or str(error)
        told = processes.gather("workdir", told)[0]
        if told["problem"]:
            raise UserError(f"--workdir {folder}: {told['problem']}")
        seen = _appears(folder / told["token"], FILE_SECONDS)
        blind = [
            i for i, s in enumerate(processes.gather("workdir seen", seen)) if not s
        ]
        if blind:
            raise UserError(
                f"{processes.names(blind)} does not see the --workdir {folder} of "
                f"{processes.names([0])}: name a folder that all machines share"
            )


def _leave_token(folder: pathlib.Path, name: str, traces: contextlib.ExitStack) -> None:
    """Writes a file, which goes again, with the folders that are empty without it."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        traces.callback(_remove_if_empty, made)
    (folder / name).touch()
    traces.callback((folder / name).unlink)


def _remove_if_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _appears(file: pathlib.Path, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


@functools.cache
def versions() -> dict[str, str]:
    """Returns what decides how a configuration is run, by name."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        # Configurations are compared as such; a checkout only links to their folder.
        if not name.startswith("configs/"):
            digest.update(name.encode() + file.read_bytes())
    code = {"vt_flax": f"{__version__} (sources {digest.hexdigest()[:12]})"}
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow")
    return code | {name: metadata.version(name) for name in libraries}
