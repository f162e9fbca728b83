"""Paths as people type them, and files that are written atomically."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from vt_flax.errors import UserError


def in_bucket(place: str | os.PathLike[str]) -> bool:
    """Returns whether a folder or a file is in a bucket, as in `gs://BUCKET/PATH`."""
    return "://" in os.fspath(place)


def typed_path(name: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path as a person typed it, with `~` and `~user` expanded.

    Where there is no such user, the name is taken as it is. Not for names from the
    listing of a folder.
    """
    # pathlib's own raises an error for users that do not exist.
    return pathlib.Path(os.path.expanduser(name))


def local_folder(option: str, path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a folder, or of a file, on this machine.

    Raises:
      UserError: for a bucket, of which pathlib would make a local folder `gs:`.
    """
    if in_bucket(path):
        raise UserError(
            f"{option} {path}: buckets are not supported yet; name a folder that the "
            "machine has mounted"
        )
    return typed_path(path)


def write_whole(file: pathlib.Path, text: str) -> None:
    """Writes a text file atomically."""
    partial = file.with_suffix(".tmp")
    partial.write_text(text)
    partial.replace(file)


@contextlib.contextmanager
def writing(place: str | pathlib.Path) -> Iterator[None]:
    """Turns an OSError into a `UserError` that names a file or an option's folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{place}: {error.strerror or error}") from error
