"""Loads a PyTorch ResNet's arrays into the shapes of a model."""

import pathlib
from collections.abc import Mapping

import numpy as np

from vt_flax.errors import UserError, first_names
from vt_flax.weights.files import FLOATS, Array
from vt_flax.weights.names import COUNTER, Place, place_of

Path = tuple[str, ...]

ADVICE = "choose the --model, and the options (--set), that it was trained with"


def fit(
    file: pathlib.Path,
    arrays: Mapping[str, Array],
    names: Mapping[str, str],
    model: str,
    wanted: Mapping[Path, tuple[int, ...]],
) -> dict[Path, np.ndarray]:
    """Loads the arrays of a ResNet; they are read only once all shapes fit.

    Args:
      file: the file, for messages.
      arrays: the arrays of the file.
      names: torchvision's names of the ResNet's arrays, by their names in the file. If
        the head is not among them, it is left to be initialized.
      model: name of the model, for messages.
      wanted: the shapes of the model's variables, by path.

    Returns:
      Arrays by path in the model, float32.

    Raises:
      UserError: for an unexpected or a missing array, for another shape, and for values
        that no weight can have.
    """
    loaded: dict[Path, tuple[str, Place]] = {}
    unexpected = []
    for key, name in names.items():
        place = place_of(name)
        if place and place.path in wanted:
            loaded[place.path] = key, place
        elif not name.endswith(COUNTER):
            unexpected.append(key)
    if unexpected:
        raise UserError(
            f"{file}: {model} has no place for {first_names(unexpected)}: {ADVICE}"
        )
    has_head = "fc.weight" in names.values()
    missing = [
        "/".join(path[1:])
        for path in wanted
        if path not in loaded and (has_head or path[1] != "head")
    ]
    if missing:
        raise UserError(
            f"{file}: nothing in it is {model}'s {first_names(missing)}: {ADVICE}"
        )
    for path, (key, place) in loaded.items():
        if not place.fits(arrays[key].shape, wanted[path]):
            raise UserError(
                f"{file}: {key} has shape {arrays[key].shape}, {model} wants "
                f"{place.theirs(wanted[path])}: {ADVICE}"
            )
    return {
        path: _read(file, key, arrays[key], place)
        for path, (key, place) in loaded.items()
    }


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
