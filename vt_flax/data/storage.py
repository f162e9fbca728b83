"""Folders and files of data, on this machine or in a bucket, and their errors."""

import contextlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator

from etils import epath

from vt_flax.data.host import tensorflow
from vt_flax.errors import UserError, first_line
from vt_flax.paths import in_bucket, typed_path

CLOUD = "https://storage.googleapis.com"
CONNECT_SECONDS = 20


class UnreachableError(UserError):
    """The network or the storage cannot be reached; the data are not at fault."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(
            f"{path}: the network or the storage cannot be reached ({reason})"
        )


def storage_path(path: str | os.PathLike) -> epath.Path:
    """Returns the path of a folder of data, as somebody typed it; `~` is expanded.

    Raises:
      UserError: for another kind of storage than local folders and `gs://` buckets.
    """
    if not in_bucket(path):
        return epath.Path(typed_path(path))
    if not str(path).startswith("gs://"):
        raise UserError(
            f"{path}: data is read from local folders and gs:// buckets: copy it there"
        )
    return epath.Path(path)


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a folder exists, local or in a bucket.

    Raises:
      UserError: if there is a file instead, or for any other error, for which
        TensorFlow's and Python's `isdir` return False.
    """
    path = str(path)
    with storage_errors(path):
        if not in_bucket(path):
            try:
                os.scandir(path).close()
            except FileNotFoundError:
                return False
            return True
        _check_connection(path)
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


def _check_connection(path: str) -> None:
    """Checks that buckets can be reached, which TensorFlow would try for minutes."""
    try:
        urllib.request.urlopen(CLOUD, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # The server has answered.
    except OSError as error:
        # TensorFlow may know other certificates.
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise UnreachableError(path, str(error)) from error


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
        # TFDS and epath raise errors of their own from those of a file system.
        for cause in _causes(error):
            if isinstance(cause, OSError) and cause.strerror:
                message = f"{cause.filename or path}: {cause.strerror}"
                raise UserError(message) from error
            if isinstance(cause, tensorflow().errors.OpError):
                raise _tensorflow_error(path, cause) from error
        if isinstance(error, OSError):
            raise UserError(f"{path}: {first_line(error)}") from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and those that it was raised from."""
    while error:
        yield error
        inner = error.args[0] if error.args else None
        error = inner if isinstance(inner, Exception) else error.__cause__


def _tensorflow_error(path: str | os.PathLike, error: Exception) -> UserError:
    errors = tensorflow().errors
    # Without the operation that was run, and the lines of a server's response in one.
    message = re.sub(r"\{\{.*?\}\} *|\[Op:.*", "", error.message)
    message = " ".join(message.split())[:300]
    again = errors.UnavailableError, errors.AbortedError, errors.DeadlineExceededError
    if isinstance(error, again) or "libcurl" in message:
        return UnreachableError(path, message)
    if isinstance(error, (errors.PermissionDeniedError, errors.UnauthenticatedError)):
        return UserError(
            f"{path}: no permission to read it; log in by `gcloud auth "
            f"application-default login` ({message})"
        )
    return UserError(f"{path}: cannot be read ({message})")


def how_to_prepare(name: str, data_dir: str | os.PathLike) -> str:
    """Returns the commands that make a dataset in `data_dir`, for an error message.

    `name` is a dataset, or `convert` and a dataset.
    """
    folder, copy = data_dir, ""
    if in_bucket(data_dir):
        folder = "DATA"
        copy = f" in a local folder, then `gcloud storage cp -r DATA/* {data_dir}/`"
    return f"run `vt_flax prepare_data {name} --data_dir {folder}`{copy}"
