"""Checks of a complete configuration: each key's range, and rules between keys."""

from typing import Any

from ml_collections import ConfigDict

from vt_flax.data.augment.scaled import base_size, eval_canvas
from vt_flax.errors import UserError
from vt_flax.models import model_task
from vt_flax.training.config_schema import KEYS
from vt_flax.training.durations import parse

CLASSIFICATION_ONLY = (
    "data.augment",
    "data.erasing",
    "data.mixup",
    "data.cutmix",
    "data.label_feature",
    "distillation.teacher",
)


def check(config: ConfigDict) -> None:
    """Checks everything that needs neither the data nor the devices.

    Raises:
      UserError: for the first value that is not allowed.
    """
    for name, key in KEYS.items():
        key.check(name, config[name])
    data, schedule = config.data, config.schedule
    _require(
        not 0 < data.eval_resize < data.image_size,
        f"data.eval_resize {data.eval_resize}: must be 0 or at least data.image_size "
        f"{data.image_size}, for the center crop to fit",
    )
    warmup, _ = parse(schedule.warmup)
    _require(
        not warmup or schedule.warmup_learning_rate <= schedule.learning_rate,
        f"schedule.warmup_learning_rate {schedule.warmup_learning_rate}: must be at "
        f"most schedule.learning_rate {schedule.learning_rate}; lower it, or set "
        "schedule.warmup to '0 steps'",
    )
    if model_task(config.model.name) == "segmentation":
        _check_segmentation(config)


def _check_segmentation(config: ConfigDict) -> None:
    settings = config.segmentation
    _require(
        settings.scale_min <= settings.scale_max,
        f"segmentation.scale_min {settings.scale_min}: must be at most "
        f"segmentation.scale_max {settings.scale_max}",
    )
    _require(
        settings.eval_scales,
        "segmentation.eval_scales []: must have at least one item, as in [1.0]",
    )
    height, width = base_size(eval_canvas(config), config)
    _require(
        settings.short_side <= min(height, width),
        f"segmentation.short_side {settings.short_side}: does not fit the {height} x "
        f"{width} pixels of the input in evaluation; raise segmentation.eval_size",
    )
    for name in CLASSIFICATION_ONLY:
        value, default = config[name], KEYS[name].default
        _require(
            value == default,
            f"{name} {value!r}: is for classification, and {config.model.name} "
            f"segments; leave it at {default!r}, and see the keys of segmentation",
        )


def check_step(config: ConfigDict, devices: int) -> None:
    """Checks that a training step can be computed on a number of devices.

    Raises:
      UserError: if the batch cannot be divided, or the dtype is not for training.
    """
    batch, microbatches = config.batch_size, config.grad_accum_steps
    microbatch, group_size = batch // microbatches, config.model.bn_group_size
    times = f" times config.grad_accum_steps {microbatches}" if microbatches > 1 else ""
    _require(
        batch % (devices * microbatches) == 0,
        f"batch_size {batch}: must be a multiple of the {devices} devices{times}",
    )
    _require(
        group_size <= 0 or microbatch % group_size == 0,
        f"model.bn_group_size {group_size}: does not divide the {microbatch} examples "
        "of a microbatch (batch_size / grad_accum_steps)",
    )
    _require(
        not (config.data.mixup or config.data.cutmix) or microbatch % 2 == 0,
        f"batch_size {batch}: data.mixup and data.cutmix mix pairs, which need an even "
        f"number of examples in a microbatch, not {microbatch}",
    )
    _require(
        config.model.dtype != "float16",
        "model.dtype float16: small gradients would underflow, because the loss is not "
        "scaled; train in bfloat16",
    )


def _require(condition: Any, problem: str) -> None:
    if not condition:
        raise UserError(f"config.{problem}")
