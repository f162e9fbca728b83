"""Output files of pictures: their names, folders and formats."""

import pathlib
import tempfile
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
    """Checks the suffix of a file to be written.

    Args:
      option: command-line option, for the message.
      path: file to be written.
      suffixes: allowed suffixes, in lower case.

    Raises:
      UserError: if the name has none of them.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{option} {path}: the name must end in {' or '.join(suffixes)}"
        )


def check_place(option: str, path: pathlib.Path) -> None:
    """Checks that a file can be written, and makes its folder; the file is untouched.

    Raises:
      UserError: if it cannot.
    """
    with writing(f"{option} {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()


def save_figure(option: str, path: pathlib.Path, figure: Any) -> None:
    """Writes a figure of matplotlib; the folder is made where it is missing.

    Raises:
      UserError: for a wrong suffix, or where the file cannot be written.
    """
    check_name(option, path)
    with writing(f"{option} {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
