"""Folders and files of data, on this machine or in a bucket, and what goes wrong there.

TensorFlow reads buckets, and raises its own errors, which are no `OSError`.
"""

import contextlib
import os
import re
import ssl
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


def storage_path(place: str | os.PathLike) -> epath.Path:
    """Returns the path of a folder of data, as somebody typed it; `~` is expanded.

    Raises:
      UserError: for another kind of storage than local folders and `gs://` buckets.
    """
    if in_bucket(place) and not str(place).startswith("gs://"):
        raise UserError(
            f"{place}: data is read from local folders and gs:// buckets: copy it there"
        )
    return epath.Path(place if in_bucket(place) else typed_path(place))


def is_folder(place: str | os.PathLike) -> bool:
    """Returns whether a folder exists.

    `isdir` of TensorFlow and Python would return False for every error.

    Args:
      place: from `storage_path`.

    Raises:
      UserError: if that cannot be known, there is no such bucket, or something else
        than a folder is there.
    """
    place = str(place)
    with storage_errors(place):
        if not in_bucket(place):
            return _is_local_folder(place)
        problem = _connection_problem()
        if problem:
            raise _unreachable(place, problem)
        tf = tensorflow()
        try:
            status = tf.io.gfile.stat(place)
        except tf.errors.NotFoundError as error:
            if _is_of_bucket(error):
                raise
            return False
        if not status.is_directory:
            raise NotADirectoryError(20, "Not a directory", place)
        return True


def _is_local_folder(place: str) -> bool:
    try:
        os.scandir(place).close()
    except FileNotFoundError:
        if os.path.islink(place):
            raise UserError(
                f"{place}: a link to {os.readlink(place)}, which is not there"
            ) from None
        return False
    return True


def _connection_problem() -> str:
    """Returns why Google Cloud Storage cannot be reached; empty if it can.

    TensorFlow would try ten times, for three minutes.
    """
    request = urllib.request.Request(CLOUD, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except OSError as error:
        reason = getattr(error, "reason", error)
        # TensorFlow may know other certificates.
        if not isinstance(reason, ssl.SSLError):
            return str(reason)
    return ""


@contextlib.contextmanager
def storage_errors(place: str | os.PathLike) -> Iterator[None]:
    """Turns what disks and buckets raise into a line that names the file.

    Args:
      place: what is opened, listed or read, for errors that name no file.

    Raises:
      UserError: instead of `OSError`, `tf.errors.OpError`, and errors that a library
        has raised from these.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = _explained(place, error)
        if found is None:
            raise
        raise found from error


def _explained(
    place: str | os.PathLike, error: BaseException | None
) -> UserError | None:
    """Returns the line for a storage's error, or one raised from it; else None."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{error.filename or place}: {error.strerror}")
    if isinstance(error, tensorflow().errors.OpError):
        return _of_tensorflow(place, error)
    # epath raises FileNotFoundError(error of TensorFlow's).
    inner = error.args[0] if error.args else None
    inner = inner if isinstance(inner, Exception) else error.__cause__
    found = _explained(place, inner)
    if found is None and isinstance(error, OSError):
        return UserError(f"{place}: {first_line(error)}")
    return found


def _of_tensorflow(place: str | os.PathLike, error: Exception) -> UserError:
    errors = tensorflow().errors
    # Without the operation that was run.
    message = re.sub(r"\{\{.*?\}\} *|\[Op:.*", "", error.message).strip()
    # Of a local file "/folder/file; Is a directory".
    local = re.fullmatch(r"(/.+); (\w.+)", message)
    if local:
        return UserError(f"{local[1]}: {local[2]}")
    # The last line names the file: "when reading metadata of gs://bucket/file".
    named = re.search(r"(gs://.+?)/?(?: was not found\.?)?$", message)
    place = named[1] if named else place
    detail = re.search(r'"message": "(.*)"|error details: (.*)', message)
    reason = (detail[1] or detail[2]) if detail else message.split("\n", 1)[0][:200]
    if isinstance(error, errors.NotFoundError):
        if _is_of_bucket(error):
            return UserError(f"{place}: there is no such bucket")
        return UserError(f"{place}: there is no such file or folder")
    if isinstance(error, (errors.PermissionDeniedError, errors.UnauthenticatedError)):
        return UserError(
            f"{place}: no permission to read it ({reason.rstrip('.')}): log in by "
            "`gcloud auth application-default login`, or give this machine's account "
            "the role Storage Object Viewer"
        )
    if "libcurl" in message:
        return _unreachable(place, reason)
    again = errors.UnavailableError, errors.AbortedError, errors.DeadlineExceededError
    if isinstance(error, again):
        return UnreachableError(f"{place}: the storage does not answer ({reason})")
    return UserError(f"{place}: cannot be read ({reason})")


def _unreachable(place: str | os.PathLike, reason: str) -> UnreachableError:
    return UnreachableError(
        f"{place}: the network or the storage cannot be reached ({reason}): check the "
        "machine's network and proxy"
    )


def _is_of_bucket(error: Exception) -> bool:
    """Returns whether the bucket is missing, not a file in it."""
    return "The specified bucket " in str(error)


def how_to_prepare(name: str, data_dir: str | os.PathLike) -> str:
    """Returns the commands that make a dataset, for an error message.

    Args:
      name: what `prepare_data` is to be given: a dataset, or `convert` and one.
      data_dir: folder or bucket of the TFDS datasets.
    """
    command = f"python -m vt_flax.prepare_data {name} --data_dir"
    if not in_bucket(data_dir):
        return f"run `{command} {data_dir}`"
    dataset = re.split("[/:]", name.split()[-1])[0]
    before = (
        f"copy it by `gcloud storage cp -r {data_dir}/{dataset} DATA/`, "
        if name.startswith("convert ")
        else ""
    )
    return (
        f"{before}run `{command} DATA`, DATA being a local folder, then "
        f"`gcloud storage cp -r DATA/{dataset} {data_dir}/`"
    )
