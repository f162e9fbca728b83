"""Image files in folders, found alike for training, datasets and predict."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from etils import epath
from PIL import features

from vt_flax.data.host import tensorflow
from vt_flax.paths import in_bucket

# Formats that Pillow decodes, and whose images have 8 bits.
SUFFIXES_OF_8_BITS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo"),
    *(".bmp", ".dib", ".gif", ".webp", ".tga", ".qoi"),
)
# All common formats that it decodes.
IMAGE_SUFFIXES = (
    *SUFFIXES_OF_8_BITS,
    *(".png", ".apng", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm"),
    # Pillow may be built without JPEG 2000.
    *((".jp2", ".j2k", ".jpx", ".jpf") if features.check("jpg_2000") else ()),
    # Pillow knows it from version 11.3 on.
    *((".avif",) if "avif" in features.modules and features.check("avif") else ()),
)
# What operating systems and NAS devices leave in folders, beside hidden files.
LITTER = {
    *("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("$recycle.bin", "system volume information", "lost+found"),
}

# A folder: of `pathlib`, or of `epath` if it may be in a bucket.
Folder = TypeVar("Folder", bound=epath.PathLike)


@dataclasses.dataclass(frozen=True)
class Entries:
    """The folders and files in a folder, by name, sorted, without hidden ones."""

    folders: list[str]
    files: list[str]


def is_image(name: str) -> bool:
    """Returns whether a file is an image, by its suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder does not belong to a dataset."""
    return name.startswith(".") or name.lower() in LITTER


def list_folder(folder: epath.PathLike) -> Entries:
    """Lists a folder, which may be in a bucket, without a request for each file.

    Links to the folder itself, or to one that it is in, are left out.

    Raises:
      OSError: if the folder cannot be read.
      tf.errors.OpError: likewise, in a bucket.
    """
    path = os.fspath(folder)
    found = _in_bucket(path) if in_bucket(path) else _on_disk(path)
    folders: list[str] = []
    files: list[str] = []
    for name, is_folder in sorted(found):
        if not is_hidden(name):
            (folders if is_folder else files).append(name)
    return Entries(folders, files)


def files_below(
    folder: Folder,
    on_error: Callable[[OSError], None] | None = None,
    leave_out: epath.PathLike | None = None,
) -> Iterator[Folder]:
    """Yields all files below a folder: first those in it, then folder by folder.

    Links are followed, but not around in circles.

    Args:
      folder: where to begin.
      on_error: called for a folder that cannot be read; None: the error is raised.
      leave_out: a folder below it that is skipped.
    """
    without = os.path.realpath(leave_out) if leave_out else None
    yield from _files_below(folder, on_error, without, (os.path.realpath(folder),))


def _files_below(
    folder: Folder,
    on_error: Callable[[OSError], None] | None,
    without: str | None,
    above: tuple[str, ...],
) -> Iterator[Folder]:
    """See `files_below`; `above` are the real paths of the folders on the way."""
    try:
        entries = list_folder(folder)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return
    yield from (folder / name for name in entries.files)
    for name in entries.folders:
        place = os.path.join(above[-1], name)
        if os.path.islink(place):
            place = os.path.realpath(place)
            if any(_is_within(one, place) for one in above):
                continue
        if place != without:
            yield from _files_below(folder / name, on_error, without, (*above, place))


def _on_disk(path: str) -> Iterator[tuple[str, bool]]:
    """Yields the names in a folder, and whether each is a folder."""
    here = os.path.realpath(path)
    with os.scandir(path) as entries:
        for entry in entries:
            # Raises no error for a link to itself, unlike the entry's own `is_dir`.
            is_folder = os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()
            # To open a pipe or a device could take forever. A link to nowhere counts
            # as a file: reading it raises an error that names it.
            if not (is_folder or entry.is_symlink() or entry.is_file()):
                continue
            if is_folder and entry.is_symlink():
                if _is_within(here, os.path.realpath(entry)):
                    continue
            yield entry.name, is_folder


def _is_within(path: str, folder: str) -> bool:
    """Returns whether a real path is a folder's, or below it."""
    return os.path.commonpath([path, folder]) == folder


def _in_bucket(path: str) -> Iterator[tuple[str, bool]]:
    # epath would drop the slash by which a bucket's listing marks folders, and to ask
    # for each of a million files whether it is a folder takes hours.
    for name in tensorflow().io.gfile.listdir(path):
        if name.strip("/"):
            yield name.rstrip("/"), name.endswith("/")
