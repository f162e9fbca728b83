"""Starting from the weights of another run: of the same network, or of its backbone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import put_whole
from vt_flax.training.state import TrainState
from vt_flax.training.weights import PARTS, find_checkpoint, read_weights

# Fits its own classes: made anew where they are others.
HEAD = "head"

Path = tuple[str, ...]


def initialise(state: TrainState, place: str) -> tuple[TrainState, list[str]]:
    """Puts the weights of a checkpoint into a state at step 0.

    Every array goes where one of its name and shape is: a ResNet's all but its head
    into a segmentation network's backbone. Averages start from the same.

    Args:
      state: the state, where it is trained.
      place: see `find_checkpoint`.

    Returns:
      The state, and lines that tell what was taken and what was not.

    Raises:
      UserError: if there is no checkpoint, or nothing in it fits, or an array outside
        the head has another shape.
    """
    folder = find_checkpoint("init_from", place)
    weights, name = read_weights("init_from", folder)
    taken, fresh, unused, changed = 0, set(), set(), {}
    for part in PARTS:
        own = traverse_util.flatten_dict(getattr(state, part))
        there = traverse_util.flatten_dict(weights[part])
        others = _other_maps(own, there)
        for path, array in own.items():
            if path not in there or path[:-1] in others:
                fresh.add(path[0])
                continue
            if there[path].shape != array.shape:
                raise UserError(
                    f"init_from {place}: {'/'.join(path)} has shape "
                    f"{there[path].shape} there, {array.shape} here: choose the same "
                    "options of the model"
                )
            value = np.asarray(there[path], array.dtype)
            own[path] = put_whole(value, array.sharding)
            taken += 1
        unused |= {path[0] for path in there if path not in own}
        changed[part] = traverse_util.unflatten_dict(own)
    if not taken:
        raise UserError(
            f"init_from {place}: not one array fits; it holds "
            f"{', '.join(sorted(unused))}, the model {', '.join(sorted(fresh))}"
        )
    for part in PARTS:
        if getattr(state, f"ema_{part}"):
            # Copies: a donated state must not hold one buffer twice.
            changed[f"ema_{part}"] = jax.tree.map(jnp.copy, changed[part])
    lines = [f"{taken} arrays from {folder} ({name} weights)"]
    if fresh:
        lines.append(f"not in there, so made anew: {', '.join(sorted(fresh))}")
    if unused:
        lines.append(f"of no use here: {', '.join(sorted(unused))}")
    return state.replace(**changed), lines


def _other_maps(own: dict[Path, Any], there: dict[Path, Any]) -> set[Path]:
    """Returns the maps of the head whose kernel or bias has another shape there.

    The bias of a map that is made anew would be another's even where it fits.
    """
    return {
        path[:-1]
        for path, array in own.items()
        if path[0] == HEAD and path in there and array.shape != there[path].shape
    }
