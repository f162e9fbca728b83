"""Checkpoints in a workdir, and the configuration that made them."""

import contextlib
import gc
import itertools
import json
import logging
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from vt_flax.errors import UserError, differences, first_line
from vt_flax.training.state import TrainState
from vt_flax.version import __version__

# 2: a fingerprint beside the state; the order of the examples is another.
FORMAT = 2
CONFIG_FILE = "config.json"
# Where checkpoints go that cannot be restored, for whoever wants to look into it.
DAMAGED = "damaged"


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
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                fingerprint=ocp.args.JsonSave(fingerprint(state)),
            )
            self._manager.save(step, args=items)

    def restore(self, like: TrainState, step: int) -> TrainState:
        """Returns the state saved at a step.

        Args:
          like: a state, or its shapes, with the shardings to restore to.
          step: one of `steps()`.

        Raises:
          UserError: if the checkpoint does not hold such a state, or another one than
            was saved.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), fingerprint=ocp.args.JsonRestore()
        )
        reason = ""
        with _quiet():
            try:
                restored = self._manager.restore(step, args=items)
                reason = _changes(restored.state, restored.fingerprint)
            # Orbax raises OSError, KeyError, TypeError, bare Exceptions and more.
            except Exception as error:
                reason = first_line(error) or type(error).__name__
                reason = reason.split(". See full TensorStore details")[0][:300]
            if reason:
                time.sleep(1)  # for what is under way, which the error kept alive
                gc.collect()
        if reason:
            raise UserError(
                f"checkpoint {step} in {self.workdir} cannot be restored ({reason}): "
                "it is damaged or of another model"
            )
        return restored.state

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[int, str]]:
        """Returns the newest state that can be restored.

        Args:
          like: see `restore`.

        Returns:
          The state, and why each newer one was passed over, by step.

        Raises:
          UserError: if none can be restored.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                return self.restore(like, step), damaged
            except UserError as error:
                damaged[step] = str(error)
        raise UserError(
            f"none of {len(damaged)} checkpoints can be restored; "
            f"{next(iter(damaged.values()))}; choose another workdir"
        )

    def set_aside(self, step: int) -> pathlib.Path:
        """Moves a checkpoint to the folder DAMAGED of the workdir; returns where."""
        folder = self.workdir / DAMAGED
        folder.mkdir(exist_ok=True)
        names = (f"{step}{f'.{i}' if i else ''}" for i in itertools.count())
        target = next(folder / n for n in names if not (folder / n).exists())
        (self.workdir / "checkpoints" / str(step)).rename(target)
        self._manager.reload()
        return target

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()


def fingerprint(state: Any) -> dict[str, int]:
    """Returns a sum over the bits of each array, by its path.

    Of 32-bit words by odd weights, modulo 2^32, so that any one word that changes
    changes it. Computed where the arrays are, however they are spread.
    """
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    sums = jax.device_get(_sums([value for _, value in flat]))
    return {
        jax.tree_util.keystr(path): int(value)
        for (path, _), value in zip(flat, sums, strict=True)
    }


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    def one(array: jax.Array) -> jax.Array:
        unsigned = f"uint{8 * array.dtype.itemsize}"
        words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
        place = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    return [one(array) for array in arrays]


def _changes(state: Any, saved: dict[str, int]) -> str:
    """Says which arrays are others than those that were saved, if any.

    Files hold no sum over their arrays' content: a bit that has flipped on the disk
    would be trained on.
    """
    now = fingerprint(state)
    wrong = sorted(key for key in now if now[key] != saved.get(key))
    return f"the content of {', '.join(wrong[:3])} has changed" if wrong else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops the tracebacks of what goes on in the background while restoring fails.

    Orbax reads arrays side by side. When one fails, the others still report to whoever
    waits no more, each with a page on stderr; the failure itself is raised.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    level = logger.level
    sys.unraisablehook = lambda _: None
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.setLevel(level)


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
        raise UserError(
            f"{file} has format {form}; this version reads {FORMAT}: choose another "
            "workdir, or the version of vt_flax that wrote this one"
        )
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
