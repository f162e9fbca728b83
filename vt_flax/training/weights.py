"""Weights of a checkpoint, read on the host without the run that made them."""

import pathlib
from typing import Any

from flax import traverse_util

from vt_flax.errors import UserError
from vt_flax.paths import typed_path
from vt_flax.training.checkpoint import attempt, read_on_host
from vt_flax.training.fingerprint import changed_arrays, host_fingerprint

# Parts of a state that a network is applied with.
PARTS = ("params", "batch_stats")


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
