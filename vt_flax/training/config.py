"""The configuration: defaults, completed by a file and command-line overrides."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference, FrozenConfigDict
from ml_collections.config_dict import placeholder

from vt_flax.errors import UserError
from vt_flax.models import model_options
from vt_flax.training.config_files import read_file
from vt_flax.training.config_overrides import last_override, override, unknown_key
from vt_flax.training.config_rules import check
from vt_flax.training.config_schema import KEYS, Key


def default_config() -> ConfigDict:
    """Returns every key with its default; of `model` only the name."""
    defaults = {name: key.default for name, key in KEYS.items()}
    return ConfigDict(copy.deepcopy(_nested(defaults).to_dict()))


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
    keys = {**KEYS, **_model_keys(config, overrides)}
    merged, placeholders = _merge(config, keys)
    override(merged, overrides, keys)
    if missing := [name for name in placeholders if merged[name] is None]:
        raise UserError(
            f"no value for {', '.join(f'config.{n} ({keys[n].kind})' for n in missing)}"
            f": the file has a placeholder; add --config.{missing[0]}=VALUE"
        )
    values = {
        name: key.convert(name, _computed(merged, name)) for name, key in keys.items()
    }
    for name in {"model.name", "model.preset"}.intersection(keys):
        # A reference, or another spelling of the key, may have changed it after all.
        if values[name] not in ("", keys[name].default):
            raise UserError(
                f"config.{name} {values[name]}: must be set by "
                f"--config.{name}={values[name]}, because other keys depend on it"
            )
        # An empty preset stands for the model's first.
        values[name] = keys[name].default
    resolved = ConfigDict(_nested(values).to_dict()).lock()
    check(resolved)
    return resolved


def _model_keys(config: ConfigDict, overrides: Sequence[str]) -> dict[str, Key]:
    """Returns the keys of `model`, which the model's name and preset decide.

    So these two are looked up in the overrides before any is applied.
    """
    section = _known(config, "model") if "model" in config else {}
    if not isinstance(section, (ConfigDict, dict)):
        raise UserError("config.model must be a section")
    chosen = {}
    for key, default in (("name", KEYS["model.name"].default), ("preset", "")):
        value = last_override(overrides, f"model.{key}")
        if value is None and key in section:
            value = _known(section, key)
        # A placeholder without a value is an error later.
        value = default if value is None else value
        chosen[key] = Key(default).convert(f"model.{key}", value)
    options = model_options(**chosen)
    options["stage_sizes"] = list(options["stage_sizes"])
    options["num_classes"] = 0  # Stands for the dataset's.
    defaults = {"name": chosen["name"], **options}
    return {f"model.{key}": Key(default) for key, default in defaults.items()}


def _merge(config: ConfigDict, keys: Mapping[str, Key]) -> tuple[ConfigDict, list[str]]:
    """Returns a file's configuration with defaults added, and its placeholders' names.

    The file's values are references in it, which stay shared between keys.
    """
    defaults = {name: key.default for name, key in keys.items()}
    references = dict(_references(config, keys, "", {}))
    # Copied together, so that references between them survive.
    values = copy.deepcopy({**defaults, **references})
    placeholders = [name for name in references if values[name].empty()]
    for name in placeholders:
        # config_flags reads a value before it overrides it, which a required
        # placeholder does not allow.
        values[name].set(placeholder(values[name].get_type()))
    floats: dict[int, FieldReference] = {}
    for name in references:
        if isinstance(defaults[name], float) and values[name].get_type() is int:
            # `get_ref("batch_size") * 0.1` has type int in ml_collections, so that no
            # float could override it. Keys that share a reference still share one.
            shared = floats.setdefault(id(values[name]), values[name].to_float())
            values[name] = shared
    return _nested(values), placeholders


def _references(
    config: ConfigDict | dict[str, Any],
    keys: Mapping[str, Key],
    prefix: str,
    made: dict[tuple[int, str], FieldReference],
) -> Iterator[tuple[str, FieldReference]]:
    """Checks a file's keys and types, and yields each value's name and reference.

    Args:
      config: the file's configuration, or a section of it.
      keys: every key that there is.
      prefix: of the section's keys, such as `data.`.
      made: references to plain values, by section and key: if two keys of a file hold
        one section, an override of either changes both, as in ml_collections.
    """
    sections = {name.rpartition(".")[0] for name in keys}
    fields = config
    if isinstance(config, FrozenConfigDict):
        fields = config.as_configdict()
    if isinstance(fields, ConfigDict):
        fields = dict(fields.items(preserve_field_references=True))
    for key, field in fields.items():
        name, value = f"{prefix}{key}", _known(fields, key)
        is_section = name in sections
        if name == "model.preset" and value == "":
            continue
        if not is_section and name not in keys:
            raise unknown_key(name, keys)
        if is_section != isinstance(value, (ConfigDict, dict)):
            raise UserError(
                f"config.{name} must {'' if is_section else 'not '}be a section"
            )
        if is_section:
            yield from _references(value, keys, f"{name}.", made)
            continue
        if value is not None or field is None:
            keys[name].convert(name, value)
        if not isinstance(field, FieldReference):
            field = made.setdefault((id(config), key), FieldReference(field))
        yield name, field


def _read(fields: Mapping[str, Any] | ConfigDict, key: str) -> Any:
    """Returns the value of a key, without the references that a list may hold."""
    value = _dereferenced(fields[key])
    if isinstance(value, (list, tuple)):
        return [_dereferenced(item) for item in value]
    return value


def _dereferenced(value: Any) -> Any:
    return value.get() if isinstance(value, FieldReference) else value


def _known(fields: Mapping[str, Any] | ConfigDict, key: str) -> Any:
    """Returns a value of a file, or None if it depends on an empty placeholder."""
    try:
        value = _read(fields, key)
    except Exception:
        # A required placeholder raises, and so does an operation on None.
        return None
    waits = isinstance(value, list) and any(item is None for item in value)
    return None if waits else value


def _computed(config: ConfigDict, name: str) -> Any:
    """Returns a value of a complete configuration.

    Raises:
      UserError: if the file's operations on references raise anything.
    """
    try:
        return _read(config, name)
    except Exception as error:
        raise UserError(f"config.{name}: {type(error).__name__}: {error}") from error


def _nested(values: Mapping[str, Any]) -> ConfigDict:
    """Returns a configuration of values by name, such as `data.flip`."""
    # To find dicts that it could convert, ConfigDict would read references.
    config = ConfigDict(convert_dict=False)
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict(convert_dict=False)
        (config[section] if section else config)[key] = value
    return config
