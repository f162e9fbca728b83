"""Checkpoints of a run, written and read by Orbax."""

import asyncio
import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import pathlib
import shutil
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vt_flax.errors import UserError, first_line
from vt_flax.parallel import processes
from vt_flax.parallel.mesh import put_whole
from vt_flax.paths import writing
from vt_flax.training.fingerprint import fingerprint, host_fingerprint
from vt_flax.training.state import TrainState, differing_array

# Orbax logs its progress, and errors that it also raises.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)

# Folder of the workdir for checkpoints that cannot be restored.
DAMAGED = "damaged"
# Name of the metric that selects the best checkpoints.
METRIC = "metric"
# Errors that are reported in the system's words instead of Orbax's.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

# Metrics by name, of each step since the last report.
Window = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Restored:
    """Content of a checkpoint.

    Attributes:
      state: the state.
      window: metrics of the steps that were not reported yet.
      damaged: errors of newer checkpoints that were skipped, by step.
    """

    state: TrainState
    window: Window
    damaged: dict[int, str] = dataclasses.field(default_factory=dict)


class Checkpoints:
    """Checkpoints of a workdir, written in the background, and atomically.

    All processes call the same methods in the same order. Every method raises
    `UserError` if a checkpoint could not be written.

    Args:
      workdir: folder of the run; made where it is missing.
      keep: number of checkpoints to keep.
      read_only: write and remove nothing.
      best: keep those with the highest metric instead of the newest, in the folder
        `best`.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        keep: int = 1,
        *,
        read_only: bool = False,
        best: bool = False,
    ):
        self.workdir, self._keep, self._best = workdir, keep, best
        self.folder = workdir / ("best" if best else "checkpoints")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            best_fn=(lambda metrics: metrics[METRIC]) if best else None,
            create=not read_only,
            read_only=read_only,
            # A killed process may have left one half written.
            cleanup_tmp_directories=not read_only,
        )
        with writing(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder.absolute(), item_handlers=_handlers(), options=options
            )

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step with the highest metric, the first of equal ones, if any."""
        metrics = self._metrics()
        return max(metrics, key=lambda step: (metrics[step], -step), default=None)

    def choose(self, step: int | None) -> int:
        """Returns `step` if it is saved; for None the best or the newest."""
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.folder} holds no checkpoint yet")
        if step is None:
            return self.best_step() if self._best else steps[-1]
        if step not in steps:
            raise UserError(
                f"{self.folder} has no checkpoint of step {step}: choose from "
                f"{', '.join(map(str, steps))}"
            )
        return step

    def save(
        self, step: int, state: TrainState, window: Window = (), metric: float = 0.0
    ) -> None:
        """Starts to write a state, unless its step is saved already.

        Args:
          step: step of the state.
          state: copied before this returns, so that its arrays may be donated after.
          window: see `Restored`.
          metric: selects the best.
        """
        if step in self._manager.all_steps():
            return
        record = {"fingerprint": fingerprint(state), "window": list(window)}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record)
        )
        # Orbax's implicit transfers are errors within the training loop's guard.
        with self._clear_errors(), jax.transfer_guard_device_to_host("allow"):
            # Without `force` Orbax skips steps before the newest, as after a run has
            # resumed from an older checkpoint.
            self._manager.save(step, args=items, metrics={METRIC: metric}, force=True)

    def save_if_best(self, step: int, state: TrainState, metric: float) -> None:
        """Writes a state if it is among the best so far, and waits for it."""
        metrics, replaced = self._metrics(), None
        if step in metrics:
            # The run has resumed from an older checkpoint.
            if metric <= metrics[step]:
                return
            # Orbax does not overwrite. The old one stays until the new one is complete.
            replaced = self.set_aside(step)
        elif len(metrics) >= self._keep and metric <= min(metrics.values()):
            return
        self.save(step, state, metric=metric)
        self.wait()
        if replaced and jax.process_index() == 0:
            shutil.rmtree(replaced)

    def restore(self, like: TrainState, step: int) -> Restored:
        """Returns the content of a checkpoint, sharded like a state or its shapes.

        Each process reads all of it alone. In a collective read, a process that fails
        would leave the others waiting.

        Raises:
          UserError: if a process cannot read it, if it does not fit `like`, or if it
            has changed since it was saved.
        """
        content, problem = None, ""
        try:
            content = read_checkpoint(self.folder / str(step), like)
        except UserError as error:
            problem = str(error)
        problems = processes.gather(f"checkpoint {step}", problem)
        if problem := next(filter(None, problems), ""):
            raise UserError(
                f"checkpoint {step} in {self.workdir} cannot be restored ({problem}): "
                "it is damaged or of another model"
            )
        shardings = jax.tree.map(lambda x: x.sharding, like)
        state = jax.tree.map(put_whole, content.state, shardings)
        return dataclasses.replace(content, state=state)

    def restore_newest(self, like: TrainState) -> Restored:
        """Returns the newest checkpoint that can be restored.

        Raises:
          UserError: if none can be.
        """
        damaged: dict[int, str] = {}
        for step in reversed(processes.broadcast("steps", self.steps())):
            try:
                return dataclasses.replace(self.restore(like, step), damaged=damaged)
            except UserError as error:
                damaged[step] = str(error)
        raise UserError(
            f"none of {len(damaged)} checkpoints can be restored; "
            f"{next(iter(damaged.values()))}; choose another workdir"
        )

    def set_aside(self, step: int) -> pathlib.Path:
        """Moves a checkpoint to the folder DAMAGED; returns its path there."""
        target = None
        if jax.process_index() == 0:
            folder = self.workdir / DAMAGED
            folder.mkdir(exist_ok=True)
            names = (f"{step}{f'.{i}' if i else ''}" for i in itertools.count())
            target = next(folder / n for n in names if not (folder / n).exists())
            (self.folder / str(step)).rename(target)
        target = pathlib.Path(processes.broadcast("set aside", str(target)))
        self._manager.reload()
        return target

    def check(self) -> None:
        """Raises the error of a failed write in the background."""
        with self._clear_errors():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is written."""
        with self._clear_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written, and releases Orbax's threads."""
        with self._clear_errors():
            self._manager.close()

    def _metrics(self) -> dict[int, float]:
        return {step: self._manager.metrics(step)[METRIC] for step in self.steps()}

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turns an error of writing into one line."""
        try:
            yield
        except UserError:
            raise
        # Orbax raises OSError, ValueError, bare Exceptions and more.
        except Exception as error:
            processes.raise_if_lost()
            steps = [int(p.name) for p in self.folder.glob("*") if p.name.isdigit()]
            kept = f"that of step {max(steps):,} is kept; " if steps else ""
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({_reason(error)}): "
                f"{kept}fix it, and run the same command to resume"
            ) from error


def read_checkpoint(folder: pathlib.Path, like: TrainState | None = None) -> Restored:
    """Reads a checkpoint into NumPy arrays, in this process alone.

    Args:
      folder: folder of the checkpoint.
      like: the state, or its shapes; by default all but the optimizer's state is read.

    Raises:
      UserError: if it cannot be read, does not fit `like`, or has changed since it was
        saved. The message is the reason alone.
    """
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index,
        active_processes={index},
        barrier_sync_key_prefix=f"process{index}",
    )
    handlers = _handlers(multiprocessing_options=alone)
    composite = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        **handlers,
    )
    folder = folder.absolute()
    try:
        with ocp.Checkpointer(composite, multiprocessing_options=alone) as reader:
            tree = like or handlers["state"].metadata(folder / "state").tree
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            items = reader.restore(
                folder,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        tree, restore_args=jax.tree.map(lambda _: as_numpy, tree)
                    ),
                    record=ocp.args.JsonRestore(),
                ),
            )
        state, saved = items.state, items.record["fingerprint"]
        if like is None:
            # Without `like`, the optimizer's state has no types.
            state = TrainState(**state | {"opt_state": ()})
        elif path := differing_array(state, like):
            raise UserError(f"{path} has another shape")
        for path, checksum in host_fingerprint(state).items():
            if checksum != saved.get(path):
                raise UserError(f"the content of {path} has changed")
        return Restored(state, items.record["window"])
    # Orbax raises OSError, KeyError, TypeError, bare Exceptions and more.
    except Exception as error:
        raise UserError(_reason(error)) from error


class _NumpyHandler(ocp.type_handlers.NumpyHandler):
    """Orbax's handler, which waits for all reads even when one of them fails.

    Orbax's own closes its event loop on the others, and each prints a traceback.
    """

    async def deserialize(self, infos: Sequence, args: Sequence) -> Sequence:
        read = super().deserialize
        reads = [read([info], [arg]) for info, arg in zip(infos, args, strict=True)]
        results = await asyncio.gather(*reads, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [array for (array,) in results]


def _handlers(**options: Any) -> dict[str, Any]:
    """Returns Orbax's handlers of the items of a checkpoint.

    Each array is written by the first device that holds it. By default all devices with
    a copy write a slice each, which blocks the loop four times as long with 8 devices.
    """
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, _NumpyHandler())
    )
    return {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry, **options),
        "record": ocp.JsonCheckpointHandler(**options),
    }


def _reason(error: Exception) -> str:
    """Returns one line about an error of Orbax or TensorStore."""
    # They hide the system's error in a chain of exceptions of many lines.
    lines = "".join(traceback.format_exception(error))
    for message in map(os.strerror, DISK_ERRORS):
        if message in lines:
            return message
    return (first_line(error) or type(error).__name__)[:300]
