"""The processes of a run: how they start, exchange values, agree, and end together.

With a single process every function returns at once.
"""

import contextlib
import itertools
import json
import pathlib
import secrets
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from vt_flax.errors import (
    UserError,
    device_memory_error,
    differences,
    first_few,
    first_line,
)
from vt_flax.parallel.cluster import Cluster, StartError, process_names, register

# Time that a network file system may take to show a file to another machine.
FILE_SECONDS = 15.0

# Set where there are several processes.
_watchdog = None
_gathers = itertools.count()


def join(cluster: Cluster, start_seconds: float) -> None:
    """Waits until all processes have started, and starts JAX over them.

    Raises:
      UserError: if one does not start in time, naming it.
    """
    global _watchdog
    if cluster.count == 1:
        return
    # Imports JAX, without which some commands run.
    from vt_flax.parallel.watchdog import Store, Watchdog

    hosts = register(cluster, start_seconds)
    _watchdog = Watchdog(cluster.index, hosts, Store(cluster, start_seconds))
    _watchdog.handle_aborts(cluster.address)


def set_timeouts(heartbeat: float, progress: float) -> None:
    """Sets the seconds without heartbeat, or without progress, that end a run."""
    if _watchdog is not None:
        _watchdog.heartbeat_timeout, _watchdog.progress_timeout = heartbeat, progress


def several() -> bool:
    """Returns whether there are several processes."""
    return _watchdog is not None


def names(indices: Sequence[int]) -> str:
    """Returns `process 1 (host) of 4`, for one or several processes."""
    return process_names(indices, _watchdog.hosts)


def gather(name: str, value: Any) -> list[Any]:
    """All-gathers a value: returns the values of all processes, by index.

    Args:
      name: for messages. All processes make the same calls in the same order.
      value: this process's, as JSON can write it.
    """
    if _watchdog is None:
        return [value]
    # So that the watchdog names a process that does not get here.
    report(f"all-gather of {name!r}")
    index, store = _watchdog.index, _watchdog.store
    key, text = f"gather/{next(_gathers)} {name}", json.dumps(value)
    if index:
        store.set(f"{key}/{index}", text)
    else:
        others = range(1, len(_watchdog.hosts))
        texts = [text, *(_get(f"{key}/{i}") for i in others)]
        store.set(key, f"[{', '.join(texts)}]")
    return json.loads(_get(key))


def broadcast(name: str, value: Any) -> Any:
    """Returns process 0's value; the others' values are ignored."""
    own = _watchdog is None or _watchdog.index == 0
    return gather(name, value if own else None)[0]


def _get(key: str) -> str:
    # In short intervals, between which Ctrl-C is handled.
    while (value := _watchdog.store.get(key, 1.0)) is None:
        pass
    return value


def check_equal(what: str, value: Mapping[str, Any], advice: str) -> None:
    """Checks that a value is the same in all processes.

    Args:
      what: for the message, such as `has other data than`.
      value: this process's, as JSON can write it.
      advice: what to do where it differs.

    Raises:
      StartError: in all processes, naming one that differs, and the differences.
    """
    if not several():
        return
    first = broadcast(what, value)
    # As JSON has it, without tuples.
    own = differences(first, json.loads(json.dumps(value)))
    for index, lines in enumerate(gather(what, own)):
        if lines:
            raise StartError(
                f"{names([index])} {what} {names([0])}: {first_few(lines)}: {advice}"
            )


def check_shared(folder: pathlib.Path) -> None:
    """Checks that process 0 can write to a folder and that all processes see it.

    Raises:
      StartError: in all processes, naming those that do not see the folder.
    """
    if not several():
        return
    file, problem = folder / f".seen-{secrets.token_hex(8)}", ""
    if _watchdog.index == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            problem = error.strerror or str(error)
    name, problem = broadcast("workdir", [file.name, problem])
    if problem:
        raise StartError(f"--workdir {folder}: {problem}")
    seen = gather("workdir seen", _appears(folder / name))
    if _watchdog.index == 0:
        file.unlink(missing_ok=True)
    if missing := [index for index, appears in enumerate(seen) if not appears]:
        raise StartError(
            f"{names(missing)} does not see the --workdir {folder} of {names([0])}: "
            "name a folder that all machines share"
        )


def _appears(file: pathlib.Path) -> bool:
    deadline = time.monotonic() + FILE_SECONDS
    while not (exists := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return exists


def report(doing: str) -> None:
    """Reports progress: what this process does next.

    All processes make the same reports in the same order. When none makes progress, the
    one with the fewest reports is named.
    """
    if _watchdog is not None:
        _watchdog.report(doing)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends all processes with the error that its body raises in one.

    Raises:
      UserError: instead of JAX's error that a device is out of memory.
    """
    try:
        yield
    except BaseException as error:
        memory_error = device_memory_error(error)
        if _watchdog is not None:
            _fail(memory_error or error)
        if memory_error:
            raise memory_error from error
        raise


def _fail(error: BaseException) -> None:
    """Sends an error to the other processes, unless all raise it."""
    line, status = f"{type(error).__name__}: {first_line(error)}", 1
    if isinstance(error, UserError):
        if error.everywhere:
            return
        line, status = str(error), error.status
    elif isinstance(error, KeyboardInterrupt):
        line, status = "interrupted", 130
    else:
        raise_if_lost()
    index = _watchdog.index
    _watchdog.fail(f"{names([index])}: {line}", status, author=index)
    if status == 1:
        # At once, since contexts that it leaves may wait for the other processes.
        traceback.print_exc()
        _watchdog.exit(status)


def raise_if_lost() -> None:
    """Ends this process if another one is dead, and otherwise returns.

    To be called after an error that a collective may have raised because of the dead
    process, which only the watchdog can name.
    """
    if _watchdog is not None:
        _watchdog.wait_for_failure()


def finish() -> None:
    """Waits until all processes are done, and stops JAX's service."""
    global _watchdog
    if _watchdog is None:
        return
    import jax

    gather("end", None)
    _watchdog.closed.set()
    jax.distributed.shutdown()
    _watchdog.join()
    _watchdog = None


def end(status: int) -> NoReturn:
    """Ends this process, whose error has been printed and sent to the others."""
    if _watchdog is None:
        sys.exit(status)
    _watchdog.exit(status)
