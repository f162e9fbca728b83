"""The configuration: every key with its default, and how files and flags change it."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference, FrozenConfigDict
from ml_collections.config_dict import placeholder

from vt_flax.errors import UserError, first_names, nearest
from vt_flax.models import list_models, model_options
from vt_flax.models.registry import is_like
from vt_flax.training.config_files import read_file
from vt_flax.training.config_overrides import last_override, override


def default_config() -> ConfigDict:
    """Returns every key outside `model`, whose keys are the options of the model.

    Durations are strings: `"400 epochs"`, `"1000 steps"` or, but for the whole run's,
    `"5 %"` of it.
    """
    return ConfigDict(
        {
            # Of the initial parameters, the order of the examples and all noise.
            "seed": 0,
            "batch_size": 256,  # examples in a step, over all devices
            "duration": "90 epochs",  # of the whole training, in steps or epochs
            # Parts of a batch that are computed one after the other, for less memory.
            "accumulation": 1,
            # A workdir, or a checkpoint's folder, whose weights a new run starts from.
            "init_from": "",
            "model": {
                # Its other keys are the options of the model.
                "name": "vt_resnet18",
            },
            "data": {
                "name": "digits",  # a TFDS dataset, or folder:PATH
                "data_dir": "",  # of TFDS datasets; empty: TFDS's default
                # Feature of the TFDS dataset with the images; empty: its default.
                "image_feature": "",
                # Likewise with the class labels, such as coarse_label of cifar100.
                "label_feature": "",
                "train_split": "train",  # as TFDS has it: train[:90%], train+test, all
                "eval_split": "test",  # likewise
                "image_size": 32,  # side in pixels
                "train_crop": "pad",  # random_resized, pad or center
                "crop_min_area": 0.08,  # random_resized: least share of the area
                "crop_padding": 4,  # pad: pixels on each side
                "eval_resize": 0,  # short side before the center crop; 0: image_size
                "flip": True,  # mirror half of the images
                "augment": "none",  # none, autoaugment (ImageNet's) or randaugment
                "randaugment_layers": 2,  # operations, one after the other
                "randaugment_magnitude": 9.0,  # of 10, the strongest
                # On TPUs, as one kernel; False for XLA's own operations, very slow.
                "augment_kernel": True,
                "erasing": 0.0,  # share of the images that lose a rectangle
                "mixup": 0.0,  # both parameters of the Beta distribution; 0: off
                "cutmix": 0.0,  # the same; with both on each example takes one
                "mean": [
                    0.485,
                    0.456,
                    0.406,
                ],  # of the channels, from 0 to 1: subtracted
                "std": [0.229, 0.224, 0.225],  # of the channels: divided by
                "on_error": "raise",  # a bad example: raise, or skip (and count it)
                "workers": 0,  # threads that decode; 0: one for each core
                "readers": 2,  # reads under way at once; more for a bucket
                "prefetch": 2,  # batches ahead on the host; two more on the devices
                "cache": False,  # keep the encoded training split in memory
                "shuffle_buffer": 16384,  # examples; of data without random access
            },
            # Read for models that give a class to every pixel; of `data` only the keys
            # of datasets and reading, `flip`, `mean` and `std` are, then.
            "segmentation": {
                "mask_feature": "",  # of the TFDS dataset; empty: the only one
                # Stored value i is class label_map[i], or 255: none. Empty: as known.
                "label_map": [],
                # Height and width of the arrays in which the host hands over examples.
                # Larger ones are shrunk in training, and refused in evaluation.
                "canvas": [512, 512],
                "eval_canvas": [0, 0],  # the same in evaluation; 0: the canvas
                "crop": [512, 512],  # height and width that is trained on
                "short_side": 0,  # what it is brought to first; 0: an example's own
                "scale_min": 0.5,  # times that, drawn uniformly: the smallest factor
                "scale_max": 2.0,  # the largest of these factors
                "max_class_share": 0.75,  # of a crop's labelled pixels; 1: any
                "brightness": 0.0,  # a factor from 1 - v to 1 + v; 0: off
                "contrast": 0.0,  # the same
                "saturation": 0.0,  # the same
                "hue": 0.0,  # turned by at most this share of the colour circle
                "eval_size": [0, 0],  # of the network's input; 0: eval_canvas
                "eval_scales": [1.0],  # over which predictions are averaged
                "eval_flip": False,  # over mirrored images as well
            },
            "optimizer": {
                "name": "rmsprop_tf",  # rmsprop_tf, rmsprop_torch, sgd or adamw
                "momentum": 0.9,  # adamw: of the gradients' average
                "nesterov": False,  # but for adamw
                # Of the squared gradients' average, but for sgd; adamw wants 0.999.
                "decay": 0.9,
                "epsilon": 1e-3,  # beside that average; adamw wants 1e-8
                "weight_decay": 1e-5,  # L2; a step of its own in adamw
                "clip_norm": 0.0,  # of the whole gradient; 0: no clipping
            },
            "schedule": {
                "name": "exponential",  # exponential, step, cosine, poly or constant
                "rate": 0.16,  # after the warm-up
                "warmup": "5 epochs",  # in which the rate rises linearly
                "warmup_rate": 0.01,  # at step 0
                "decay_factor": 0.9875,  # exponential: every decay_every; step: at each
                "decay_every": "1 epochs",  # exponential: from the warm-up's end
                "staircase": True,  # exponential: at once, or smoothly
                # step: counted from the start of the run.
                "boundaries": ["30 epochs", "60 epochs", "80 epochs"],
                "power": 0.9,  # poly: of the share of the run that is left
            },
            "loss": {
                "label_smoothing": 0.1,  # the share that all classes have alike
            },
            # Of classifiers: what a trained network says of the same images is learnt.
            "distillation": {
                "teacher": "",  # its workdir, or a checkpoint's folder; empty: off
                "weight": 0.8,  # of the teacher's loss; the rest is the labels'
                "temperature": 1.0,  # by which both networks' logits are divided
            },
            "ema": {
                "decay": 0.99985,  # a step; 0: no averages are kept
                "ramp": True,  # at step t at most (1 + t) / (10 + t)
            },
            "eval": {
                "every": "1 epochs",  # and at the end
                "batch_size": 0,  # 0: the training batch size
            },
            "checkpoint": {
                "every": "1 epochs",  # and at the end
                "minutes": 15.0,  # at the latest after so many; 0: never for that
                "keep": 2,  # the newest
                "keep_best": 1,  # by top-1 or mIoU, of the averages if kept
            },
            "log": {
                "every": "50 steps",  # of the progress, and of metrics in training
                "tensorboard": True,  # write its files too
            },
            "parallel": {
                # Devices that CPUs count as, in each process; 0: as JAX has it, one.
                # Two cores compute halves of a batch faster than each operation both.
                "cpu_devices": 0,
                "fsdp": 1,  # devices that parameters and optimizer are spread over
                "silence_seconds": 30.0,  # then a process counts as dead
                "stall_seconds": 900.0,  # then one that gets no further does
            },
            # A trace of some steps, for TensorBoard or xprof, in the workdir.
            "profile": {
                "start": 10,  # the first step
                "steps": 0,  # how many; 0: none
            },
            # Of compiled programs, by machine; empty: none. The environment variable
            # JAX_COMPILATION_CACHE_DIR goes before.
            "compilation_cache": "~/.cache/vt_flax/jax",
        }
    )


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a configuration file and applies the command line's overrides.

    Args:
      path: `FILE.py`, or `FILE.py:ARG`; see `read_file`.
      overrides: arguments as in `--config.schedule.rate=0.1`.

    Returns:
      The resolved configuration: every key is there, and locked.

    Raises:
      UserError: for a missing or broken file, an unknown key, or a wrong type.
    """
    return resolve(read_file(path), overrides)


def resolve(config: ConfigDict, overrides: Sequence[str] = ()) -> ConfigDict:
    """Completes a partial configuration with defaults, then applies overrides.

    References follow the overrides: `config.get_ref("batch_size") * 2` is twice the
    batch size that the command line asks for. `config` is not modified.

    Returns:
      A locked configuration of plain values, without references and placeholders.

    Raises:
      UserError: for an unknown key, a wrong type, a number that is not finite, a
        placeholder without a value, or options of another model than the one that the
        overrides ask for.
    """
    sections = default_config()
    sections.model = ConfigDict(_model_options(config, overrides, sections.model.name))
    defaults = dict(_leaves(sections))
    completed, placeholders = _complete(config, sections, defaults)
    override(completed, overrides, defaults)
    if missing := [name for name in placeholders if completed[name] is None]:
        raise _no_value({name: defaults[name] for name in missing})
    values = {
        name: _typed(name, _computed(completed, name), default)
        for name, default in defaults.items()
    }
    for key in ("name", "preset"):
        value, used = (v.get(f"model.{key}", "") for v in (values, defaults))
        if value not in ("", used):
            raise UserError(
                f"config.model.{key} {value}: the options are those of {used}; set it "
                f"by --config.model.{key}={value}"
            )
    if "model.preset" in values:
        # An empty preset is the model's first.
        values["model.preset"] = defaults["model.preset"]
    return ConfigDict(_nested(values).to_dict()).lock()


def _model_options(
    config: ConfigDict, overrides: Sequence[str], default_name: str
) -> dict[str, Any]:
    """Returns the keys of `model` with their defaults.

    The name and the preset decide which keys there are, so they are looked up in the
    overrides before these are applied.
    """
    model = _known(config, "model") if "model" in config else {}
    if not isinstance(model, (ConfigDict, dict)):
        raise UserError("config.model must be a section")
    written = {"name": default_name, **{key: _known(model, key) for key in model}}
    asked = {}
    for key in ("name", "preset"):
        value = last_override(overrides, f"model.{key}")
        asked[key] = written.get(key, "") if value is None else value
        if asked[key] is None:
            raise _no_value({f"model.{key}": ""})
        if not isinstance(asked[key], str):
            raise UserError(f"config.model.{key} must be str, not {asked[key]!r}")
    _check_written(written, asked)
    options = model_options(asked["name"], asked["preset"])
    options["stage_sizes"] = list(options["stage_sizes"])
    options["num_classes"] = 0  # the dataset's
    return {"name": asked["name"], **options}


def _check_written(written: dict[str, Any], model: dict[str, Any]) -> None:
    """Checks that a model that was asked for has what a file says of its own.

    Args:
      written: the section `model` of the file, with the name that it stands for.
      model: the same with the name and the preset that the overrides ask for.
    """
    name, own = model["name"], written["name"]
    # What belongs to neither model is misspelt, which is another matter.
    if name == own or not {name, own} <= {*list_models()}:
        return
    strange = [
        f"model.{key}"
        for key in written
        if key in model_options(own) and key not in model_options(name)
    ]
    if model["preset"] != written.get("preset", ""):
        strange = [key for key in strange if key != "model.preset"]
    if strange:
        raise UserError(
            f"config.model.name {name}: the configuration's file sets "
            f"{first_names(strange)} for {own}, which {name} does not have: "
            f"write a file for {name}, or an argument of the file"
        )


def _complete(
    config: ConfigDict, sections: ConfigDict, defaults: Mapping[str, Any]
) -> tuple[ConfigDict, list[str]]:
    """Adds the defaults to a file's configuration and keeps its references.

    Args:
      config: the file's.
      sections: the default configuration.
      defaults: its values by name, such as `data.flip`.

    Returns:
      A configuration with every key, and the names of its placeholders.
    """
    references = dict(_references(config, sections, "", {}))
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
    defaults: ConfigDict,
    prefix: str,
    made: dict[tuple[int, str], FieldReference],
) -> Iterator[tuple[str, FieldReference]]:
    """Checks a file's keys and values, and yields each value's name and reference.

    Args:
      config: a section of the file.
      defaults: the same section by default.
      prefix: of its keys, such as `data.`.
      made: references to plain values, by section and key: if two keys of a file hold
        one section, an override of either changes both, as in ml_collections.
    """
    fields = config
    if isinstance(config, FrozenConfigDict):
        fields = config.as_configdict()
    if isinstance(fields, ConfigDict):
        fields = dict(fields.items(preserve_field_references=True))
    for key, field in fields.items():
        name, value = f"{prefix}{key}", _known(fields, key)
        if name == "model.preset" and value == "":
            continue
        if key not in defaults:
            raise UserError(
                f"config.{name} is no key of the configuration"
                f"{nearest(str(key), defaults)}"
            )
        default = defaults[key]
        section = isinstance(default, ConfigDict)
        if section != isinstance(value, (ConfigDict, dict)):
            raise UserError(
                f"config.{name} must {'' if section else 'not '}be a section"
            )
        if section:
            yield from _references(value, default, f"{name}.", made)
            continue
        if isinstance(field, FieldReference) and field.empty():
            _check_placeholder(name, field.get_type(), default)
        elif value is not None or field is None:
            _typed(name, value, default)
        if not isinstance(field, FieldReference):
            field = made.setdefault((id(config), key), FieldReference(field))
        yield name, field


def _check_placeholder(name: str, kind: Any, default: Any) -> None:
    """Checks that a placeholder takes values of a default's type."""
    accepted = {float: (float, int), list: (list, tuple)}
    if kind not in (object, *accepted.get(type(default), (type(default),))):
        raise UserError(
            f"config.{name} must be {type(default).__name__}, not placeholder({kind})"
        )


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


def _typed(name: str, value: Any, default: Any) -> Any:
    """Returns a value as plain Python of its default's type.

    An int is accepted for a float, and a tuple for a list.

    Raises:
      UserError: for a value of another type, or a number that is not finite.
    """
    kind = type(default)
    if not is_like(value, default):
        raise UserError(f"config.{name} must be {kind.__name__}, not {value!r}")
    if kind is list:
        # Only label_map, a list of int, is empty by default.
        item = default[0] if default else 0
        if not all(is_like(x, item) for x in value):
            shown = [x.to_dict() if isinstance(x, ConfigDict) else x for x in value]
            raise UserError(
                f"config.{name} must be a list of {type(item).__name__}, not {shown!r}"
            )
        value = [type(item)(x) for x in value]
    else:
        value = kind(value)
    for number in value if kind is list else [value]:
        # No comparison with a NaN holds, so that no limit would refuse it.
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"config.{name} {value}: must be finite")
    return value


def _no_value(defaults: Mapping[str, Any]) -> UserError:
    """Returns the error of placeholders without a value, with defaults by name."""
    keys = ", ".join(
        f"config.{name} ({type(default).__name__})"
        for name, default in defaults.items()
    )
    return UserError(
        f"no value for {keys}: the configuration file has a placeholder; add "
        f"--config.{next(iter(defaults))}=VALUE"
    )


def _nested(values: Mapping[str, Any]) -> ConfigDict:
    """Returns the configuration that has some values, by name; see `_leaves`."""
    # To find dicts that it could convert, ConfigDict would read references.
    config = ConfigDict(convert_dict=False)
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict(convert_dict=False)
        (config[section] if section else config)[key] = value
    return config


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields names, such as `data.flip`, and values."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
