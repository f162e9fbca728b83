"""Folders and files of data, on this machine or in a bucket, and their errors.

TensorFlow reads buckets, and raises errors of its own, which are no `OSError`.
"""

import contextlib
import os
import re
from collections.abc import Iterator

from etils import epath

from vt_flax.data.host import tensorflow
from vt_flax.errors import UserError, first_line
from vt_flax.paths import in_bucket, typed_path


class UnreachableError(UserError):
    """The network or the storage cannot be reached; the data are not at fault."""


def storage_path(path: str | os.PathLike) -> epath.Path:
    """Returns the path of a folder of data, as somebody typed it; `~` is expanded.

    Raises:
      UserError: for another kind of storage than local folders and `gs://` buckets.
    """
    if in_bucket(path) and not str(path).startswith("gs://"):
        raise UserError(
            f"{path}: data is read from local folders and gs:// buckets: copy it there"
        )
    return epath.Path(path if in_bucket(path) else typed_path(path))


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a folder exists, local or in a bucket.

    Raises:
      UserError: if that cannot be known, or there is a file instead of a folder;
        TensorFlow's and Python's `isdir` return False for every error.
    """
    path = str(path)
    with storage_errors(path):
        if not in_bucket(path):
            try:
                os.scandir(path).close()
            except FileNotFoundError:
                return False
            return True
        tf = tensorflow()
        try:
            status = tf.io.gfile.stat(path)
        except tf.errors.NotFoundError as error:
            if "The specified bucket" in str(error):
                raise
            return False
        if not status.is_directory:
            raise NotADirectoryError(20, "Not a directory", path)
        return True


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
    """Turns errors of disks and buckets, also wrapped ones, into a `UserError`.

    Args:
      path: what is read, for errors that name no file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = _user_error(path, error)
        if found is None:
            raise
        raise found from error


def _user_error(
    path: str | os.PathLike, error: BaseException | None
) -> UserError | None:
    """Returns the line for a storage's error, or one raised from it; else None."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{error.filename or path}: {error.strerror}")
    errors = tensorflow().errors
    if not isinstance(error, errors.OpError):
        # epath raises FileNotFoundError(error of TensorFlow's).
        inner = error.args[0] if error.args else None
        inner = inner if isinstance(inner, Exception) else error.__cause__
        found = _user_error(path, inner)
        if found is None and isinstance(error, OSError):
            return UserError(f"{path}: {first_line(error)}")
        return found
    # Without the operation that was run, and the lines of a server's answer in one.
    message = re.sub(r"\{\{.*?\}\} *|\[Op:.*", "", error.message)
    message = " ".join(message.split())[:300]
    again = errors.UnavailableError, errors.AbortedError, errors.DeadlineExceededError
    if isinstance(error, again) or "libcurl" in message:
        return UnreachableError(
            f"{path}: the network or the storage cannot be reached ({message})"
        )
    return UserError(f"{path}: cannot be read ({message})")


def how_to_prepare(name: str, data_dir: str | os.PathLike) -> str:
    """Returns the commands that make a dataset, for an error message.

    Args:
      name: arguments of `prepare_data`: a dataset, or `convert` and one.
      data_dir: folder or bucket of the TFDS datasets.
    """
    command = f"python -m vt_flax.prepare_data {name} --data_dir"
    if not in_bucket(data_dir):
        return f"run `{command} {data_dir}`"
    dataset = re.split("[/:]", name.split()[-1])[0]
    return (
        f"run `{command} DATA`, DATA being a local folder, then "
        f"`gcloud storage cp -r DATA/{dataset} {data_dir}/`"
    )
