"""A PyTorch state dict, fitted into the shapes of a model."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from vt_flax.errors import UserError
from vt_flax.weights.names import (
    COUNTER,
    HEAD,
    Place,
    belongs_to_resnet,
    looks_like,
    place_of,
)
from vt_flax.weights.stored import FLOATS, Stored

Path = tuple[str, ...]
Shapes = Mapping[Path, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What became of a state dict.

    Attributes:
      arrays: ours by path, float32.
      fresh: paths of ours that are to be made anew: the head's.
      zeros: paths of biases that are not there, which is a bias of zero.
      unused: keys that found no place, with their shapes.
      counters: how many counts of updates there were, which nothing here needs.
    """

    arrays: dict[Path, np.ndarray]
    fresh: list[Path]
    zeros: list[Path]
    unused: dict[str, tuple[int, ...]]
    counters: int


def classes_of(stored: Mapping[str, Stored]) -> int:
    """Returns for how many classes a state dict has a head; 0 if it has none."""
    for key, array in stored.items():
        if place_of(key) == HEAD and array.shape:
            return array.shape[0]
    return 0


def check_function(file: pathlib.Path, keys: Iterable[str], variant: str) -> list[str]:
    """Checks what shapes do not show: of Cadene's SE-ResNets, which timm calls legacy.

    Returns:
      Lines that tell in what they still differ from ours.

    Raises:
      UserError: if they compute something else.
    """
    keys = list(keys)
    if not any(key.startswith("layer0.") for key in keys):
        return []
    if not any(".conv3." in key for key in keys):
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
    stored: Mapping[str, Stored],
    model: str,
    wanted: Shapes,
    *,
    head: bool,
) -> Fitted:
    """Puts every array where it belongs.

    Args:
      file: where they are, for messages.
      stored: the state dict; read only once all shapes fit.
      model: name of the model, for messages.
      wanted: the shapes of the model's variables, by path.
      head: whether the head is taken, or left to be made anew.

    Raises:
      UserError: if an array of a ResNet has no place in the model or another shape, or
        one of the model is not there, or holds what no network can.
    """
    counters = [key for key in stored if key.endswith(COUNTER)]
    keys = [key for key in stored if not key.endswith(COUNTER)]
    places = {key: place_of(key) for key in keys}
    if not any(places.values()):
        raise UserError(
            f"{file}: not one of its arrays is a ResNet's (it holds {_few(keys)}): "
            "choose a file of torchvision's or timm's ResNets"
        )

    by_path: dict[Path, str] = {}
    unused: dict[str, tuple[int, ...]] = {}
    lost = []
    for key, place in places.items():
        if place and place.path in by_path:
            raise UserError(
                f"{file}: {by_path[place.path]} and {key} are the same array of "
                f"{model}: remove one of them"
            )
        if place and place.path in wanted:
            by_path[place.path] = key
        elif place or belongs_to_resnet(key):
            lost.append(key)
        else:
            unused[key] = stored[key].shape
    fresh = [] if head else [path for path in wanted if path[1] == "head"]
    missing = [path for path in wanted if path not in by_path and path not in fresh]
    zeros = [path for path in missing if _without_bias(path, by_path, places)]
    missing = [path for path in missing if path not in zeros]
    _check_all(file, keys, model, lost, missing)

    taken = [(p, key) for p, key in by_path.items() if p not in fresh]
    misfits = [
        (path, key)
        for path, key in taken
        if not places[key].fits(stored[key].shape, wanted[path])
    ]
    if misfits:
        # The one of most axes says most: a kernel rather than a bias.
        path, key = max(misfits, key=lambda misfit: len(wanted[misfit[0]]))
        raise UserError(
            f"{file}: {key} has shape {stored[key].shape}, {model} wants "
            f"{places[key].theirs(wanted[path])}: "
            f"{_gate_advice(misfits) or _advice(keys, model)}"
        )
    arrays = {path: _read(file, key, stored[key], places[key]) for path, key in taken}
    arrays |= {path: np.zeros(wanted[path], np.float32) for path in zeros}
    return Fitted(arrays, fresh, zeros, unused, len(counters))


def _without_bias(
    path: Path, by_path: Mapping[Path, str], places: Mapping[str, Place | None]
) -> bool:
    """Tells whether a path is the bias of a linear map that has none there."""
    key = by_path.get((*path[:-1], "kernel"))
    return path[-1] == "bias" and key is not None and places[key].kind == "linear"


def _check_all(
    file: pathlib.Path,
    keys: list[str],
    model: str,
    lost: list[str],
    missing: list[Path],
) -> None:
    if lost:
        raise UserError(
            f"{file}: {model} has no place for {_few(lost)}: {_advice(keys, model)}"
        )
    if missing:
        names = ["/".join(path[1:]) for path in missing]
        raise UserError(
            f"{file}: it has nothing for {model}'s {_few(names)}: "
            f"{_advice(keys, model)}"
        )


def _advice(keys: Iterable[str], model: str) -> str:
    like = looks_like(keys)
    if like and like != model:
        return f"its blocks are those of {like}, so try --model {like}"
    return "choose the model and the options (--set) that it was trained with"


def _gate_advice(misfits: list[tuple[Path, str]]) -> str:
    if all("gate" in path for path, _ in misfits):
        return "timm's gates are 8 wide at least, for which --set gate_multiple=8"
    return ""


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:80] for name in names[:3]) + more


def _read(file: pathlib.Path, key: str, stored: Stored, place: Place) -> np.ndarray:
    """Returns an array as ours.

    Running variances are taken as they are. PyTorch's are n / (n - 1) times ours, which
    changes no result, and wears off in training.
    """
    if stored.dtype not in FLOATS:
        raise UserError(
            f"{file}: {key} is {stored.dtype}: get the weights as {' or '.join(FLOATS)}"
        )
    with np.errstate(over="ignore"):
        value = place.ours(stored.read().astype(np.float32))
    if not np.isfinite(value).all() or (place.path[-1] == "var" and (value < 0).any()):
        raise UserError(
            f"{file}: {key} holds what no weight can be (not finite, or a variance "
            "under 0): it is damaged, get it again"
        )
    return np.ascontiguousarray(value)
