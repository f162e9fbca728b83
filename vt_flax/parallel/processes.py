"""The processes of a run: how they start, exchange values, and end together.

A single process is the trivial case: every function does next to nothing then.
"""

import contextlib
import itertools
import json
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from vt_flax.errors import UserError, device_memory_error, first_line
from vt_flax.parallel.cluster import Place
from vt_flax.parallel.registration import call_roll
from vt_flax.parallel.registration import names as process_names
from vt_flax.parallel.watchdog import BEAT_SECONDS, Watchdog
from vt_flax.version import versions

# Set where there are several processes.
_watchdog: Watchdog | None = None
_gathers = itertools.count()
_until_finish = contextlib.ExitStack()


def join(place: Place, start_seconds: float) -> None:
    """Waits until all processes have come, and starts JAX over them.

    Raises:
      UserError: if one does not come in time or runs other code, naming it.
    """
    global _watchdog
    if place.count == 1:
        return
    # It imports JAX, without which some commands start.
    from vt_flax.parallel.coordination import Store, without_gloo_on_stdout

    settings = {"--processes": str(place.count), **versions()}
    host = platform.node()
    hosts = call_roll(
        place.index, place.address, place.hosts, host, settings, start_seconds
    )
    store = Store(
        place.coordinator,
        place.count,
        place.index,
        place.local_device_ids,
        start_seconds,
    )
    _until_finish.enter_context(without_gloo_on_stdout())
    _watchdog = Watchdog(place, hosts, store)
    _watchdog.handle_aborts()


def set_timeouts(heartbeat: float, progress: float) -> None:
    """Sets how many seconds a process may miss its heartbeats, or get no further."""
    if _watchdog is not None:
        _watchdog.heartbeat_timeout, _watchdog.progress_timeout = heartbeat, progress


def several() -> bool:
    """Returns whether there are several processes."""
    return _watchdog is not None


def names(indices: Sequence[int]) -> str:
    """Returns `process 1 (host) of 4`, for one or several processes."""
    return process_names(indices, _watchdog.hosts)


def gather(name: str, value: Any, seconds: float | None = None) -> list[Any]:
    """All-gathers a value: returns the values of all processes, by index.

    The run ends if a process does not come in time.

    Args:
      name: for messages. All processes make the same calls in the same order.
      value: this process's, as JSON can write it.
      seconds: time to wait for the others; `parallel.progress_timeout` by default.
    """
    if _watchdog is None:
        return [value]
    index, store = _watchdog.index, _watchdog.store
    key, text = f"gather/{next(_gathers)} {name}", json.dumps(value)
    if index:
        store.set(f"{key}/{index}", text)
        return json.loads(_get(key))
    limit = time.monotonic() + (
        _watchdog.progress_timeout if seconds is None else seconds
    )
    others = range(1, len(_watchdog.hosts))
    texts = [text, *(_get(f"{key}/{i}", limit) for i in others)]
    if missing := [i for i, text in enumerate(texts) if text is None]:
        _watchdog.fail(f"{names(missing)} did not come to {name!r}")
        _watchdog.wait_for_verdict()
    store.set(key, f"[{', '.join(texts)}]")
    return [json.loads(text) for text in texts]


def broadcast(name: str, value: Any) -> Any:
    """Returns process 0's value; the others' values are ignored."""
    own = _watchdog is None or _watchdog.index == 0
    return gather(name, value if own else None)[0]


def _get(key: str, limit: float = float("inf")) -> str | None:
    while True:
        left = limit - time.monotonic()
        # In short intervals, between which Ctrl-C is handled.
        value = _watchdog.store.get(key, min(BEAT_SECONDS, max(left, 0.01)))
        if value is not None or left < 0:
            return value


def report(doing: str) -> None:
    """Reports what this process does next.

    All processes make the same reports in the same order. When none gets any further,
    the one that has reported least is named.
    """
    if _watchdog is not None:
        _watchdog.report(doing)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Tells the other processes of an error in its body, so that all of them end.

    Raises:
      UserError: instead of JAX's error that a device is out of memory.
    """
    try:
        yield
    except BaseException as error:
        memory_error = device_memory_error(error)
        if _watchdog is not None:
            _announce(memory_error or error)
        if memory_error:
            raise memory_error from error
        raise


def _announce(error: BaseException) -> None:
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
    """Ends this process if another one turns out to be lost; otherwise returns.

    To be called after an error that may come from a collective with the lost process,
    which the watchdog alone can name.
    """
    if _watchdog is not None:
        _watchdog.wait_for_verdict()


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
    _until_finish.close()
    _watchdog = None


def end(status: int) -> NoReturn:
    """Ends this process, whose error has been printed and announced."""
    if _watchdog is None:
        sys.exit(status)
    _watchdog.exit(status)


def has_last_word() -> bool:
    """Returns whether the caller is to print why this process ends."""
    return _watchdog is None or _watchdog.claim_end()
