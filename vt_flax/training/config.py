"""The configuration: every key with its default, and how files and flags change it."""

import ast
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from vt_flax.errors import UserError, nearest
from vt_flax.models import list_models, model_options
from vt_flax.training.config_files import read_file

# What ml_collections reads values with that are not any text.
PARSERS = {
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    bool: flags.BooleanParser(),
}


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
                "train_crop": "pad",  # random_resized, pad or centre
                "crop_min_area": 0.08,  # random_resized: least share of the area
                "crop_padding": 4,  # pad: pixels on each side
                "eval_resize": 0,  # short side before the centre crop; 0: image_size
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

    Raises:
      UserError: for an unknown key, a wrong type, a number that is not finite, or
        options of another model than the one that the overrides ask for.
    """
    resolved = default_config()
    model = config.get("model", {})
    if isinstance(model, ConfigDict):
        model = model.to_dict()
    if not isinstance(model, dict):
        raise UserError("config.model must be a section")
    written = dict(model)
    for key, default in (("name", resolved.model.name), ("preset", "")):
        # These two decide which other keys there are.
        model[key] = _last_override(overrides, f"model.{key}", model.get(key, default))
        if not isinstance(model[key], str):
            raise UserError(f"config.model.{key} must be str, not {model[key]!r}")
    _check_written({"name": resolved.model.name, **written}, model)
    options = model_options(model["name"], model["preset"])
    if not model["preset"]:
        del model["preset"]
    if isinstance(options.get("stage_sizes"), tuple):
        options["stage_sizes"] = list(options["stage_sizes"])
    options["num_classes"] = 0  # the dataset's
    resolved.model = ConfigDict({"name": model["name"], **options})
    _merge(resolved, {**config.to_dict(), "model": model}, "")
    _apply(resolved, overrides)
    for key, value in _leaves(resolved):
        for number in value if isinstance(value, list) else [value]:
            # No comparison with a NaN holds, so that no limit would refuse it.
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"config.{key} {value}: must be finite")
    resolved.lock()
    return resolved


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
        # A workdir's has all of them.
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise UserError(
            f"config.model.name {name}: the configuration's file sets "
            f"{', '.join(strange[:3])}{more} for {own}, which {name} does not have: "
            f"write a file for {name}, or an argument of the file"
        )


def _merge(target: ConfigDict, source: dict[str, Any], prefix: str) -> None:
    for key, value in source.items():
        name = f"{prefix}{key}"
        if key not in target:
            raise UserError(
                f"config.{name} is no key of the configuration{nearest(key, target)}"
            )
        section = isinstance(target[key], ConfigDict)
        if section != isinstance(value, dict):
            raise UserError(
                f"config.{name} must {'' if section else 'not '}be a section"
            )
        if section:
            _merge(target[key], value, f"{name}.")
            continue
        if isinstance(target[key], float) and type(value) is int:
            value = float(value)
        if type(value) is not type(target[key]):
            raise UserError(
                f"config.{name} must be {type(target[key]).__name__}, not {value!r}"
            )
        target[key] = value


def _apply(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Applies `--config.k=v` arguments with ml_collections' own parser."""
    keys = dict(_leaves(config))
    values = flags.FlagValues()
    argv = [""]
    for i, argument in enumerate(overrides):
        match = re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", argument, re.S)
        if not match and argument.startswith("--"):
            raise UserError(
                f"unexpected argument {argument!r}; an override is --config.KEY=VALUE"
            )
        if match and match[1] not in keys:
            raise UserError(
                f"config.{match[1]} is no key of the configuration"
                f"{nearest(match[1], keys)}"
            )
        # ml_collections overrides tuples, but no lists.
        if match and isinstance(keys[match[1]], list):
            config.update_from_flattened_dict({match[1]: _list(match[1], match[2])})
            continue
        if match:
            default, text = keys[match[1]], match[2]
            # A switch's value is never the next argument.
            if text is None and not isinstance(default, bool):
                text = "".join(overrides[i + 1 : i + 2]) or None
            _check_text(match[1], text, default)
        argv.append(argument)
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        rest = values(argv)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"bad override: {error}") from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}")
    config.update(values["config"].value)


def _check_text(key: str, text: str | None, default: Any) -> None:
    """Checks that a value can be read, so that it is refused as a file's would be."""
    parser = PARSERS.get(type(default))
    if parser is None or text is None:
        return
    try:
        parser.parse(text)
    except ValueError as error:
        raise UserError(
            f"config.{key} must be {type(default).__name__}, not {text!r}"
        ) from error


def _list(key: str, text: str | None) -> list:
    try:
        value = ast.literal_eval(text or "")
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, (list, tuple)):
        raise UserError(f"config.{key} must be a list, as in --config.{key}=[1,2]")
    return list(value)


def _leaves(config: ConfigDict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _last_override(overrides: Sequence[str], key: str, default: str) -> str:
    for i, argument in enumerate(overrides):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == f"config.{key}":
            default = value if equals else (*overrides, "")[i + 1]
    return default
