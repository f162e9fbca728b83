"""The command line's overrides of a configuration, `--config.KEY=VALUE`."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from vt_flax.errors import UserError, first_line
from vt_flax.training.config_schema import Key, unknown_key


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
    for argument in overrides:
        match = re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=.*)?", argument, re.S)
        if match:
            # An item of a list, such as `data.mean[0]`, is overridden by its index.
            name = re.sub(r"\[\d+\]$", "", match[1])
            if name not in keys:
                raise unknown_key(name, keys)
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
    except flags.Error as error:
        raise UserError(f"bad override: {first_line(error)}") from error
    except Exception as error:
        # An item that a list lacks, or what the file computes from an override.
        given = " ".join(overrides)
        raise UserError(f"bad override in {given}: {first_line(error)}") from error
    if rest:
        raise _unexpected(rest[0])


def last_override(overrides: Sequence[str], name: str) -> str | None:
    """Returns the last value that overrides a key of type str, or None."""
    last = None
    for i, argument in enumerate(overrides):
        flag, equals, value = argument.lstrip("-").partition("=")
        if flag == f"config.{name}":
            last = value if equals else "".join(overrides[i + 1 : i + 2])
    return last


def _unexpected(argument: str) -> UserError:
    return UserError(
        f"unexpected argument {argument!r}; an override is --config.KEY=VALUE"
    )
