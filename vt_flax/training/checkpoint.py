"""Checkpoints in a workdir, and the configuration that made them."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.training.config import differences
from vt_flax.training.state import TrainState
from vt_flax.version import __version__

FORMAT = 1
CONFIG_FILE = "config.json"


class Checkpoints:
    """The checkpoints of a workdir: written beside the training, whole or not at all.

    Args:
      workdir: folder of the run; made where it is missing.
      keep: how many of the newest to keep.
    """

    def __init__(
        self, workdir: pathlib.Path, keep: int = 1, *, read_only: bool = False
    ):
        self.workdir = workdir
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=not read_only, read_only=read_only
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps of the whole checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Starts to write a state; a step that is there already is left alone."""
        step = int(state.step)
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: TrainState, step: int) -> TrainState:
        """Returns the state saved at a step.

        Args:
          like: a state, or its shapes, with the shardings to restore to.
          step: one of `steps()`.

        Raises:
          UserError: if the checkpoint does not hold such a state.
        """
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(like))
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = str(error).strip().split("\n", 1)[0][:300]
            raise UserError(
                f"checkpoint {step} in {self.workdir} cannot be restored ({reason}): "
                "it is damaged or of another model; choose another workdir"
            ) from error

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()


def write_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes the resolved configuration and the formats' versions to the workdir."""
    text = json.dumps(
        {"format": FORMAT, "vt_flax": __version__, "config": config.to_dict()}, indent=2
    )
    file = workdir / CONFIG_FILE
    partial = file.with_suffix(".tmp")
    partial.write_text(text + "\n")
    partial.replace(file)


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the configuration of the run in a workdir.

    Raises:
      UserError: if there is none, or not one that this version reads.
    """
    file = workdir / CONFIG_FILE
    try:
        content = json.loads(file.read_text())
        form, config = content["format"], content["config"]
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no run ({CONFIG_FILE} is missing)") from None
    except (json.JSONDecodeError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error!r}") from error
    if form != FORMAT:
        raise UserError(f"{file} has format {form}; this version reads {FORMAT}")
    return config


def check_same_run(workdir: pathlib.Path, config: ConfigDict) -> list[str]:
    """Checks that a workdir's run may go on under a configuration.

    Returns:
      What differs, a line each; empty for a new run.

    Raises:
      UserError: if its model, optimizer or averages are others, whose state would not
        fit, or its dataset, seed or batch size, which fix the order of the examples.
    """
    if not (workdir / CONFIG_FILE).exists():
        if (workdir / "checkpoints").is_dir() and any(
            (workdir / "checkpoints").iterdir()
        ):
            raise UserError(
                f"{workdir} has checkpoints but no {CONFIG_FILE}: choose another "
                "workdir"
            )
        return []
    old = read_config(workdir)
    lines = differences(old, config.to_dict())
    fixed = (
        "model.",
        "optimizer.name:",
        "seed:",
        "batch_size:",
        "data.name:",
        "data.train_split:",
    )
    clashes = [line for line in lines if line.startswith(fixed)]
    # Switched on or off, these change what a state holds.
    for section, key in (("ema", "decay"), ("optimizer", "momentum")):
        if bool(old[section][key]) != bool(config[section][key]):
            clashes += [line for line in lines if line.startswith(f"{section}.{key}:")]
    if clashes:
        raise UserError(
            f"{workdir} holds another run ({'; '.join(clashes[:3])}"
            f"{'; ...' if len(clashes) > 3 else ''}): choose another workdir"
        )
    return lines


def abstract_like(state: Any, sharding: Any) -> Any:
    """Returns the shapes of a state with one sharding for all of its arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
