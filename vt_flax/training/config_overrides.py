"""The command line's overrides of a configuration, `--config.KEY=VALUE`."""

import ast
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from vt_flax.errors import UserError, first_line, nearest
from vt_flax.training.config_schema import Key


class _ListParser(flags.ArgumentParser):
    """Parses a list that is written `[1,2]`, `(1,2)` or `1,2`."""

    def parse(self, argument: Any) -> list:
        """Returns the list. The current value of a key, which is one, is parsed too."""
        value = argument
        if isinstance(argument, str):
            try:
                value = ast.literal_eval(argument)
            except (SyntaxError, ValueError):
                value = None
        if not isinstance(value, (list, tuple)):
            raise ValueError("not a list, such as [1,2]")
        return list(value)


# ml_collections has a parser for tuples, but none for lists.
config_flags.register_flag_parser_for_type(list, _ListParser())


def override(
    config: ConfigDict, overrides: Sequence[str], keys: Mapping[str, Key]
) -> None:
    """Applies `--config.KEY=VALUE` arguments with ml_collections' own flags.

    Args:
      config: a configuration with every key; it is modified.
      overrides: the arguments.
      keys: every key by name, such as `data.flip`.

    Raises:
      UserError: for an unknown key, a value of the wrong type, or another argument.
    """
    if not overrides:
        return
    for argument in overrides:
        match = re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=.*)?", argument, re.S)
        if match:
            _check_key(config, match[1], keys)
        # A value that follows its key may be negative, such as -1.
        elif re.match(r"--|-[a-zA-Z]", argument):
            raise _unexpected(argument)
    values = flags.FlagValues()
    argv = ["", *overrides]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=False, sys_argv=argv
        )
        rest = values(argv)[1:]
    except Exception as error:
        # config_flags reads all values, and the file's own operations on references may
        # raise anything.
        raise UserError(f"bad override: {first_line(error)}") from error
    if rest:
        raise _unexpected(rest[0])


def last_override(overrides: Sequence[str], name: str) -> str | None:
    """Returns the last value that overrides a key of type str, or None."""
    found = None
    for i, argument in enumerate(overrides):
        flag, equals, value = argument.lstrip("-").partition("=")
        if flag == f"config.{name}":
            found = value if equals else (*overrides, "")[i + 1]
    return found


def unknown_key(name: str, keys: Mapping[str, Key]) -> UserError:
    """Returns the error of a key that does not exist."""
    model = f" of {keys['model.name'].default}" if name.startswith("model.") else ""
    return UserError(
        f"config.{name} is no key of the configuration{model}{nearest(name, keys)}"
    )


def _check_key(config: ConfigDict, key: str, keys: Mapping[str, Key]) -> None:
    """Checks that a key, or an item of a list, such as `data.mean[0]`, exists."""
    try:
        parts = config_path.split(key)
    except ValueError:
        parts = (key,)
    name = ".".join(itertools.takewhile(lambda part: isinstance(part, str), parts))
    if name in keys:
        try:
            config_path.get_type(key, config)
        except Exception as error:
            raise UserError(f"config.{key}: {type(error).__name__}: {error}") from error
        return
    if within := [other for other in keys if other.startswith(f"{name}.")]:
        raise UserError(
            f"config.{name} is a section: set its keys one by one, as in "
            f"--config.{within[0]}=VALUE"
        )
    raise unknown_key(name, keys)


def _unexpected(argument: str) -> UserError:
    return UserError(
        f"unexpected argument {argument!r}; an override is --config.KEY=VALUE"
    )
