"""The weights of a checkpoint, read on the host without the run that made them."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from vt_flax.errors import UserError, first_line
from vt_flax.paths import typed_path
from vt_flax.training.checkpoint import changes, host_fingerprint, quiet

# Of a state, what a network is applied with.
PARTS = ("params", "batch_stats")


def find_checkpoint(option: str, place: str) -> pathlib.Path:
    """Returns the folder of a checkpoint.

    Args:
      option: by which the place was named, for messages.
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
    """Returns the averaged weights of a checkpoint, or the raw ones if none are kept.

    Args:
      option: by which the place was named, for messages.
      folder: see `find_checkpoint`.

    Returns:
      {"params", "batch_stats"}, trees of NumPy arrays; and their name, `ema` or `raw`.

    Raises:
      UserError: if it cannot be read, or holds something else than was saved.
    """
    with quiet():
        try:
            state, record = _read(folder.absolute())
            problem = _changed(state, record["fingerprint"])
        # Orbax raises OSError, KeyError, TypeError, bare Exceptions and more.
        except Exception as error:
            problem = first_line(error)[:200] or type(error).__name__
    if problem:
        raise UserError(f"{option} {folder}: cannot be read ({problem})")
    name, prefix = ("ema", "ema_") if state.get("ema_params") else ("raw", "")
    return {part: state.get(f"{prefix}{part}") or {} for part in PARTS}, name


def differing_array(weights: Any, shapes: Any) -> str:
    """Returns the path of the first array whose shape is another, or "" if none is."""
    found, wanted = (
        {path: x.shape for path, x in traverse_util.flatten_dict(tree).items()}
        for tree in (weights, shapes)
    )
    paths = sorted(found.keys() | wanted.keys())
    different = (path for path in paths if found.get(path) != wanted.get(path))
    return "/".join(next(different, ()))


def _read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        shapes = checkpointer.metadata(folder / "state").item_metadata.tree
        to_host = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes
        )
        state = checkpointer.restore(
            folder / "state", args=ocp.args.PyTreeRestore(restore_args=to_host)
        )
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        record = checkpointer.restore(folder / "record", args=ocp.args.JsonRestore())
    return state, record


def _changed(state: dict[str, Any], saved: dict[str, int]) -> str:
    """Says which weights are others than those that were saved, if any."""
    kept = {k: state[k] for k in state if k.removeprefix("ema_") in PARTS and state[k]}
    found = {}
    for path, total in host_fingerprint(kept).items():
        # Of a dict `['params']['stem']`, of a state `.params['stem']`.
        part, _, rest = path.removeprefix("['").partition("']")
        found[f".{part}{rest}"] = total
    return changes(found, saved)
