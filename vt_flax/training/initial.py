"""Initial weights from another run, of the same network or of its backbone."""

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


def initialize(state: TrainState, place: str) -> tuple[TrainState, list[str]]:
    """Loads the weights of a checkpoint into a state at step 0.

    Every array is loaded where the model has one of its name and shape: of a ResNet all
    but the head into the backbone of a segmentation network. The EMA starts from them.

    Args:
      state: the state, where it is trained.
      place: see `find_checkpoint`.

    Returns:
      The state, and lines about the loaded, missing and unexpected modules.

    Raises:
      UserError: if there is no checkpoint, no array fits, or one outside the head has
        another shape.
    """
    folder = find_checkpoint("init_from", place)
    weights, name = read_weights("init_from", folder)
    loaded, missing, unexpected, changed = 0, set(), set(), {}
    for part in PARTS:
        arrays = traverse_util.flatten_dict(getattr(state, part))
        saved = traverse_util.flatten_dict(weights[part])
        others = {
            path
            for path, array in arrays.items()
            if path in saved and saved[path].shape != array.shape
        }
        # A bias that fits belongs to a kernel that may not, so neither is loaded.
        other_heads = {path[:-1] for path in others if path[0] == HEAD}
        for path, array in arrays.items():
            if path not in saved or path[:-1] in other_heads:
                missing.add(path[0])
                continue
            if path in others:
                raise UserError(
                    f"init_from {place}: {'/'.join(path)} has shape "
                    f"{saved[path].shape} there, {array.shape} here: choose the same "
                    "options of the model"
                )
            value = np.asarray(saved[path], array.dtype)
            arrays[path] = put_whole(value, array.sharding)
            loaded += 1
        unexpected |= {path[0] for path in saved if path not in arrays}
        changed[part] = traverse_util.unflatten_dict(arrays)
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
