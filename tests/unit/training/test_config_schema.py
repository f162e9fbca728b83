"""Ranges, choices and rules of the configuration's keys; each error names the key."""

import pytest
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.training.config import default_config, resolve
from vt_flax.training.config_rules import check_step


def resolved(changes):
    """Returns a configuration with changes by name, such as `data.flip`."""
    config = ConfigDict()
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[key] = value
    return resolve(config)


@pytest.mark.parametrize(
    "name, rejected, accepted, message",
    [
        ("seed", [2**31, -(2**31) - 1], [-2, 2**31 - 1], "at least -2147483648"),
        ("batch_size", [0, -8], [1], "at least 1"),
        ("data.crop_min_area", [0.0, 1.5], [1e-6, 1.0], "over 0 and at most 1"),
        ("data.std", [[0.5, 0.5, 0.0]], [[9, 9, 9]], "over 0"),
        ("segmentation.crop", [[512, -1]], [[1, 1]], "at least 1"),
        (
            "segmentation.max_class_share",
            [0.4, 1.5],
            [1.0],
            "at least 0.5 and at most 1",
        ),
        ("segmentation.hue", [-0.1, 0.6], [0.0, 0.5], "at least 0 and at most 0.5"),
        ("optimizer.momentum", [-0.1, 1.0], [0.0], "at least 0 and under 1"),
        ("optimizer.epsilon", [0.0], [1e-9], "over 0"),
        ("schedule.learning_rate", [-0.1], [0.5], "at least 0"),
        ("distillation.weight", [-0.1, 1.5], [0.0, 1.0], "at least 0 and at most 1"),
        ("checkpoint.keep", [0], [1], "at least 1"),
        ("parallel.heartbeat_timeout", [4.9], [5], "at least 5"),
        ("duration", ["0 steps"], ["1 step", "0.5 epochs"], "over 0"),
        ("log.every", ["0 %"], ["5%", "  3 epochs "], "over 0"),
    ],
)
def test_limits(name, rejected, accepted, message):
    for value in rejected:
        with pytest.raises(UserError) as error:
            resolved({name: value})
        assert str(error.value).startswith(
            f"config.{name} {value!r}: must be {message}"
        )
    for value in accepted:
        resolved({name: value})


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("data.train_crop", "centre", "'centre' is not known; did you mean center?"),
        ("optimizer.name", "adam", "'adam' is not known; did you mean adamw?"),
        ("data.on_error", "x", "'x' is not known; choose from raise, skip"),
        ("schedule.warmup", "5", "'5': write '1000 steps' or '90 epochs' or '5 %'"),
        ("schedule.warmup", "-5 steps", "'-5 steps': write '1000 steps'"),
        ("schedule.boundaries", ["1 %", "1e3 steps"], "write '1000 steps'"),
        ("duration", "5 %", "'5 %': write '1000 steps' or '90 epochs'"),
        ("data.mean", [0.5], "[0.5]: must have 3 items"),
        ("segmentation.canvas", [512.0, 512], "[0] must be int, not 512.0"),
        ("segmentation.eval_scales", [True], "[0] must be float, not True"),
        ("segmentation.scale_max", float("inf"), "inf: must be finite"),
        ("model.bn_epsilon", float("nan"), "nan: must be finite"),
        ("data.eval_resize", 31, "31: must be 0 or at least data.image_size"),
        (
            "schedule.learning_rate",
            0.001,
            "warmup_learning_rate 0.01: must be at most schedule.learning_rate",
        ),
    ],
)
def test_forms_and_rules(name, value, message):
    with pytest.raises(UserError) as error:
        resolved({name: value})
    assert str(error.value).startswith("config.") and message in str(error.value)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("segmentation.scale_max", 0.1, "scale_min 0.5: must be at most segmentation"),
        ("segmentation.eval_scales", [], "eval_scales []: must have at least one"),
        ("segmentation.short_side", 999, "does not fit the 512 x 512 pixels"),
        ("data.mixup", 0.2, "data.mixup 0.2: is for classification"),
        ("distillation.teacher", "runs/x", "distillation.teacher 'runs/x': is for"),
    ],
)
def test_rules_of_segmentation(name, value, message):
    assert resolved({name: value})
    with pytest.raises(UserError) as error:
        resolved({name: value, "model.name": "fpn_resnet18"})
    assert str(error.value).startswith("config.") and message in str(error.value)


@pytest.mark.parametrize(
    "changes, devices, message",
    [
        ({}, 3, "batch_size 256: must be a multiple of the 3 devices"),
        ({"grad_accum_steps": 64}, 8, "devices times config.grad_accum_steps 64"),
        ({"model.bn_group_size": 96}, 1, "bn_group_size 96: does not divide the 256"),
        ({"data.mixup": 0.2, "grad_accum_steps": 256}, 1, "even number of examples"),
        ({"model.dtype": "float16"}, 1, "train in bfloat16"),
    ],
)
def test_rules_of_a_step(changes, devices, message):
    config = resolved(changes)
    with pytest.raises(UserError) as error:
        check_step(config, devices)
    assert str(error.value).startswith("config.") and message in str(error.value)


def test_the_defaults_are_allowed():
    check_step(resolve(default_config()), 8)
    assert resolved({"model.name": "fpn_resnet18"})
    assert resolved({"schedule.learning_rate": 0.001, "schedule.warmup": "0 steps"})
