"""Configuration files: where they are found, and what is read from them."""

import importlib.util
import inspect
import pathlib
import traceback
import types
from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from vt_flax.errors import UserError

# Here configs/ of the checkout is linked to, so that wheels carry its files.
PACKAGE = pathlib.Path(__file__).parents[1]


def read_file(path: str) -> ConfigDict:
    """Runs a configuration file and returns what it gives, which may be partial.

    Args:
      path: `FILE.py`, or `FILE.py:ARG`; the file defines `get_config()`, or
        `get_config(arg)`. Where the current folder has no `configs/NAME.py`, the one
        that comes with the package is taken.

    Raises:
      UserError: for a missing or broken file, or an argument that it refuses, does not
        take or lacks.
    """
    name, _, argument = path.partition(":")
    file = _find(name)
    spec = importlib.util.spec_from_file_location("vt_flax_config", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config {name}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = _function(module, path)(*([argument] if argument else []))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config {path}: {_reason(error, spec.origin)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config {path}: get_config must return a ConfigDict")
    return config


def _reason(error: Exception, file: str | None) -> str:
    """Returns what is wrong with a configuration file, and in which line."""
    # A file refuses its argument by a ValueError, whose message needs no line.
    if isinstance(error, ValueError) and error.args:
        return str(error.args[0])
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    reason = f"{type(error).__name__}: {error}"
    if lines:
        reason += f" (line {lines[-1]})"
    if isinstance(error, RequiredValueError):
        reason += (
            "; a file cannot compute from or lock a required_placeholder: use "
            "placeholder, which must be given a value too"
        )
    elif isinstance(error, KeyError) and frames[-1].name == "get_ref":
        reason += "; a reference needs a key that the file has already set"
    return reason


def _function(module: types.ModuleType, path: str) -> Callable[..., ConfigDict]:
    """Returns the `get_config` of a file, which can be called as `path` asks for."""
    name, _, argument = path.partition(":")
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(
            f"--config {path}: must define get_config(), which returns a ConfigDict"
        )
    try:
        inspect.signature(function).bind(*([argument] if argument else []))
    except TypeError as error:
        told = (
            f"the file takes no argument: write {name}"
            if argument
            else f"the file needs an argument: write {name}:ARG"
        )
        raise UserError(f"--config {path}: {told}") from error
    return function


def _find(name: str) -> pathlib.Path:
    file = pathlib.Path(name)
    if file.is_file():
        return file
    brought = {
        found.relative_to(PACKAGE).as_posix(): found
        for found in sorted((PACKAGE / "configs").glob("*.py"))
    }
    if file.as_posix() not in brought:
        raise UserError(
            f"--config {name}: there is no such file, nor is it one of those that come "
            f"with vt_flax: {', '.join(brought)}"
        )
    return brought[file.as_posix()]
