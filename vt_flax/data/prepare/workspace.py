"""Shared by all ways to prepare: disk space, a lock, leftovers, one-line errors."""

import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.filesize import decimal
from tensorflow_datasets.core import constants

from vt_flax.data.threads import ordered_map
from vt_flax.errors import UserError
from vt_flax.locks import Held, lock

LOCK = ".prepare.lock"
# Examples of a split whose sizes estimate the size of all.
SAMPLE = 100
# Upper bounds of what array_record adds to an example and to a file, and the least size
# of the files that TFDS makes of a large dataset.
EXAMPLE_OVERHEAD, FILE_OVERHEAD, SHARD_BYTES = 150, 192 * 1024, 64 << 20


def say(message: str) -> None:
    """Prints progress. Standard output is for the result alone."""
    print(message, file=sys.stderr, flush=True)


def in_threads(function: Callable[[Any], Any], items: Iterable) -> Iterator[Any]:
    """Yields the function of each item, in order, computed by a thread per core."""
    workers = os.cpu_count() or 1
    return ordered_map(function, items, workers, 4 * workers)


def estimate_bytes(size_of: Callable[[Any], int], examples: Sequence) -> int:
    """Estimates the size of a split in array_record from some of its examples.

    A tenth is added for names, labels, masks that are encoded anew, and the error.
    """
    sample = examples[:: max(1, len(examples) // SAMPLE)]
    content = 1.1 * sum(map(size_of, sample)) / len(sample) * len(examples)
    files = 1 + content / SHARD_BYTES
    return round(content + EXAMPLE_OVERHEAD * len(examples) + FILE_OVERHEAD * files)


def check_space(folder: pathlib.Path, needed: int | None) -> None:
    """Prints the bytes that a step needs at its peak, if known, and that are free.

    Raises:
      UserError: if they do not fit.
    """
    free = shutil.disk_usage(folder).free
    need = "an unknown amount" if needed is None else f"about {decimal(needed)}"
    say(f"disk: {need} needed, {decimal(free)} free in {folder}")
    if needed is not None and needed > free:
        raise UserError(
            f"{folder} has {decimal(free)} free, about {decimal(needed)} are needed: "
            "make room, or name another folder"
        )


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
        reason = " ".join(str(error).split())[:500]
        raise UserError(f"{what}: {type(error).__name__}: {reason}") from error
