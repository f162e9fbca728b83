"""Lists image files in folders, alike for training, datasets and predict."""

import os
import pathlib
from collections.abc import Iterator
from typing import TypeVar

from etils import epath
from PIL import features

from vt_flax.data.host import tensorflow
from vt_flax.paths import in_bucket

# Common formats that Pillow decodes.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo"),
    *(".bmp", ".dib", ".gif", ".webp", ".tga", ".qoi"),
    *(".png", ".apng", ".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm"),
    # Pillow may be built without JPEG 2000.
    *((".jp2", ".j2k", ".jpx", ".jpf") if features.check("jpg_2000") else ()),
    # Pillow has AVIF from version 11.3 on.
    *((".avif",) if "avif" in features.modules and features.check("avif") else ()),
)
# What operating systems and NAS devices leave in folders, beside hidden files.
LITTER = {
    *("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("$recycle.bin", "system volume information", "lost+found"),
}

# A folder: of `pathlib`, or of `epath` if it may be in a bucket.
Folder = TypeVar("Folder", bound=epath.PathLike)


def is_image(name: str) -> bool:
    """Returns whether a file is an image, by its suffix."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def list_folder(folder: epath.PathLike) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the regular files in a folder, sorted.

    Hidden ones are left out, and pipes and devices, which would block whoever reads
    them. A link to nowhere counts as a file, so that reading it raises an error.
    """
    path = os.fspath(folder)
    if in_bucket(path):
        # epath would drop the slash that marks the folders in a bucket's listing.
        listed = tensorflow().io.gfile.listdir(path)
        kinds = {name.rstrip("/"): name.endswith("/") for name in listed}
    else:
        with os.scandir(path) as entries:
            kinds = {
                entry.name: entry.is_dir()
                for entry in entries
                if entry.is_dir() or entry.is_file() or not os.path.exists(entry)
            }
    names = sorted(
        name
        for name in kinds
        if name and not name.startswith(".") and name.lower() not in LITTER
    )
    return (
        [name for name in names if kinds[name]],
        [name for name in names if not kinds[name]],
    )


def walk(
    folder: Folder,
    leave_out: epath.PathLike | None = None,
    _parents: tuple[str, ...] = (),
) -> Iterator[tuple[Folder, list[str]]]:
    """Yields a folder and all folders below it, each with the names of its files.

    Links are followed, but not around in circles.

    Args:
      folder: where to begin.
      leave_out: a folder below it that is skipped.
    """
    folders, files = list_folder(folder)
    yield folder, files
    if not folders:
        return
    parents = (*_parents, os.path.realpath(folder))
    for name in folders:
        inner = folder / name
        target = os.path.realpath(inner)
        circle = any(pathlib.Path(parent).is_relative_to(target) for parent in parents)
        if circle or (leave_out and target == os.path.realpath(leave_out)):
            continue
        yield from walk(inner, leave_out, parents)


def files_below(
    folder: Folder, leave_out: epath.PathLike | None = None
) -> Iterator[Folder]:
    """Yields all files below a folder; see `walk`."""
    for inner, names in walk(folder, leave_out):
        yield from (inner / name for name in names)
