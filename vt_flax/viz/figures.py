"""Output files of pictures: their names, folders and formats."""

import os
import pathlib
from typing import Any

from vt_flax.errors import UserError
from vt_flax.paths import writing

SUFFIXES = (".png", ".svg")


def literal(text: str) -> str:
    """Escapes a text, so that matplotlib draws it unchanged.

    It would read mathematics between two `$`, and leave a label that begins with `_`
    out of a legend.
    """
    text = text.replace("$", r"\$")
    # A space of zero width.
    return f"\u200b{text}" if text.startswith("_") else text


def check_name(
    option: str, path: pathlib.Path, suffixes: tuple[str, ...] = SUFFIXES
) -> None:
    """Checks the suffix of a picture's name.

    Args:
      option: command-line option, for the message.
      path: file to be written.
      suffixes: allowed suffixes, in lower case.

    Raises:
      UserError: if it does not.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{option} {path}: the name must end in {' or '.join(suffixes)}"
        )


def check_place(option: str, path: pathlib.Path) -> None:
    """Checks that a file can be written, and makes its folder where it is missing.

    Raises:
      UserError: if it cannot.
    """
    with writing(f"{option} {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_folder, is_there = path.is_dir(), path.exists()
    if is_folder:
        raise UserError(f"{option} {path}: is a folder: name a file")
    if not os.access(path if is_there else path.parent, os.W_OK):
        raise UserError(f"{option} {path}: may not be written: name another file")


def save_figure(option: str, path: pathlib.Path, figure: Any) -> None:
    """Writes a figure of matplotlib; the folder is made where it is missing.

    Raises:
      UserError: for another name than `check_name` wants, or where the file cannot be
        written.
    """
    check_name(option, path)
    with writing(f"{option} {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
