"""The configuration: defaults, completed by a file and command-line overrides."""

import ast
import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags
from ml_collections.config_dict import placeholder

from vt_flax.errors import UserError, first_line
from vt_flax.models import model_options
from vt_flax.training.config_files import read_file
from vt_flax.training.config_rules import check
from vt_flax.training.config_schema import KEYS, Key, unknown_key

SECTIONS = sorted({name.partition(".")[0] for name in KEYS if "." in name})


def default_config() -> ConfigDict:
    """Returns every key with its default; of `model` only the name."""
    return _nested({name: copy.copy(key.default) for name, key in KEYS.items()})


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a configuration file and applies the command line's overrides.

    Args:
      path: `FILE.py`, or `FILE.py:ARG`; see `read_file`.
      overrides: arguments such as `--config.schedule.learning_rate=0.1`.

    Returns:
      The resolved configuration.

    Raises:
      UserError: for a missing or broken file, and see `resolve`.
    """
    return resolve(read_file(path), overrides)


def resolve(config: ConfigDict, overrides: Sequence[str] = ()) -> ConfigDict:
    """Completes a partial configuration, applies overrides, and checks the result.

    References follow the overrides: `config.get_ref("batch_size") * 2` is twice the
    batch size of the command line. `config` is not modified.

    Returns:
      A locked configuration with every key, without references and placeholders.

    Raises:
      UserError: for an unknown key, a wrong type, a placeholder without a value, or a
        value that `config_rules.check` rejects.
    """
    merged = _copy(config)
    keys = {**KEYS, **_model_keys(merged, overrides)}
    _add_defaults(merged, keys)
    _override(merged, overrides, keys)
    values = {name: _value(merged, name) for name in keys}
    if missing := [name for name, value in values.items() if value is None]:
        kinds = [f"config.{name} ({keys[name].kind})" for name in missing]
        raise UserError(
            f"no value for {', '.join(kinds)}: the file leaves it open; add "
            f"--config.{missing[0]}=VALUE"
        )
    values = {name: keys[name].convert(name, value) for name, value in values.items()}
    # These decided the other keys of `model`; an empty preset was the model's first.
    for name in {"model.name", "model.preset"} & keys.keys():
        if values[name] not in ("", keys[name].default):
            raise UserError(
                f"config.{name} {values[name]}: must be set by "
                f"--config.{name}={values[name]}, because other keys depend on it"
            )
        values[name] = keys[name].default
    resolved = _nested(values).lock()
    check(resolved)
    return resolved


def _copy(config: ConfigDict) -> ConfigDict:
    """Returns an unlocked copy, in which references stay shared, with all sections.

    Required placeholders become plain ones, because config_flags reads a value before
    it overrides it.
    """
    try:
        copied = ConfigDict(copy.deepcopy(config))
    except Exception as error:
        # The file's own operations on references may raise anything.
        raise UserError(f"configuration: {type(error).__name__}: {error}") from error
    sections = [copied[name] for name in SECTIONS if name in copied]
    for fields in (copied, *(x for x in sections if isinstance(x, ConfigDict))):
        for value in fields.values(preserve_field_references=True):
            if isinstance(value, FieldReference) and value.empty():
                value.set(placeholder(value.get_type()))
    copied.unlock()
    for name in SECTIONS:
        if name not in copied:
            copied[name] = ConfigDict()
        if not isinstance(copied[name], ConfigDict):
            raise unknown_key(name, KEYS)
    return copied


def _model_keys(config: ConfigDict, overrides: Sequence[str]) -> dict[str, Key]:
    """Returns the keys of `model`, which the model's name and preset decide.

    So these two are looked up in the overrides before any is applied.
    """
    chosen = {}
    for key, default in (("name", KEYS["model.name"].default), ("preset", "")):
        value = _last_override(overrides, f"model.{key}")
        if value is None:
            value = config.model.get(key)
        # A placeholder without a value is an error later.
        value = default if value is None else value
        chosen[key] = Key(default).convert(f"model.{key}", value)
    options = model_options(**chosen)
    options["stage_sizes"] = list(options["stage_sizes"])
    options["num_classes"] = 0  # Stands for the dataset's.
    defaults = {"name": chosen["name"], **options}
    return {f"model.{key}": Key(default) for key, default in defaults.items()}


def _add_defaults(config: ConfigDict, keys: Mapping[str, Key]) -> None:
    """Adds the keys that a file leaves out, and checks those that it has.

    Raises:
      UserError: for a key that does not exist, or a value of another type.
    """
    for section in ("", *SECTIONS):
        fields = config[section] if section else config
        for field, value in fields.items(preserve_field_references=True):
            name = f"{section}.{field}".lstrip(".")
            if name not in keys and name not in SECTIONS:
                raise unknown_key(name, keys)
            # Otherwise the error would have the value of an override.
            if isinstance(value, (int, float, str)):
                keys[name].convert(name, value)
    for name, key in keys.items():
        section, _, field = name.rpartition(".")
        fields = config[section] if section else config
        if field not in fields:
            fields[field] = copy.copy(key.default)
        elif isinstance(key.default, float) and fields.get_type(field) is int:
            # `get_ref("batch_size") * 0.1` has type int in ml_collections, so that no
            # float could override it.
            reference = fields.get_ref(field).to_float()
            del fields[field]
            fields[field] = reference


def _value(config: ConfigDict, name: str) -> Any:
    """Returns a value without references, of which a list may hold some too.

    Raises:
      UserError: if the file's operations on references raise anything.
    """
    try:
        value = config[name]
        if not isinstance(value, (list, tuple)):
            return value
        return [x.get() if isinstance(x, FieldReference) else x for x in value]
    except Exception as error:
        raise UserError(f"config.{name}: {type(error).__name__}: {error}") from error


def _nested(values: Mapping[str, Any]) -> ConfigDict:
    """Returns a configuration of values by name, such as `data.flip`."""
    config = ConfigDict({section: {} for section in SECTIONS})
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        (config[section] if section else config)[field] = value
    return config


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


def _override(
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


def _last_override(overrides: Sequence[str], name: str) -> str | None:
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
