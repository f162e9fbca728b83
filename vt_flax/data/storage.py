"""Folders and files of data, on this machine or in a bucket, and their errors."""

import contextlib
import os
import sys
from collections.abc import Iterator

from etils import epath

from vt_flax.data.host import tensorflow
from vt_flax.errors import UserError, first_line
from vt_flax.paths import in_bucket, typed_path


class UnreachableError(UserError):
    """The storage cannot be read at all; no single example is at fault."""


def storage_path(path: str | os.PathLike) -> epath.Path:
    """Returns the path of a folder of data, as somebody typed it; `~` is expanded."""
    return epath.Path(path if in_bucket(path) else typed_path(path))


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a folder exists, local or in a bucket.

    Raises:
      UserError: for any other error, for which TensorFlow's and Python's `isdir` return
        False.
    """
    path = os.fspath(path)
    with storage_errors(path):
        if not in_bucket(path):
            try:
                os.scandir(path).close()
            except FileNotFoundError:
                return False
            return True
        tf = tensorflow()
        try:
            return tf.io.gfile.stat(path).is_directory
        except tf.errors.NotFoundError:
            return False


def read_file(path: str) -> bytes:
    """Returns the bytes of a file.

    Raises:
      UserError: if it cannot be read.
    """
    with storage_errors(path):
        if in_bucket(path):
            return epath.Path(path).read_bytes()
        with open(path, "rb") as file:
            return file.read()


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors of disks and buckets into a `UserError`; `path` is what is read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # A program that has not imported TensorFlow has none of its errors.
        tf = sys.modules.get("tensorflow")
        # TFDS and epath raise errors of their own from those of a file system.
        for cause in _causes(error):
            if isinstance(cause, OSError) and cause.strerror:
                message = f"{cause.filename or path}: {cause.strerror}"
                raise UserError(message) from error
            if tf and isinstance(cause, tf.errors.OpError):
                message = " ".join(cause.message.split())[:300]
                lost = isinstance(
                    cause, (tf.errors.UnavailableError, tf.errors.AbortedError)
                )
                kind = UnreachableError if lost or "libcurl" in message else UserError
                raise kind(f"{path}: cannot be read ({message})") from error
        if isinstance(error, OSError):
            raise UserError(f"{path}: {first_line(error)}") from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and those that it was raised from."""
    while error:
        yield error
        inner = error.args[0] if error.args else None
        error = inner if isinstance(inner, Exception) else error.__cause__


def how_to_prepare(name: str, data_dir: str | os.PathLike) -> str:
    """Returns how to make a dataset in `data_dir`, for an error message.

    `name` is a dataset, or `convert` and a dataset.
    """
    command = f"run `vt_flax prepare_data {name} --data_dir"
    if in_bucket(data_dir):
        return f"{command} FOLDER` and copy the folder's content to {data_dir}"
    return f"{command} {data_dir}`"
