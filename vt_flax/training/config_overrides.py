"""The command line's overrides of a configuration, `--config.k=v`."""

import ast
import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from vt_flax.errors import UserError, nearest


class _ListParser(flags.ArgumentParser):
    """Parses a list that is written `[1,2]`, `(1,2)` or `1,2`."""

    def parse(self, argument: Any) -> list:
        """Returns the list. The current value of a key, which is one, is parsed too."""
        try:
            value = (
                ast.literal_eval(argument) if isinstance(argument, str) else argument
            )
        except SyntaxError as error:
            raise ValueError(error) from error
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{argument} is no list")
        return list(value)


# ml_collections has a parser for tuples, but none for lists.
config_flags.register_flag_parser_for_type(list, _ListParser())


def override(
    config: ConfigDict, overrides: Sequence[str], keys: Collection[str]
) -> None:
    """Applies `--config.k=v` arguments with ml_collections' own flags.

    Args:
      config: a configuration with every key; it is modified.
      overrides: the arguments.
      keys: names of the keys, such as `data.flip`.

    Raises:
      UserError: for an unknown key, a value of the wrong type, or another argument.
    """
    if not overrides:
        return
    kinds = {}
    for argument in overrides:
        match = re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=.*)?", argument, re.S)
        if match:
            kinds[match[1]] = _kind(config, match[1], keys)
        # A value that follows its key may be negative: -1.
        elif re.match(r"--|-[a-zA-Z]", argument):
            raise _unexpected(argument)
    values = flags.FlagValues()
    argv = ["", *overrides]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=False, sys_argv=argv
        )
        rest = values(argv)[1:]
    except flags.IllegalFlagValueError as error:
        flag = str(error).removesuffix(f": {error.__context__}")
        key, _, text = flag.removeprefix("flag --config.").partition("=")
        if kinds[key] in (list, tuple):
            raise UserError(
                f"config.{key} must be a list, as in --config.{key}=[1,2]"
            ) from error
        raise UserError(
            f"config.{key} must be {kinds[key].__name__}, not {text!r}"
        ) from error
    except Exception as error:
        # config_flags reads all values, and the file's own operations on references may
        # raise anything.
        raise UserError(f"bad override: {error}") from error
    if rest:
        raise _unexpected(rest[0])


def last_override(overrides: Sequence[str], key: str) -> str | None:
    """Returns the last value that overrides a key of type str, or None."""
    found = None
    for i, argument in enumerate(overrides):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == f"config.{key}":
            found = value if equals else (*overrides, "")[i + 1]
    return found


def _kind(config: ConfigDict, key: str, keys: Collection[str]) -> type:
    """Returns the type of what an override sets.

    Args:
      config: the configuration that is overridden.
      key: a key, or an item of a list, such as `data.mean[0]`.
      keys: names of the keys that exist.
    """
    try:
        parts = config_path.split(key)
    except ValueError:
        parts = (key,)
    name = ".".join(itertools.takewhile(lambda part: isinstance(part, str), parts))
    if name not in keys:
        within = [other for other in keys if other.startswith(f"{name}.")]
        if within:
            raise UserError(
                f"config.{name} is a section: set its keys one by one, as in "
                f"--config.{within[0]}=VALUE"
            )
        raise UserError(
            f"config.{name} is no key of the configuration{nearest(name, keys)}"
        )
    try:
        return config_path.get_type(key, config)
    except Exception as error:
        raise UserError(f"config.{key}: {type(error).__name__}: {error}") from error


def _unexpected(argument: str) -> UserError:
    return UserError(
        f"unexpected argument {argument!r}; an override is --config.KEY=VALUE"
    )
