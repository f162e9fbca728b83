"""What every way of preparing needs: space, a lock, tidiness, errors in one line."""

import contextlib
import pathlib
import shutil
import sys
from collections.abc import Iterator

import requests
from rich.filesize import decimal
from tensorflow_datasets.core import constants
from tensorflow_datasets.core.utils import py_utils

from vt_flax.errors import UserError
from vt_flax.locks import Held, lock

LOCK = ".prepare.lock"
# What array_record adds, as a bound: to each example, and to each file.
EXAMPLE_OVERHEAD = 150
FILE_OVERHEAD = 192 * 1024


def say(message: str) -> None:
    """Tells how things go. Standard output is for the result alone."""
    print(message, file=sys.stderr, flush=True)


def free_bytes(folder: pathlib.Path) -> int:
    """Returns the free space, in bytes, where a folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def array_record_bytes(content: float, examples: int, files: int) -> int:
    """Returns a bound on the size, in bytes, of array_record files of some content."""
    return round(content) + EXAMPLE_OVERHEAD * examples + FILE_OVERHEAD * files


def check_space(folder: pathlib.Path, needed: int | None) -> None:
    """Tells what a step needs at its peak and what is free.

    Args:
      folder: where the step writes.
      needed: in bytes; None where nobody knows.

    Raises:
      UserError: if it would not fit.
    """
    free = free_bytes(folder)
    need = "an unknown amount" if needed is None else f"about {decimal(needed)}"
    say(f"disk: {need} needed, {decimal(free)} free in {folder}")
    if needed is not None and needed > free:
        raise UserError(
            f"{folder} has {decimal(free)} free, about {decimal(needed)} are needed: "
            "make room, or name another folder"
        )


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder and holds it against other processes of this machine.

    Without this, a second run would take the first one's files for leftovers.

    Raises:
      UserError: if another process holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            problem = stack.enter_context(lock(folder / LOCK))
        except Held:
            raise UserError(
                f"another process is preparing a dataset in {folder}: wait for it"
            ) from None
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}") from error
        if problem:
            say(
                f"warning: {folder} has no locks ({problem.strerror}): run one at a "
                "time"
            )
        yield


def remove_interrupted_build(data_path: pathlib.Path) -> None:
    """Removes the folders in which builds of a dataset were stopped.

    Args:
      data_path: the dataset's folder; TFDS builds beside it and renames at the end.
    """
    pattern = f"{constants.INCOMPLETE_PREFIX}??????_{data_path.name}"
    for folder in sorted(data_path.parent.glob(pattern)):
        say(f"removing what an interrupted run left: {folder}")
        shutil.rmtree(folder)


def remove_interrupted_files(folder: pathlib.Path) -> None:
    """Removes files that a stopped conversion had not finished."""
    for file in sorted(folder.glob(f"{constants.INCOMPLETE_PREFIX}*")):
        if py_utils.is_incomplete_file(file):
            say(f"removing what an interrupted run left: {file}")
            file.unlink()


@contextlib.contextmanager
def errors_in_one_line(what: str) -> Iterator[None]:
    """Turns whatever TFDS and its builders raise into a `UserError`.

    A builder is other people's code on top of downloads, archives and a disk: it raises
    errors of every kind, and nearly all of them are for the user to mend.
    """
    try:
        # TFDS prints what it is about; standard output is for the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except requests.exceptions.RequestException as error:
        url = error.request.url if error.request is not None else "its files"
        raise UserError(
            f"{what}: cannot download {url} ({type(error).__name__}): check the "
            "network and run again"
        ) from error
    except Exception as error:
        raise UserError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Failed to encode example" in "".join(lines[:1]):
        # TFDS puts the whole example, images and all, before the reason.
        lines = lines[-1:]
    return f"{type(error).__name__}: {' '.join(lines)[:500]}"
