"""The models by name: one line each."""

import dataclasses
import fnmatch
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vt_flax.errors import UserError, nearest
from vt_flax.models.comparison import lr, san, sasa
from vt_flax.models.comparison.aa import AAResNet
from vt_flax.models.comparison.cbam import CBAMResNet
from vt_flax.models.comparison.glore import GloReResNet
from vt_flax.models.comparison.se import SEResNet
from vt_flax.models.fpn import FPN
from vt_flax.models.resnet import STAGE_SIZES, ResNet
from vt_flax.models.vt_fpn import VTFPN
from vt_flax.models.vt_resnet import PRESETS, VTResNet, preset_options
from vt_flax.nn.visual_transformer import VTOptions

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A named model.

    Attributes:
      module: the flax module class; its fields are the model's options.
      fixed: fields that the name determines.
      presets: bundles of options that `preset=` selects; the first is the default.
      task: kind of the outputs: `classification`, logits (batch, classes) of images;
        `segmentation`, logits (batch, h, w, classes) of pixels.
    """

    module: Any
    fixed: dict[str, Any]
    presets: tuple[str, ...] = ()
    task: str = "classification"


_RESNETS = {
    depth: {"stage_sizes": sizes, "bottleneck": depth >= 50}
    for depth, sizes in STAGE_SIZES.items()
}
MODELS: dict[str, Entry] = {}
for _depth, _fixed in _RESNETS.items():
    MODELS[f"resnet{_depth}"] = Entry(ResNet, _fixed)
    MODELS[f"vt_resnet{_depth}"] = Entry(VTResNet, _fixed, tuple(PRESETS))
    MODELS[f"fpn_resnet{_depth}"] = Entry(FPN, _fixed, task="segmentation")
    MODELS[f"vt_fpn_resnet{_depth}"] = Entry(VTFPN, _fixed, task="segmentation")
    MODELS[f"se_resnet{_depth}"] = Entry(SEResNet, _fixed)
    MODELS[f"cbam_resnet{_depth}"] = Entry(CBAMResNet, _fixed)
for _depth in (34, 50, 101):
    MODELS[f"aa_resnet{_depth}"] = Entry(AAResNet, _RESNETS[_depth])
MODELS["glore_resnet50"] = Entry(GloReResNet, _RESNETS[50])

for _depth, (_sizes, _bottleneck) in lr.DEPTHS.items():
    _fixed = {"stage_sizes": _sizes, "bottleneck": _bottleneck}
    MODELS[f"lr_net{_depth}"] = Entry(lr.LRNet, _fixed)
for _depth, _sizes in sasa.STAGE_SIZES.items():
    _fixed = {"stage_sizes": _sizes, "bottleneck": True}
    MODELS[f"sasa_resnet{_depth}"] = Entry(sasa.StandAloneResNet, _fixed)
for _depth, _stages in san.STAGE_SIZES.items():
    _fixed = {"stage_sizes": _stages}
    MODELS[f"san{_depth}_pairwise"] = Entry(san.PairwiseSAN, _fixed)
    MODELS[f"san{_depth}_patchwise"] = Entry(san.PatchwiseSAN, _fixed)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models that match a glob, sorted.

    >>> list_models("resnet*")
    ['resnet101', 'resnet18', 'resnet34', 'resnet50']
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def _entry(name: str) -> Entry:
    if name not in MODELS:
        raise UserError(f"model {name!r} is not known{nearest(name, MODELS)}")
    return MODELS[name]


def model_task(name: str) -> str:
    """Returns the task of a model: see `Entry`.

    >>> model_task("vt_fpn_resnet50")
    'segmentation'

    Raises:
      UserError: for an unknown name.
    """
    return _entry(name).task


def model_options(name: str, preset: str = "") -> dict[str, Any]:
    """Returns every option of a model with its default.

    Args:
      name: a name of `list_models()`.
      preset: the preset whose defaults to give; empty for the model's default.

    Returns:
      Options as `create_model` takes them, `dtype` by name; `preset` among them where
      the model has presets.

    Raises:
      UserError: for an unknown name or preset.
    """
    entry = _entry(name)
    options = {
        field.name: field.default
        for field in dataclasses.fields(entry.module)
        if field.name not in ("parent", "name", "dtype", "bottleneck")
    }
    if "vt" in options:
        defaults = options.pop("vt")
        for option in _vt_options(entry):
            options[option] = getattr(defaults, option)
    options["stage_sizes"] = entry.fixed["stage_sizes"]
    options["dtype"] = "float32"
    if entry.presets:
        preset = preset or entry.presets[0]
        options = {"preset": preset, **options, **preset_options(preset)}
    elif preset:
        raise UserError(f"model {name!r} has no presets; leave out preset={preset!r}")
    return options


def _vt_options(entry: Entry) -> tuple[str, ...]:
    """Returns the names of a model's options that are fields of its `vt`."""
    fields = (field.name for field in dataclasses.fields(VTOptions))
    return getattr(entry.module, "VT_OPTIONS", tuple(fields))


def _check_type(name: str, option: str, value: Any, default: Any) -> None:
    """Checks that a value, or each item of a list, is of its default's type."""
    fits, kind = is_like(value, default), type(default).__name__
    if isinstance(default, tuple) and default:
        fits = fits and all(is_like(one, default[0]) for one in value)
        kind = f"a list of {type(default[0]).__name__}"
    if not fits:
        raise UserError(
            f"model {name!r}: option {option} must be {kind}, not {value!r}"
        )


def is_like(value: Any, default: Any) -> bool:
    """Returns whether a value has the type of a default, or converts to it."""
    lists = (tuple, list)
    accepted = {float: (float, int), tuple: lists, list: lists}
    kind = type(default)
    # In Python, True is an int.
    if isinstance(value, bool) != (kind is bool):
        return False
    return isinstance(value, accepted.get(kind, kind))


def _dtype(value: Any) -> Any:
    """Returns the type that a name, or a type of JAX's or NumPy's, stands for."""
    try:
        name = value if isinstance(value, str) else jnp.dtype(value).name
    except (TypeError, ValueError):
        name = ""
    if name not in DTYPES:
        raise UserError(f"dtype {value!r} is not known{nearest(str(value), DTYPES)}")
    return DTYPES[name]


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Creates a model.

    >>> model = create_model("vt_resnet18", preset="v4", tokens=32, num_classes=10)

    Args:
      name: a name of `list_models()`.
      **overrides: options that differ from `model_options(name)`. `dtype` is a name or
        a JAX type.

    Returns:
      A flax module: `model.init(key, images)` and
      `model.apply(variables, images, train=False)`, with images (batch, H, W, 3).

    Raises:
      UserError: for an unknown name, option or value.
    """
    options = model_options(name, overrides.pop("preset", ""))
    options.pop("preset", None)
    for option, value in overrides.items():
        if option not in options:
            raise UserError(
                f"model {name!r} has no option {option!r}{nearest(option, options)}"
            )
        if option != "dtype":
            _check_type(name, option, value, options[option])
        options[option] = value
    options["dtype"] = _dtype(options["dtype"])
    options["stage_sizes"] = tuple(options["stage_sizes"])
    entry = _entry(name)
    if hasattr(entry.module, "vt"):
        own = {option: options.pop(option) for option in _vt_options(entry)}
        options["vt"] = dataclasses.replace(entry.module.vt, **own)
    return entry.module(**{**entry.fixed, **options})
