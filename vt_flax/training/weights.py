"""Weights of another run's checkpoint, read on the host or loaded into a state."""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import put_whole
from vt_flax.paths import typed_path
from vt_flax.training.checkpoint import read_checkpoint
from vt_flax.training.state import TrainState, weights_of

# Fields of a state that a network is applied with.
PARTS = ("params", "batch_stats")
# Module that is initialized afresh where the classes differ.
HEAD = "head"


def variable_shapes(model: nn.Module, image_size: tuple[int, int]) -> dict[str, Any]:
    """Returns the shapes of a network's PARTS, for images of a height and width."""
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return {part: shapes.get(part, {}) for part in PARTS}


def find_checkpoint(option: str, place: str) -> pathlib.Path:
    """Returns the folder of a checkpoint: a workdir's newest, or the place itself.

    `place` is a workdir or a checkpoint's own folder, such as WORKDIR/best/1000, and
    `option`, for messages, the option that named it.

    Raises:
      UserError: if there is no checkpoint.
    """
    folder = typed_path(place)
    if (folder / "state").is_dir():
        return folder
    inside = folder / "checkpoints"
    steps = [int(p.name) for p in inside.glob("[0-9]*") if p.name.isdigit()]
    if not steps:
        raise UserError(
            f"{option} {place}: no checkpoint is there; name a workdir, or a folder "
            "such as WORKDIR/best/STEP"
        )
    return inside / str(max(steps))


def read_weights(option: str, folder: pathlib.Path) -> tuple[dict[str, Any], str]:
    """Returns the EMA weights of a checkpoint, or the raw ones if no EMA was kept.

    Returns:
      {"params", "batch_stats"}, trees of NumPy arrays; and their name, `ema` or `raw`.

    Raises:
      UserError: if it cannot be read, or has changed since it was saved.
    """
    try:
        state = read_checkpoint(folder).state
    except UserError as error:
        raise UserError(f"{option} {folder}: cannot be read ({error})") from error
    name, weights = list(weights_of(state).items())[-1]
    return dict(zip(PARTS, weights, strict=True)), name


def initialize(state: TrainState, place: str) -> tuple[TrainState, list[str]]:
    """Loads the weights of a checkpoint into a state at step 0.

    Every array is loaded where the model has one of its name and shape: of a ResNet all
    but the head into the backbone of a segmentation network. The EMA starts from them.
    For `place` see `find_checkpoint`.

    Returns:
      The state, and lines about the loaded, missing and unexpected modules.

    Raises:
      UserError: if there is no checkpoint, no array fits, or one outside the head has
        another shape.
    """
    folder = find_checkpoint("init_from", place)
    weights, name = read_weights("init_from", folder)
    # By path: (part, module, ..., array).
    saved = traverse_util.flatten_dict(weights)
    arrays = traverse_util.flatten_dict({part: getattr(state, part) for part in PARTS})
    mismatched = [p for p in arrays if p in saved and saved[p].shape != arrays[p].shape]
    for path in mismatched:
        if path[1] != HEAD:
            theirs, ours = saved[path].shape, arrays[path].shape
            raise UserError(
                f"init_from {place}: {'/'.join(path[1:])} has shape {theirs} there, "
                f"{ours} here: choose the same options of the model"
            )
    # Of a layer of the head, all arrays are loaded or none.
    other_layers = {path[:-1] for path in mismatched}
    loaded = [p for p in arrays if p in saved and p[:-1] not in other_layers]
    missing = ", ".join(sorted({path[1] for path in arrays.keys() - set(loaded)}))
    unexpected = ", ".join(sorted({path[1] for path in saved.keys() - arrays.keys()}))
    if not loaded:
        raise UserError(
            f"init_from {place}: no array fits; it holds {unexpected}, the model "
            f"{missing}"
        )
    for path in loaded:
        value = np.asarray(saved[path], arrays[path].dtype)
        arrays[path] = put_whole(value, arrays[path].sharding)
    changed = dict.fromkeys(PARTS, {}) | traverse_util.unflatten_dict(arrays)
    if state.ema_params:
        # A donated state must not hold one buffer twice.
        copies = jax.tree.map(jnp.copy, changed)
        changed |= {f"ema_{part}": tree for part, tree in copies.items()}
    lines = [f"loaded {len(loaded)} arrays from {folder} ({name} weights)"]
    if missing:
        lines.append(f"missing, so initialized afresh: {missing}")
    if unexpected:
        lines.append(f"unexpected, so not used: {unexpected}")
    return state.replace(**changed), lines
