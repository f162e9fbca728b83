"""Shared by all ways to prepare: threads, a lock, leftovers, one-line errors."""

import collections
import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tensorflow_datasets.core import constants

from vt_flax.errors import UserError
from vt_flax.locks import Held, lock

LOCK = ".prepare.lock"


def say(message: str) -> None:
    """Prints progress. Standard output is for the result alone."""
    print(message, file=sys.stderr, flush=True)


def ordered_map(
    function: Callable[[Any], Any], items: Iterable, workers: int, ahead: int
) -> Iterator[Any]:
    """Applies a function in threads and yields the results in order.

    Unlike an executor's `map`, it takes no more than `ahead` items before their turn,
    so that memory does not fill where the results are used slowly.
    """
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(workers, "vt_flax-map") as pool:
        pending = collections.deque(
            pool.submit(function, item) for item in itertools.islice(items, ahead)
        )
        try:
            while pending:
                yield pending.popleft().result()
                for item in itertools.islice(items, 1):
                    pending.append(pool.submit(function, item))
        finally:
            for future in pending:
                future.cancel()


def in_threads(function: Callable[[Any], Any], items: Iterable) -> Iterator[Any]:
    """Yields the function of each item, in order, computed by a thread per core."""
    workers = os.cpu_count() or 1
    return ordered_map(function, items, workers, 4 * workers)


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder and locks it: another process would remove our unfinished files.

    Raises:
      UserError: if another process of this machine holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock(folder / LOCK):
            yield
    except Held:
        raise UserError(
            f"another process is preparing a dataset in {folder}: wait for it"
        ) from None


def remove_leftovers(folder: pathlib.Path, pattern: str) -> None:
    """Removes unfinished files and folders of TFDS, which an interrupted run left."""
    for path in sorted(folder.glob(constants.INCOMPLETE_PREFIX + pattern)):
        say(f"removing what an interrupted run left: {path}")
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def errors_in_one_line(what: str) -> Iterator[None]:
    """Turns all that TFDS, downloads, archives and disks raise into a `UserError`."""
    try:
        # TFDS prints to standard output.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:1500]
        raise UserError(f"{what}: {type(error).__name__}: {reason}") from error
