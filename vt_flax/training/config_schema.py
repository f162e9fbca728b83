"""Every key of the configuration: default, range or choices, and meaning."""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from vt_flax.errors import UserError, nearest
from vt_flax.models.registry import is_like
from vt_flax.training.durations import UNITS, parse

# Comparisons, named as in `operator`.
LIMITS = {"ge": "at least", "gt": "over", "le": "at most", "lt": "under"}


@dataclasses.dataclass(frozen=True)
class Key:
    """A key, whose type is that of its default.

    Limits and choices hold for each item of a list, and for the number of a duration.
    """

    default: Any
    doc: str = ""
    ge: float | None = None  # at least
    gt: float | None = None  # over
    le: float | None = None  # at most
    lt: float | None = None  # under
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
            for limit in LIMITS:
                bound = getattr(self, limit)
                if bound is not None and not getattr(operator, limit)(item, bound):
                    raise UserError(
                        f"config.{name} {value!r}: must be {self.allowed()}"
                    )

    def allowed(self) -> str:
        """Returns the choices, or the limits as in `over 0 and at most 1`."""
        bounds = [(text, getattr(self, limit)) for limit, text in LIMITS.items()]
        return ", ".join(self.one_of) or " and ".join(
            f"{text} {bound}" for text, bound in bounds if bound is not None
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


KEYS: dict[str, Key] = {}


def _define(section: str, **keys: Key) -> None:
    """Adds the keys of a section; those outside of sections have an empty one."""
    KEYS.update({f"{section}.{name}".lstrip("."): key for name, key in keys.items()})


_define(
    "",
    # JAX reduces a seed to 32 bits, and two seeds must not be the same.
    seed=Key(0, "Seed of parameters, example order and noise.", ge=-(2**31), lt=2**31),
    batch_size=Key(256, "Examples in a step, over all devices.", ge=1),
    duration=Duration("90 epochs", "Length of the run.", gt=0, units=("step", "epoch")),
    grad_accum_steps=Key(1, "Microbatches of a step, in turn to save memory.", ge=1),
    init_from=Key("", "Workdir or checkpoint whose weights a run starts from."),
    compilation_cache=Key(
        "~/.cache/vt_flax/jax",
        "Cache folder; JAX_COMPILATION_CACHE_DIR replaces it, and empty disables it.",
    ),
)
# The options of a model, `model.*`, come from the registry.
_define(
    "model",
    name=Key("vt_resnet18", "Model, which decides the other keys of `model`."),
)
_define(
    "data",
    name=Key("digits", "TFDS dataset, or `folder:PATH` for class folders."),
    data_dir=Key("", "Folder of TFDS datasets; empty for TFDS's default."),
    image_feature=Key("", "TFDS feature of the images; empty for the default."),
    label_feature=Key("", "TFDS feature of the classes; empty for the default."),
    train_split=Key("train", "Split to train on: `train[:90%]`, `train+test`, `all`."),
    eval_split=Key("test", "Split to evaluate on, written likewise."),
    image_size=Key(32, "Side of the images in pixels.", ge=1),
    train_crop=Key(
        "pad", "Crop of a training image.", one_of=("random_resized", "pad", "center")
    ),
    crop_min_area=Key(0.08, "Smallest area of `random_resized` crops.", gt=0, le=1),
    crop_padding=Key(4, "Padding on each side for `pad`.", ge=0),
    eval_resize=Key(0, "Short side before the center crop; 0 for `image_size`.", ge=0),
    flip=Key(True, "Mirror half of the training images."),
    augment=Key(
        "none",
        "Augmentation policy; `autoaugment` is ImageNet's.",
        one_of=("none", "autoaugment", "randaugment"),
    ),
    randaugment_layers=Key(2, "Operations for each image.", ge=1),
    randaugment_magnitude=Key(9.0, "Strength of the operations.", ge=0, le=10),
    augment_kernel=Key(True, "Run the policy as a kernel on TPUs, faster than XLA."),
    erasing=Key(0.0, "Share of the images that lose a rectangle.", ge=0, le=1),
    mixup=Key(0.0, "Both parameters of mixup's Beta distribution; 0 disables.", ge=0),
    cutmix=Key(0.0, "The same for CutMix; with both, each example takes one.", ge=0),
    mean=Key([0.485, 0.456, 0.406], "Channel means to subtract, 0 to 1.", length=3),
    std=Key([0.229, 0.224, 0.225], "Channel deviations to divide by.", gt=0, length=3),
    on_error=Key(
        "raise",
        "Treatment of an unreadable example; `skip` counts it.",
        one_of=("raise", "skip"),
    ),
    workers=Key(0, "Decoding threads; 0 for one per core.", ge=0),
    readers=Key(2, "Concurrent reads; raise it for a bucket.", ge=1),
    prefetch=Key(2, "Batches ahead on the host; two more are on the devices.", ge=0),
    cache=Key(False, "Keep the encoded training split in memory."),
    shuffle_buffer=Key(16384, "Examples to shuffle among without random access.", ge=1),
)
_define(
    "segmentation",
    mask_feature=Key("", "TFDS feature of the masks; empty for the only one."),
    label_map=Key([], "Class of each stored value, 255 for none; empty for default."),
    canvas=Key(
        [512, 512], "Array size in training; larger images are shrunk.", ge=1, length=2
    ),
    eval_canvas=Key(
        [0, 0], "In evaluation; larger images fail; 0 for `canvas`.", ge=0, length=2
    ),
    crop=Key([512, 512], "Height and width of the training crop.", ge=1, length=2),
    short_side=Key(0, "Short side to resize to first; 0 keeps the image size.", ge=0),
    scale_min=Key(0.5, "Smallest factor of random resizing.", gt=0),
    scale_max=Key(2.0, "Largest factor of random resizing.", gt=0),
    max_class_share=Key(
        0.75, "Largest class share in a crop; 1 disables.", ge=0.5, le=1
    ),
    brightness=Key(0.0, "Brightness jitter v, a factor of 1 - v to 1 + v.", ge=0),
    contrast=Key(0.0, "Contrast jitter, likewise.", ge=0),
    saturation=Key(0.0, "Saturation jitter, likewise.", ge=0),
    hue=Key(0.0, "Largest turn of the color circle; 0 disables.", ge=0, le=0.5),
    eval_size=Key([0, 0], "Evaluation's input; 0 for `eval_canvas`.", ge=0, length=2),
    eval_scales=Key([1.0], "Scales over which predictions are averaged.", gt=0),
    eval_flip=Key(False, "Average over mirrored images as well."),
)
_define(
    "optimizer",
    name=Key(
        "rmsprop_tf",
        "Optimizer; `rmsprop_tf` is TensorFlow's RMSProp, `rmsprop_torch` PyTorch's.",
        one_of=("rmsprop_tf", "rmsprop_torch", "sgd", "adamw"),
    ),
    momentum=Key(0.9, "Momentum; for `adamw`, decay of the gradient mean.", ge=0, lt=1),
    nesterov=Key(False, "Use Nesterov momentum, except for `adamw`."),
    decay=Key(0.9, "Decay of squared gradients; 0.999 suits `adamw`.", ge=0, lt=1),
    epsilon=Key(1e-3, "Term added to that mean or its root; 1e-8 suits `adamw`.", gt=0),
    weight_decay=Key(1e-5, "L2 penalty; for `adamw`, decoupled weight decay.", ge=0),
    clip_norm=Key(0.0, "Largest global gradient norm; 0 disables clipping.", ge=0),
)
_define(
    "schedule",
    name=Key(
        "exponential",
        "Learning rate schedule after the warm-up.",
        one_of=("exponential", "step", "cosine", "poly", "constant"),
    ),
    learning_rate=Key(0.16, "Learning rate after the warm-up.", ge=0),
    warmup=Duration("5 epochs", "Length of the linear warm-up; `0 steps` for none."),
    warmup_learning_rate=Key(0.01, "Learning rate at step 0.", ge=0),
    decay_factor=Key(0.9875, "Factor of each decay of `exponential` and `step`.", gt=0),
    decay_every=Duration("1 epochs", "Interval of `exponential` after warm-up.", gt=0),
    staircase=Key(True, "Decay `exponential` once an interval, not smoothly."),
    boundaries=Duration(
        ["30 epochs", "60 epochs", "80 epochs"],
        "Times of the decays of `step`, from the run's start.",
    ),
    power=Key(0.9, "Exponent of `poly`, over the share of the run that is left.", gt=0),
)
_define(
    "loss",
    label_smoothing=Key(0.1, "Share of the target that is uniform.", ge=0, lt=1),
)
_define(
    "distillation",
    teacher=Key("", "Workdir or checkpoint of a classifier; empty for none."),
    weight=Key(0.8, "Weight of the teacher's loss, of 1 in all.", ge=0, le=1),
    temperature=Key(1.0, "Divisor of the logits of both networks.", gt=0),
)
_define(
    "ema",
    decay=Key(0.99985, "EMA decay of the weights; 0 disables.", ge=0, lt=1),
    ramp=Key(True, "Limit the decay at step t to (1 + t) / (10 + t)."),
)
_define(
    "eval",
    every=Duration("1 epochs", "Interval of evaluations; the last step has one.", gt=0),
    batch_size=Key(0, "Examples in a batch; 0 for the training batch size.", ge=0),
)
_define(
    "checkpoint",
    every=Duration("1 epochs", "Interval of checkpoints; the last step has one.", gt=0),
    minutes=Key(15.0, "Save after this many minutes at the latest; 0 disables.", ge=0),
    keep=Key(2, "Newest checkpoints to keep.", ge=1),
    keep_best=Key(1, "Best checkpoints to keep, by top-1 or mIoU of the EMA.", ge=0),
)
_define(
    "log",
    every=Duration("50 steps", "Interval of progress and metrics.", gt=0),
    tensorboard=Key(True, "Write TensorBoard files too."),
)
_define(
    "parallel",
    cpu_devices=Key(0, "CPU devices of a process; 0 for JAX's default.", ge=0),
    fsdp=Key(1, "Devices to shard parameters and optimizer state over.", ge=1),
    heartbeat_timeout=Key(
        30.0, "Seconds without a heartbeat after which a process is dead.", ge=5
    ),
    progress_timeout=Key(
        900.0, "Seconds without progress after which a process hangs.", ge=5
    ),
)
_define(
    "profile",
    start=Key(10, "First step of a trace for TensorBoard.", ge=1),
    steps=Key(0, "Steps of the trace; 0 disables.", ge=0),
)
