"""Weights of another run's checkpoint, read on the host or loaded into a state."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.parallel.mesh import put_whole
from vt_flax.paths import typed_path
from vt_flax.training.checkpoint import attempt, read_on_host
from vt_flax.training.fingerprint import changed_arrays, host_fingerprint
from vt_flax.training.state import TrainState

# Parts of a state that a network is applied with.
PARTS = ("params", "batch_stats")
# Module that is initialized afresh where the classes differ.
HEAD = "head"


def find_checkpoint(option: str, place: str) -> pathlib.Path:
    """Returns the folder of a checkpoint.

    Args:
      option: option that named the place, for messages.
      place: a workdir, of which the newest is taken; or a checkpoint's own folder, such
        as WORKDIR/best/1000.

    Raises:
      UserError: if there is none.
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

    Args:
      option: option that named the place, for messages.
      folder: see `find_checkpoint`.

    Returns:
      {"params", "batch_stats"}, trees of NumPy arrays; and their name, `ema` or `raw`.

    Raises:
      UserError: if it cannot be read, or has changed since it was saved.
    """
    found, problem = attempt(lambda: read_on_host(folder))
    if not problem:
        state, record = found
        # Paths there are those of a `TrainState`.
        now = {
            f".{part}{path}": checksum
            for part in state
            if part.removeprefix("ema_") in PARTS
            for path, checksum in host_fingerprint(state[part]).items()
        }
        problem = changed_arrays(now, record["fingerprint"])
    if problem:
        raise UserError(f"{option} {folder}: cannot be read ({problem})")
    name, prefix = ("ema", "ema_") if state.get("ema_params") else ("raw", "")
    return {part: state.get(f"{prefix}{part}") or {} for part in PARTS}, name


def differing_array(weights: Any, shapes: Any) -> str:
    """Returns the path of the first array of another shape; empty if there is none."""
    found, wanted = (
        {path: x.shape for path, x in traverse_util.flatten_dict(tree).items()}
        for tree in (weights, shapes)
    )
    paths = sorted(found.keys() | wanted.keys())
    different = (path for path in paths if found.get(path) != wanted.get(path))
    return "/".join(next(different, ()))


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
        mismatched = {
            path
            for path, array in arrays.items()
            if path in saved and saved[path].shape != array.shape
        }
        # A layer of the head is loaded whole or not at all.
        other_heads = {path[:-1] for path in mismatched if path[0] == HEAD}
        for path, array in arrays.items():
            if path not in saved or path[:-1] in other_heads:
                missing.add(path[0])
                continue
            if path in mismatched:
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
