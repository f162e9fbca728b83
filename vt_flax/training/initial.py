"""Initial weights from another run, of the same network or of its backbone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import put_whole
from vt_flax.training.state import TrainState
from vt_flax.training.weights import PARTS, find_checkpoint, read_weights

# Initialized afresh where the classes differ.
HEAD = "head"

Path = tuple[str, ...]


def initialize(state: TrainState, place: str) -> tuple[TrainState, list[str]]:
    """Loads the weights of a checkpoint into a state at step 0.

    Every array is loaded where the model has one of its name and shape: of a ResNet all
    but the head into the backbone of a segmentation network. The EMA starts from them.

    Args:
      state: the state, where it is trained.
      place: see `find_checkpoint`.

    Returns:
      The state, and lines about the loaded, missing and unexpected parts.

    Raises:
      UserError: if there is no checkpoint, no array fits, or one outside the head has
        another shape.
    """
    folder = find_checkpoint("init_from", place)
    weights, name = read_weights("init_from", folder)
    loaded, missing, unexpected, changed = 0, set(), set(), {}
    for part in PARTS:
        own = traverse_util.flatten_dict(getattr(state, part))
        there = traverse_util.flatten_dict(weights[part])
        others = _other_heads(own, there)
        for path, array in own.items():
            if path not in there or path[:-1] in others:
                missing.add(path[0])
                continue
            if there[path].shape != array.shape:
                raise UserError(
                    f"init_from {place}: {'/'.join(path)} has shape "
                    f"{there[path].shape} there, {array.shape} here: choose the same "
                    "options of the model"
                )
            value = np.asarray(there[path], array.dtype)
            own[path] = put_whole(value, array.sharding)
            loaded += 1
        unexpected |= {path[0] for path in there if path not in own}
        changed[part] = traverse_util.unflatten_dict(own)
    if not loaded:
        raise UserError(
            f"init_from {place}: no array fits; it holds "
            f"{', '.join(sorted(unexpected))}, the model {', '.join(sorted(missing))}"
        )
    for part in PARTS:
        if getattr(state, f"ema_{part}"):
            # A donated state must not hold one buffer twice.
            changed[f"ema_{part}"] = jax.tree.map(jnp.copy, changed[part])
    lines = [f"loaded {loaded} arrays from {folder} ({name} weights)"]
    if missing:
        lines.append(f"missing, so initialized afresh: {', '.join(sorted(missing))}")
    if unexpected:
        lines.append(f"unexpected, so not used: {', '.join(sorted(unexpected))}")
    return state.replace(**changed), lines


def _other_heads(own: dict[Path, Any], there: dict[Path, Any]) -> set[Path]:
    """Returns the layers of the head whose kernel or bias has another shape there.

    A bias that fits belongs to the kernel that does not, so neither is loaded.
    """
    return {
        path[:-1]
        for path, array in own.items()
        if path[0] == HEAD and path in there and array.shape != there[path].shape
    }
