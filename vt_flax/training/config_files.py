"""Configuration files: where they are found, and what is read from them."""

import pathlib
import runpy
import traceback

from ml_collections import ConfigDict

from vt_flax.errors import UserError

# Here configs/ of the checkout is linked to, so that wheels carry its files.
PACKAGE = pathlib.Path(__file__).parents[1]


def read_file(path: str) -> ConfigDict:
    """Runs a configuration file and returns its configuration, which may be partial.

    Args:
      path: `FILE.py`, or `FILE.py:ARG`; the file defines `get_config()`, or
        `get_config(arg)`. Where the current folder has no `configs/NAME.py`, the one
        that comes with the package is taken.

    Raises:
      UserError: for a missing or broken file, or an argument that it rejects.
    """
    name, _, argument = path.partition(":")
    file = str(_find(name))
    config = None
    try:
        if get_config := runpy.run_path(file).get("get_config"):
            config = get_config(*([argument] if argument else []))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config {path}: {_reason(error, file)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config {path}: must define get_config(), which returns a ConfigDict"
        )
    return config


def _reason(error: Exception, file: str) -> str:
    """Returns what is wrong with a configuration file, and in which line."""
    # A file rejects its argument by a ValueError, whose message needs no line.
    if isinstance(error, ValueError) and error.args:
        return str(error.args[0])
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f" (line {frame.lineno})" for frame in frames if frame.filename == file]
    return f"{type(error).__name__}: {error}{(lines or [''])[-1]}"


def _find(name: str) -> pathlib.Path:
    file = pathlib.Path(name)
    if file.is_file():
        return file
    shipped = sorted((PACKAGE / "configs").glob("*.py"))
    if PACKAGE / file not in shipped:
        names = ", ".join(path.relative_to(PACKAGE).as_posix() for path in shipped)
        raise UserError(
            f"--config {name}: there is no such file, nor is it one of those that come "
            f"with vt_flax: {names}"
        )
    return PACKAGE / file
