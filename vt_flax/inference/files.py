"""Finds image files by name, by folder and by pattern."""

import glob
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

from vt_flax.data.image_files import files_below, is_image
from vt_flax.errors import UserError
from vt_flax.paths import typed_path

# A scheme, and one slash where pathlib has taken the other; on Windows C: is a drive.
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/|data:")


def find_images(
    names: Sequence[str | os.PathLike],
    leave_out: pathlib.Path | None = None,
    on_error: Callable[[OSError], None] | None = None,
) -> list[pathlib.Path]:
    """Returns the files that are meant, each once, in the order of the names.

    Args:
      names: as they were typed: of files, which are taken whatever they are called; of
        folders, whose images are taken, and those of the folders in them, without
        hidden ones; or patterns such as `shots/*.png` or `shots/**/left_*`. In text
        alone `~` is a home folder.
      leave_out: a folder that is left out inside of others.
      on_error: called for a folder that cannot be read.

    Raises:
      UserError: if a folder has no images, nothing matches a pattern, or a name is a
        URL.
    """
    found: dict[pathlib.Path, None] = {}
    for name in names:
        path = typed_path(name) if isinstance(name, str) else pathlib.Path(name)
        name = os.fspath(name)
        if not name:
            raise UserError("an empty name is no image: write a file's path")
        # pathlib's own raises an error for a name that is too long, or out of reach.
        if URL.match(name) and not os.path.lexists(path):
            raise UserError(
                f"{name[:200]}: a URL, and only files of this machine are opened: "
                "download it first, or in Python pass its content as bytes"
            )
        if os.path.isdir(path):
            some = list(_in_folder(path, leave_out, on_error))
            if not some:
                raise UserError(f"{path}: no images in this folder")
        elif glob.has_magic(name) and not os.path.lexists(path):
            some = list(_matching(str(path)))
            if not some:
                raise UserError(f"{name}: no image matches this pattern")
        else:
            # Reading it raises the error if it is missing.
            some = [path]
        found |= dict.fromkeys(some)
    return list(found)


def _in_folder(
    folder: pathlib.Path,
    leave_out: pathlib.Path | None,
    on_error: Callable[[OSError], None] | None,
) -> Iterator[pathlib.Path]:
    ignore = on_error or (lambda error: None)
    for file in files_below(folder, ignore, leave_out):
        if is_image(file.name):
            yield file


def _matching(pattern: str) -> Iterator[pathlib.Path]:
    # Who asks for an ending gets it; else what is no image is left out.
    ending = os.path.splitext(pattern)[1]
    asked = bool(ending) and not glob.has_magic(ending)
    for name in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isfile(name) and (asked or is_image(name)):
            yield pathlib.Path(name)
