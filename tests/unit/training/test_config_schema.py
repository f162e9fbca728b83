"""Ranges, choices and rules of the configuration's keys, each a line that names it."""

import pytest
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.training.config import default_config, resolve
from vt_flax.training.config_rules import check_step


def resolved(**changes):
    """Returns a configuration with changes by name, `__` for the dot."""
    config = ConfigDict()
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[key] = value
    return resolve(config)


@pytest.mark.parametrize(
    "key, rejected, accepted, message",
    [
        ("seed", [2**31, -(2**31) - 1, 2**64], [-2, 2**31 - 1], "at least -2147483648"),
        ("batch_size", [0, -8], [1], "at least 1"),
        ("grad_accum_steps", [0], [1, 2], "at least 1"),
        ("data.image_size", [0], [1], "at least 1"),
        ("data.crop_min_area", [0.0, 1.5], [1e-6, 1.0], "over 0 and at most 1"),
        ("data.crop_padding", [-1], [0], "at least 0"),
        ("data.eval_resize", [-1], [0, 32], "at least 0"),
        ("data.randaugment_layers", [0], [1], "at least 1"),
        ("data.randaugment_magnitude", [-0.1, 11.0], [0.0, 10], "at least 0 and at m"),
        ("data.erasing", [-1.0, 1.1], [0.0, 1.0], "at least 0 and at most 1"),
        ("data.mixup", [-0.1], [0.0, 3.0], "at least 0"),
        ("data.cutmix", [-1.0], [0.0], "at least 0"),
        ("data.std", [[0.5, 0.5, 0.0]], [[9, 9, 9]], "over 0"),
        ("data.workers", [-1], [0], "at least 0"),
        ("data.readers", [0], [1], "at least 1"),
        ("data.prefetch", [-1], [0], "at least 0"),
        ("segmentation.canvas", [[0, 512]], [(1, 1)], "at least 1"),
        ("segmentation.crop", [[512, -1]], [[1, 1]], "at least 1"),
        ("segmentation.eval_canvas", [[-1, 0]], [[0, 9]], "at least 0"),
        ("segmentation.eval_size", [[0, -1]], [[0, 9]], "at least 0"),
        ("segmentation.short_side", [-1], [0], "at least 0"),
        ("segmentation.scale_min", [0.0, -1.0], [0.1], "over 0"),
        ("segmentation.max_class_share", [0.0, 1.5], [1.0], "over 0 and at most 1"),
        ("segmentation.brightness", [-0.1], [0.0, 2.0], "at least 0"),
        ("segmentation.contrast", [-0.1], [0.0], "at least 0"),
        ("segmentation.saturation", [-0.1], [0.0], "at least 0"),
        ("segmentation.hue", [-0.1, 0.6], [0.0, 0.5], "at least 0 and at most 0.5"),
        ("segmentation.eval_scales", [[1.0, 0.0]], [[0.5, 2]], "over 0"),
        ("optimizer.momentum", [-0.1, 1.0], [0.0], "at least 0 and under 1"),
        ("optimizer.decay", [-0.1, 1.0], [0.0], "at least 0 and under 1"),
        ("optimizer.epsilon", [0.0], [1e-9], "over 0"),
        ("optimizer.weight_decay", [-1e-5], [0.0], "at least 0"),
        ("optimizer.clip_norm", [-1.0], [0.0], "at least 0"),
        ("schedule.learning_rate", [-0.1], [0.5], "at least 0"),
        ("schedule.warmup_learning_rate", [-1.0], [0.0], "at least 0"),
        ("schedule.decay_factor", [0.0], [2.0], "over 0"),
        ("schedule.power", [0.0], [2.0], "over 0"),
        ("loss.label_smoothing", [-0.1, 1.0], [0.0, 0.9], "at least 0 and under 1"),
        ("distillation.weight", [-0.1, 1.5], [0.0, 1.0], "at least 0 and at most 1"),
        ("distillation.temperature", [0.0], [9.0], "over 0"),
        ("ema.decay", [-0.1, 1.0], [0.0], "at least 0 and under 1"),
        ("eval.batch_size", [-1], [0], "at least 0"),
        ("checkpoint.minutes", [-1.0], [0.0], "at least 0"),
        ("checkpoint.keep", [0], [1], "at least 1"),
        ("checkpoint.keep_best", [-1], [0], "at least 0"),
        ("parallel.cpu_devices", [-1], [0, 8], "at least 0"),
        ("parallel.fsdp", [0], [1], "at least 1"),
        ("parallel.heartbeat_timeout", [4.9], [5], "at least 5"),
        ("parallel.progress_timeout", [0.0], [5.0], "at least 5"),
        ("profile.start", [0], [1], "at least 1"),
        ("profile.steps", [-1], [0], "at least 0"),
        ("duration", ["0 steps"], ["1 step", "0.5 epochs"], "over 0"),
        ("schedule.decay_every", ["0 epochs", "0 %"], ["1 %"], "over 0"),
        ("eval.every", ["0 steps"], ["0.1 steps", "100 %"], "over 0"),
        ("checkpoint.every", ["0.0 epochs"], ["1 epoch"], "over 0"),
        ("log.every", ["0 %"], ["5%", "  3 epochs "], "over 0"),
    ],
)
def test_limits(key, rejected, accepted, message):
    name = key.replace(".", "__")
    for value in rejected:
        with pytest.raises(UserError) as error:
            resolved(**{name: value})
        assert str(error.value).startswith(f"config.{key} {value!r}: must be {message}")
    for value in accepted:
        resolved(**{name: value})


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("data.train_crop", "centre", "; did you mean center?"),
        ("data.augment", "autoagument", "; did you mean autoaugment or randaugment?"),
        ("data.on_error", "x", "; choose from raise, skip"),
        ("optimizer.name", "adam", "; did you mean adamw?"),
        ("schedule.name", "cosin", "; did you mean cosine?"),
    ],
)
def test_choices(key, value, message):
    with pytest.raises(UserError) as error:
        resolved(**{key.replace(".", "__"): value})
    assert str(error.value) == f"config.{key} {value!r} is not known{message}"


@pytest.mark.parametrize(
    "text",
    ["", "5", "epochs", "-5 steps", "5 minutes", "5 epochs 3", "1e3 steps", "1,5 %"],
)
@pytest.mark.parametrize(
    "key, units",
    [
        ("duration", "'1000 steps' or '90 epochs'"),
        ("schedule.warmup", "'1000 steps' or '90 epochs' or '5 %'"),
        ("schedule.boundaries", "'1000 steps' or '90 epochs' or '5 %'"),
    ],
)
def test_what_is_no_duration(key, units, text):
    value = ["1 %", text] if key.endswith("boundaries") else text
    with pytest.raises(UserError) as error:
        resolved(**{key.replace(".", "__"): value})
    assert str(error.value) == f"config.{key} {value!r}: write {units}"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"duration": "5 %"}, "duration '5 %': write '1000 steps' or '90 epochs'"),
        ({"data__mean": [0.5]}, "data.mean [0.5]: must have 3 items"),
        ({"segmentation__crop": [1, 2, 3]}, "segmentation.crop [1, 2, 3]: must have 2"),
        ({"segmentation__canvas": [512.0, 512]}, "canvas[0] must be int, not 512.0"),
        ({"data__std": ["a", "b", "c"]}, "data.std[0] must be float, not 'a'"),
        ({"segmentation__eval_scales": [True]}, "eval_scales[0] must be float, not T"),
        ({"schedule__boundaries": [30]}, "boundaries[0] must be str, not 30"),
        ({"segmentation__scale_max": float("inf")}, "scale_max inf: must be finite"),
        ({"distillation__weight": float("nan")}, "weight nan: must be finite"),
        ({"model__bn_epsilon": float("nan")}, "bn_epsilon nan: must be finite"),
        (
            {"data__eval_resize": 31},
            "eval_resize 31: must be 0 or at least data.image_",
        ),
        (
            {"schedule__learning_rate": 0.001},
            "warmup_learning_rate 0.01: must be at most schedule.learning_rate",
        ),
    ],
)
def test_forms_and_rules(changes, message):
    with pytest.raises(UserError) as error:
        resolved(**changes)
    assert str(error.value).startswith("config.") and message in str(error.value)


def test_a_warm_up_of_nothing_has_no_rate():
    assert resolved(schedule__learning_rate=0.001, schedule__warmup="0 steps")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"segmentation__scale_max": 0.1},
            "scale_min 0.5: must be at most segmentation",
        ),
        ({"segmentation__eval_scales": []}, "eval_scales []: must have at least one"),
        (
            {"segmentation__short_side": 99, "segmentation__eval_canvas": [40, 0]},
            "segmentation.short_side 99: does not fit the 40 x 512 pixels",
        ),
        (
            {"data__augment": "autoaugment"},
            "data.augment 'autoaugment': is for classif",
        ),
        ({"data__erasing": 0.5}, "data.erasing 0.5: is for classification"),
        ({"data__mixup": 0.2}, "data.mixup 0.2: is for classification"),
        ({"data__cutmix": 0.2}, "leave it at 0.0"),
        ({"data__label_feature": "x"}, "data.label_feature 'x': is for classification"),
        ({"distillation__teacher": "runs/x"}, "distillation.teacher 'runs/x': is for"),
    ],
)
def test_rules_of_segmentation(changes, message):
    assert resolved(**changes)
    with pytest.raises(UserError) as error:
        resolved(model__name="fpn_resnet18", **changes)
    assert str(error.value).startswith("config.") and message in str(error.value)


@pytest.mark.parametrize(
    "changes, devices, message",
    [
        ({}, 3, "batch_size 256: must be a multiple of the 3 devices"),
        ({"grad_accum_steps": 64}, 8, "devices times config.grad_accum_steps 64"),
        ({"model__bn_group_size": 96}, 1, "bn_group_size 96: does not divide the 256"),
        ({"data__mixup": 0.2, "grad_accum_steps": 256}, 1, "even number of examples"),
        ({"data__cutmix": 1.0, "batch_size": 7}, 1, "in a microbatch, not 7"),
        ({"model__dtype": "float16"}, 1, "train in bfloat16"),
    ],
)
def test_rules_of_a_step(changes, devices, message):
    config = resolved(**changes)
    with pytest.raises(UserError) as error:
        check_step(config, devices)
    assert str(error.value).startswith("config.") and message in str(error.value)


def test_the_defaults_are_allowed():
    check_step(resolve(default_config()), 8)
    assert resolved(model__name="fpn_resnet18")
