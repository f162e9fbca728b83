"""Every key of the configuration: default, range or choices, and meaning."""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from vt_flax.errors import UserError, nearest
from vt_flax.models.registry import is_like
from vt_flax.training.durations import UNITS, parse

LIMITS = {
    "at_least": operator.ge,
    "over": operator.gt,
    "at_most": operator.le,
    "under": operator.lt,
}


@dataclasses.dataclass(frozen=True)
class Key:
    """A key, whose type is that of its default.

    Limits and choices hold for each item of a list, and for the number of a duration.
    """

    default: Any
    doc: str = ""
    at_least: float | None = None
    over: float | None = None  # at_least, without the limit itself
    at_most: float | None = None
    under: float | None = None  # at_most, without the limit itself
    one_of: Sequence[str] = ()
    length: int | None = None  # of a list; None for any
    units: Sequence[str] = ()  # of a duration; empty for other keys

    @property
    def kind(self) -> str:
        """The name of the type, as error messages have it."""
        return type(self.default).__name__

    def convert(self, name: str, value: Any) -> Any:
        """Returns a value as plain Python of the default's type.

        An int is accepted for a float, and a tuple for a list.

        Raises:
          UserError: for a value of another type, or a number that is not finite.
        """
        if not is_like(value, self.default):
            shown = " ".join(repr(value).split())
            raise UserError(f"config.{name} must be {self.kind}, not {shown}")
        if isinstance(self.default, list):
            # Only label_map, a list of int, is empty by default.
            item = Key(self.default[0] if self.default else 0)
            return [item.convert(f"{name}[{i}]", x) for i, x in enumerate(value)]
        # No comparison with NaN holds, so that no limit would reject it.
        if isinstance(self.default, float) and not math.isfinite(value):
            raise UserError(f"config.{name} {value}: must be finite")
        return type(self.default)(value)

    def check(self, name: str, value: Any) -> None:
        """Checks a converted value against length, units, choices and limits.

        Raises:
          UserError: if it is not allowed.
        """
        items = value if isinstance(value, list) else [value]
        if self.length not in (None, len(items)):
            raise UserError(f"config.{name} {value!r}: must have {self.length} items")
        for item in items:
            if self.units:
                item, unit = parse(item)
                if unit not in self.units:
                    forms = " or ".join(repr(UNITS[unit]) for unit in self.units)
                    raise UserError(f"config.{name} {value!r}: write {forms}")
            if self.one_of and item not in self.one_of:
                raise UserError(
                    f"config.{name} {value!r} is not known{nearest(item, self.one_of)}"
                )
            for limit, holds in LIMITS.items():
                bound = getattr(self, limit)
                if bound is not None and not holds(item, bound):
                    raise UserError(
                        f"config.{name} {value!r}: must be {self.allowed()}"
                    )

    def allowed(self) -> str:
        """Returns the choices, or the limits as in `over 0 and at most 1`."""
        bounds = [(limit.replace("_", " "), getattr(self, limit)) for limit in LIMITS]
        return ", ".join(self.one_of) or " and ".join(
            f"{limit} {bound}" for limit, bound in bounds if bound is not None
        )


@dataclasses.dataclass(frozen=True)
class Duration(Key):
    """A key such as `90 epochs`, `1000 steps` or `5 %` of the run."""

    units: Sequence[str] = tuple(UNITS)


def unknown_key(name: str, keys: Mapping[str, Key]) -> UserError:
    """Returns the error for a name that is no key, or that of a section."""
    if inside := [key for key in keys if key.startswith(f"{name}.")]:
        return UserError(
            f"config.{name} is a section: set its keys, such as "
            f"--config.{inside[0]}=VALUE"
        )
    model = f" of {keys['model.name'].default}" if name.startswith("model.") else ""
    return UserError(
        f"config.{name} is no key of the configuration{model}{nearest(name, keys)}"
    )


# The options of a model, `model.*`, come from the registry.
KEYS = {
    # JAX reduces a seed to 32 bits, and two seeds must not be the same.
    "seed": Key(
        0,
        "Seed of the parameters, the order of examples and all noise.",
        at_least=-(2**31),
        under=2**31,
    ),
    "batch_size": Key(256, "Examples in a step, over all devices.", at_least=1),
    "duration": Duration(
        "90 epochs", "Length of the training.", over=0, units=("step", "epoch")
    ),
    "grad_accum_steps": Key(
        1, "Microbatches of a step, computed in turn to save memory.", at_least=1
    ),
    "init_from": Key(
        "", "Workdir or checkpoint folder whose weights a new run starts from."
    ),
    "model.name": Key("vt_resnet18", "Model, which decides the other keys of `model`."),
    "data.name": Key("digits", "TFDS dataset, or `folder:PATH` for class folders."),
    "data.data_dir": Key("", "Folder of TFDS datasets; empty for TFDS's default."),
    "data.image_feature": Key(
        "", "Feature of a TFDS dataset that holds the images; empty for the default."
    ),
    "data.label_feature": Key(
        "", "Feature of a TFDS dataset that holds the classes; empty for the default."
    ),
    "data.train_split": Key(
        "train", "Split to train on, such as `train[:90%]`, `train+test` or `all`."
    ),
    "data.eval_split": Key("test", "Split to evaluate on, written likewise."),
    "data.image_size": Key(32, "Side of the images in pixels.", at_least=1),
    "data.train_crop": Key(
        "pad", "Crop of a training image.", one_of=("random_resized", "pad", "center")
    ),
    "data.crop_min_area": Key(
        0.08, "Smallest share of the area for `random_resized`.", over=0, at_most=1
    ),
    "data.crop_padding": Key(4, "Padding on each side for `pad`.", at_least=0),
    "data.eval_resize": Key(
        0, "Short side before the center crop; 0 for `image_size`.", at_least=0
    ),
    "data.flip": Key(True, "Mirror half of the training images."),
    "data.augment": Key(
        "none",
        "Augmentation policy; `autoaugment` is ImageNet's.",
        one_of=("none", "autoaugment", "randaugment"),
    ),
    "data.randaugment_layers": Key(2, "Operations for each image.", at_least=1),
    "data.randaugment_magnitude": Key(
        9.0, "Strength of the operations.", at_least=0, at_most=10
    ),
    "data.augment_kernel": Key(
        True, "Run the policy as a kernel on TPUs; XLA's own operations are very slow."
    ),
    "data.erasing": Key(
        0.0, "Share of the images that lose a rectangle.", at_least=0, at_most=1
    ),
    "data.mixup": Key(
        0.0, "Both parameters of mixup's Beta distribution; 0 disables.", at_least=0
    ),
    "data.cutmix": Key(
        0.0, "The same for CutMix; with both, each example takes one.", at_least=0
    ),
    "data.mean": Key(
        [0.485, 0.456, 0.406], "Channel means to subtract, from 0 to 1.", length=3
    ),
    "data.std": Key(
        [0.229, 0.224, 0.225], "Channel deviations to divide by.", over=0, length=3
    ),
    "data.on_error": Key(
        "raise",
        "Treatment of an unreadable example; `skip` counts it.",
        one_of=("raise", "skip"),
    ),
    "data.workers": Key(0, "Decoding threads; 0 for one per core.", at_least=0),
    "data.readers": Key(2, "Concurrent reads; raise it for a bucket.", at_least=1),
    "data.prefetch": Key(
        2, "Batches ahead on the host; two more are on the devices.", at_least=0
    ),
    "data.cache": Key(False, "Keep the encoded training split in memory."),
    "data.shuffle_buffer": Key(
        16384, "Examples to shuffle among without random access.", at_least=1
    ),
    "segmentation.mask_feature": Key(
        "", "Feature of a TFDS dataset that holds the masks; empty for the only one."
    ),
    "segmentation.label_map": Key(
        [], "Class of each stored value, 255 for none; empty for the dataset's own."
    ),
    "segmentation.canvas": Key(
        [512, 512],
        "Height and width of training arrays; larger images are shrunk.",
        at_least=1,
        length=2,
    ),
    "segmentation.eval_canvas": Key(
        [0, 0],
        "The same in evaluation; larger images are errors; 0 for `canvas`.",
        at_least=0,
        length=2,
    ),
    "segmentation.crop": Key(
        [512, 512], "Height and width of the training crop.", at_least=1, length=2
    ),
    "segmentation.short_side": Key(
        0, "Short side to resize to first; 0 keeps the image size.", at_least=0
    ),
    "segmentation.scale_min": Key(0.5, "Smallest factor of random resizing.", over=0),
    "segmentation.scale_max": Key(2.0, "Largest factor of random resizing.", over=0),
    "segmentation.max_class_share": Key(
        0.75, "Largest share of a class in a crop; 1 disables.", over=0, at_most=1
    ),
    "segmentation.brightness": Key(
        0.0, "Brightness jitter v, a factor of 1 - v to 1 + v; 0 disables.", at_least=0
    ),
    "segmentation.contrast": Key(0.0, "Contrast jitter, likewise.", at_least=0),
    "segmentation.saturation": Key(0.0, "Saturation jitter, likewise.", at_least=0),
    "segmentation.hue": Key(
        0.0, "Largest turn of the color circle; 0 disables.", at_least=0, at_most=0.5
    ),
    "segmentation.eval_size": Key(
        [0, 0], "Input size in evaluation; 0 for `eval_canvas`.", at_least=0, length=2
    ),
    "segmentation.eval_scales": Key(
        [1.0], "Scales over which predictions are averaged.", over=0
    ),
    "segmentation.eval_flip": Key(False, "Average over mirrored images as well."),
    "optimizer.name": Key(
        "rmsprop_tf",
        "Optimizer; `rmsprop_tf` is TensorFlow's RMSProp, `rmsprop_torch` PyTorch's.",
        one_of=("rmsprop_tf", "rmsprop_torch", "sgd", "adamw"),
    ),
    "optimizer.momentum": Key(
        0.9, "Momentum; for `adamw`, decay of the gradient mean.", at_least=0, under=1
    ),
    "optimizer.nesterov": Key(False, "Use Nesterov momentum, except for `adamw`."),
    "optimizer.decay": Key(
        0.9,
        "Decay of the squared gradient mean; 0.999 suits `adamw`.",
        at_least=0,
        under=1,
    ),
    "optimizer.epsilon": Key(
        1e-3, "Term added to that mean or its root; 1e-8 suits `adamw`.", over=0
    ),
    "optimizer.weight_decay": Key(
        1e-5, "L2 penalty; for `adamw`, decoupled weight decay.", at_least=0
    ),
    "optimizer.clip_norm": Key(
        0.0, "Clip the global gradient norm to this value; 0 disables.", at_least=0
    ),
    "schedule.name": Key(
        "exponential",
        "Learning rate schedule after the warm-up.",
        one_of=("exponential", "step", "cosine", "poly", "constant"),
    ),
    "schedule.learning_rate": Key(0.16, "Learning rate after the warm-up.", at_least=0),
    "schedule.warmup": Duration(
        "5 epochs", "Length of the linear warm-up; `0 steps` for none."
    ),
    "schedule.warmup_learning_rate": Key(0.01, "Learning rate at step 0.", at_least=0),
    "schedule.decay_factor": Key(
        0.9875, "Factor of each decay of `exponential` and `step`.", over=0
    ),
    "schedule.decay_every": Duration(
        "1 epochs", "Interval of `exponential`, from the warm-up's end.", over=0
    ),
    "schedule.staircase": Key(
        True, "Decay `exponential` at once after each interval, instead of smoothly."
    ),
    "schedule.boundaries": Duration(
        ["30 epochs", "60 epochs", "80 epochs"],
        "Times of the decays of `step`, from the run's start.",
    ),
    "schedule.power": Key(
        0.9, "Exponent of `poly`, over the share of the run that is left.", over=0
    ),
    "loss.label_smoothing": Key(
        0.1, "Share of the target spread evenly over all classes.", at_least=0, under=1
    ),
    "distillation.teacher": Key(
        "", "Workdir or checkpoint of a classifier to learn from; empty for none."
    ),
    "distillation.weight": Key(
        0.8,
        "Weight of the teacher's loss; the rest is the labels'.",
        at_least=0,
        at_most=1,
    ),
    "distillation.temperature": Key(
        1.0, "Divisor of the logits of both networks.", over=0
    ),
    "ema.decay": Key(
        0.99985, "EMA decay of the weights; 0 disables.", at_least=0, under=1
    ),
    "ema.ramp": Key(True, "Limit the decay at step t to (1 + t) / (10 + t)."),
    "eval.every": Duration(
        "1 epochs", "Interval of evaluations; the last step is evaluated too.", over=0
    ),
    "eval.batch_size": Key(
        0, "Examples in a batch; 0 stands for the training batch size.", at_least=0
    ),
    "checkpoint.every": Duration(
        "1 epochs", "Interval of checkpoints; the last step is saved too.", over=0
    ),
    "checkpoint.minutes": Key(
        15.0, "Save after this many minutes at the latest; 0 disables.", at_least=0
    ),
    "checkpoint.keep": Key(2, "Newest checkpoints to keep.", at_least=1),
    "checkpoint.keep_best": Key(
        1, "Best checkpoints to keep, by top-1 or mIoU, of the EMA if any.", at_least=0
    ),
    "log.every": Duration("50 steps", "Interval of progress and metrics.", over=0),
    "log.tensorboard": Key(True, "Write TensorBoard files too."),
    "parallel.cpu_devices": Key(
        0, "Devices a process makes of its CPUs; 0 for JAX's default, 1.", at_least=0
    ),
    "parallel.fsdp": Key(
        1, "Devices to shard parameters and optimizer state over.", at_least=1
    ),
    "parallel.heartbeat_timeout": Key(
        30.0, "Seconds without a heartbeat after which a process is dead.", at_least=5
    ),
    "parallel.progress_timeout": Key(
        900.0, "Seconds without progress after which a process hangs.", at_least=5
    ),
    "profile.start": Key(10, "First step of a trace for TensorBoard.", at_least=1),
    "profile.steps": Key(0, "Steps of the trace; 0 disables.", at_least=0),
    "compilation_cache": Key(
        "~/.cache/vt_flax/jax",
        "Cache folder; JAX_COMPILATION_CACHE_DIR replaces it, and empty disables it.",
    ),
}
