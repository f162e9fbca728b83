"""Loads a PyTorch ResNet's arrays into the shapes of a model."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from vt_flax.errors import UserError, first_names
from vt_flax.weights.files import FLOATS, Array
from vt_flax.weights.names import COUNTER, Place, looks_like, place_of

Path = tuple[str, ...]
Shapes = Mapping[Path, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Result of loading a state dict.

    Attributes:
      arrays: the loaded arrays by path in the model, float32.
      fresh: paths in the model that are to be initialized: the head's.
      zeros: paths of biases that the file leaves out, which are zero then.
      counters: number of BatchNorm's counts of updates, which are not used here.
    """

    arrays: dict[Path, np.ndarray]
    fresh: list[Path]
    zeros: list[Path]
    counters: int


def check_function(file: pathlib.Path, names: Iterable[str], variant: str) -> list[str]:
    """Checks what shapes do not show: of Cadene's SE-ResNets, which timm calls legacy.

    Returns:
      Lines that say in what they still differ from the model.

    Raises:
      UserError: if they compute something else.
    """
    names = list(names)
    if "layer0.conv1.weight" not in names:
        return []
    if not any(".conv3." in name for name in names):
        raise UserError(
            f"{file}: a legacy SE-ResNet, in whose basic blocks a ReLU goes before the "
            "gate; here none does: choose seresnet18 or seresnet34, or 50 and deeper"
        )
    if variant != "msra":
        raise UserError(
            f"{file}: a legacy SE-ResNet, whose bottlenecks stride in the first 1 x 1: "
            "add --set variant=msra"
        )
    return [
        "A legacy SE-ResNet: its max pooling lies a pixel beside ours, so that results "
        "differ a little."
    ]


def fit(
    file: pathlib.Path,
    arrays: Mapping[str, Array],
    names: Mapping[str, str],
    model: str,
    wanted: Shapes,
    *,
    head: bool,
) -> LoadReport:
    """Loads the arrays of a ResNet; they are read only once all shapes fit.

    Args:
      file: the file, for messages.
      arrays: the arrays of the file.
      names: torchvision's names of the ResNet's arrays, by their names in the file.
      model: name of the model, for messages.
      wanted: the shapes of the model's variables, by path.
      head: whether the head is loaded; if not it is left to be initialized.

    Raises:
      UserError: if the model has no place for an array, or another shape, or an array
        is missing, or has values that no weight can have.
    """
    counters = [key for key in names if key.endswith(COUNTER)]
    places = {key: place_of(names[key]) for key in names if key not in counters}
    fresh = [] if head else [path for path in wanted if path[1] == "head"]
    by_path: dict[Path, str] = {}
    unexpected = []
    for key, place in places.items():
        if place and place.path in by_path:
            raise UserError(
                f"{file}: {by_path[place.path]} and {key} are the same array of "
                f"{model}: remove one of them"
            )
        if not place or place.path not in wanted:
            unexpected.append(key)
        elif place.path not in fresh:
            by_path[place.path] = key
    missing = [path for path in wanted if path not in by_path and path not in fresh]
    zeros = [path for path in missing if _without_bias(path, by_path, places)]
    missing = [path for path in missing if path not in zeros]
    advice = _advice(names.values(), model)
    if unexpected:
        raise UserError(
            f"{file}: {model} has no place for {first_names(unexpected)}: {advice}"
        )
    if missing:
        parts = ["/".join(path[1:]) for path in missing]
        raise UserError(
            f"{file}: it has nothing for {model}'s {first_names(parts)}: {advice}"
        )

    misfits = [
        (path, key)
        for path, key in by_path.items()
        if not places[key].fits(arrays[key].shape, wanted[path])
    ]
    if misfits:
        # The one of most axes says most: a kernel rather than a bias.
        path, key = max(misfits, key=lambda misfit: len(wanted[misfit[0]]))
        raise UserError(
            f"{file}: {key} has shape {arrays[key].shape}, {model} wants "
            f"{places[key].theirs(wanted[path])}: {_gate_advice(misfits) or advice}"
        )
    loaded = {
        path: _read(file, key, arrays[key], places[key])
        for path, key in by_path.items()
    }
    loaded |= {path: np.zeros(wanted[path], np.float32) for path in zeros}
    return LoadReport(loaded, fresh, zeros, len(counters))


def _without_bias(
    path: Path, by_path: Mapping[Path, str], places: Mapping[str, Place | None]
) -> bool:
    """Returns whether a path is the bias of a linear map that the file has without."""
    key = by_path.get((*path[:-1], "kernel"))
    return path[-1] == "bias" and key is not None and places[key].kind == "linear"


def _advice(names: Iterable[str], model: str) -> str:
    like = looks_like(names)
    if like and like != model:
        return f"its blocks are those of {like}, so try --model {like}"
    return "choose the model and the options (--set) that it was trained with"


def _gate_advice(misfits: list[tuple[Path, str]]) -> str:
    if all("gate" in path for path, _ in misfits):
        return "timm's gates are 8 wide at least, for which --set gate_multiple=8"
    return ""


def _read(file: pathlib.Path, key: str, array: Array, place: Place) -> np.ndarray:
    """Returns an array in the model's layout.

    Running variances are taken as they are. PyTorch's are n / (n - 1) times ours, which
    changes no result, and wears off in training.
    """
    if array.dtype not in FLOATS:
        raise UserError(
            f"{file}: {key} is {array.dtype}: get the weights as {' or '.join(FLOATS)}"
        )
    with np.errstate(over="ignore"):
        value = place.ours(array.read().astype(np.float32))
    if not np.isfinite(value).all() or (place.path[-1] == "var" and (value < 0).any()):
        raise UserError(
            f"{file}: {key} holds what no weight can be (not finite, or a variance "
            "under 0): it is damaged, get it again"
        )
    return np.ascontiguousarray(value)
