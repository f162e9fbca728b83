"""Checkpoints in a workdir, and the configuration that made them."""

import contextlib
import dataclasses
import errno as errnos
import functools
import gc
import itertools
import json
import logging
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from vt_flax.data.source import Source
from vt_flax.errors import UserError, differences, first_few, first_line
from vt_flax.locks import Held, lock
from vt_flax.parallel import processes
from vt_flax.parallel.agreement import digest
from vt_flax.paths import write_whole
from vt_flax.training.state import TrainState
from vt_flax.version import __version__

# 2: a fingerprint beside the state; the order of the examples is another. 3: the
# metrics that are not reported yet beside both. 4: the best by whatever metric;
# the classes beside the configuration.
FORMAT = 4
CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
# Where checkpoints go that cannot be restored, for whoever wants to look into it.
DAMAGED = "damaged"
# By which the best are kept, in Orbax's record of a checkpoint.
METRIC = "metric"

# The metrics of some steps, by name.
Window = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
      state: the state.
      window: metrics of the steps since the last report.
      damaged: why each newer checkpoint was passed over, by step.
    """

    state: TrainState
    window: Window
    damaged: dict[int, str]


class Checkpoints:
    """The checkpoints of a workdir: written beside the training, whole or not at all.

    Of several processes each makes one, and all call the same methods in turn.

    Args:
      workdir: folder of the run; made where it is missing.
      keep: how many to keep.
      read_only: nothing is written or removed.
      best: keeps the best instead of the newest, in a folder of their own.

    Raises:
      UserError: if the folder cannot be made.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        keep: int = 1,
        *,
        read_only: bool = False,
        best: bool = False,
    ):
        _hush()
        self.workdir, self._keep, self._best = workdir, keep, best
        self.folder = workdir / ("best" if best else "checkpoints")
        options: dict[str, Any] = {"create": not read_only, "read_only": read_only}
        if best:
            options["best_fn"] = lambda metrics: metrics[METRIC]
        if not read_only:
            # What a process that was killed has left half written.
            options["cleanup_tmp_directories"] = True
        try:
            self._manager = ocp.CheckpointManager(
                self.folder.absolute(),
                item_handlers=_handlers(),
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, **options),
            )
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror or error}") from error

    def steps(self) -> list[int]:
        """Returns the steps of the whole checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step of the best, if any; of equals the first."""
        values = self._values()
        return max(values, key=lambda step: (values[step], -step), default=None)

    def choose(self, step: int | None) -> int:
        """Returns a step that is there: the one asked for, the best or the newest.

        Raises:
          UserError: if there is none, or not that one.
        """
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
        """Starts to write a state; a step that is there already is left alone.

        Args:
          step: the state's.
          state: what is written. It is copied first: its arrays may be donated after.
          window: see `Restored`.
          metric: what the best are kept by.

        Raises:
          UserError: if this one, or the one before, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        record = {"fingerprint": fingerprint(state), "window": list(window)}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record)
        )
        # Orbax fetches arrays implicitly, which the guard around the training steps
        # rejects on accelerators.
        with self._told(), jax.transfer_guard_device_to_host("allow"):
            # Orbax would leave out, in silence, a step before the newest: of a run that
            # has gone back the best may be ahead of it.
            self._manager.save(step, args=items, metrics={METRIC: metric}, force=True)

    def save_if_best(self, step: int, state: TrainState, metric: float) -> bool:
        """Saves a state if it is among the best so far; tells whether it is.

        When this returns it is written.
        """
        values = self._values()
        if step in values:
            # A run that has gone back came by here before.
            if metric <= values[step]:
                return False
            with self._told():
                self._manager.delete(step)
        elif len(values) >= self._keep and metric <= min(values.values()):
            return False
        self.save(step, state, metric=metric)
        self.wait()
        return True

    def _values(self) -> dict[int, float]:
        return {step: self._manager.metrics(step)[METRIC] for step in self.steps()}

    def restore(self, like: TrainState, step: int) -> Restored:
        """Returns what was saved at a step.

        Args:
          like: a state, or its shapes, with the shardings to restore to.
          step: one of `steps()`.

        Raises:
          UserError: if the checkpoint does not hold such a state, or another one than
            was saved.
        """

        def read() -> Restored:
            items = self._manager.restore(step, args=_wanted(like))
            wrong = changes(fingerprint(items.state), items.record["fingerprint"])
            return wrong or Restored(items.state, items.record["window"], {})

        found = self._attempt(read)
        if isinstance(found, str):
            raise UserError(self._unusable(step, found))
        return found

    def restore_newest(self, like: TrainState) -> Restored:
        """Returns the newest that can be restored.

        Args:
          like: see `restore`.

        Raises:
          UserError: if none can be.
        """
        damaged: dict[int, str] = {}
        for step in reversed(processes.gather("steps", self.steps())[0]):
            try:
                self._check_alone(like, step)
                restored = self.restore(like, step)
                return dataclasses.replace(restored, damaged=damaged)
            except UserError as error:
                damaged[step] = str(error)
        raise UserError(
            f"none of {len(damaged)} checkpoints can be restored; "
            f"{next(iter(damaged.values()))}; choose another workdir"
        )

    def _check_alone(self, like: TrainState, step: int) -> None:
        """Has process 0 alone look whether all of a checkpoint can be restored.

        Else one of several that cannot read its part would leave the others waiting.
        """
        if jax.process_count() == 1:
            return

        def read() -> str:
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone"
            )
            # On the host: devices of the others are out of reach.
            wanted = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
            with ocp.Checkpointer(
                ocp.CompositeCheckpointHandler(
                    composite_options=ocp.CompositeOptions(
                        multiprocessing_options=alone
                    ),
                    **_handlers(multiprocessing_options=alone),
                ),
                multiprocessing_options=alone,
            ) as checkpointer:
                folder = (self.folder / str(step)).absolute()
                items = checkpointer.restore(folder, args=_wanted(wanted))
            found = host_fingerprint(items.state)
            return changes(found, items.record["fingerprint"])

        reason = self._attempt(read) if jax.process_index() == 0 else ""
        reason = processes.gather(f"checkpoint {step}", reason)[0]
        if reason:
            raise UserError(self._unusable(step, reason))

    def _attempt(self, read: Callable[[], Any]) -> Any:
        """Returns what is read, or why nothing can be, in words."""
        with quiet():
            try:
                return read()
            # Orbax raises OSError, KeyError, TypeError, bare Exceptions and more.
            except Exception as error:
                processes.raise_if_lost()
                reason = _reason(error)
            time.sleep(1)  # for what is under way, which the error kept alive
            gc.collect()
        return reason

    def _unusable(self, step: int, reason: str) -> str:
        return (
            f"checkpoint {step} in {self.workdir} cannot be restored ({reason}): it is "
            "damaged or of another model"
        )

    def set_aside(self, step: int) -> pathlib.Path:
        """Moves a checkpoint to the folder DAMAGED of the workdir; returns where."""
        folder = self.workdir / DAMAGED
        names = (f"{step}{f'.{i}' if i else ''}" for i in itertools.count())
        target = next(folder / n for n in names if not (folder / n).exists())
        processes.gather("damaged", str(target))
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
        processes.gather("set aside", str(target))
        self._manager.reload()
        return target

    def check(self) -> None:
        """Raises what went wrong in the background.

        Raises:
          UserError: if a checkpoint could not be written.
        """
        with self._told():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          UserError: if it could not be.
        """
        with self._told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written, and ends.

        Raises:
          UserError: if it could not be.
        """
        with self._told():
            self._manager.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Makes a clear line of what a write failed for."""
        try:
            yield
        except UserError:
            raise
        # As many kinds as in restoring.
        except Exception as error:
            processes.raise_if_lost()
            kept = [p.name for p in self.folder.glob("[0-9]*") if p.name.isdigit()]
            kept = sorted(kept, key=int)
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({_reason(error)}): "
                + (f"that of step {int(kept[-1]):,} is kept; " if kept else "")
                + "mend it, and run the same command to go on"
            ) from error


def _handlers(**options: Any) -> dict[str, Any]:
    """Returns what reads and writes the parts of a checkpoint.

    Each array is written by the first device that holds it. Orbax by itself has all
    devices with a copy write a slice each, for which it cuts every array on each of
    them while the loop waits: four times as long, with 8 devices.
    """
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry, **options),
        "record": ocp.JsonCheckpointHandler(**options),
    }


def _wanted(like: Any) -> ocp.args.Composite:
    as_it_is = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.Composite(
        state=ocp.args.PyTreeRestore(like, restore_args=as_it_is),
        record=ocp.args.JsonRestore(),
    )


def _reason(error: Exception) -> str:
    """Returns what went wrong, of the pages that Orbax and TensorStore make of it."""
    # The system's own words, where they are to be found.
    for errno in (errnos.ENOSPC, errnos.EDQUOT, errnos.EROFS, errnos.EFBIG):
        words = os.strerror(errno)
        cause: BaseException | None = error
        while cause is not None:
            if words in str(cause):
                return words
            cause = cause.__cause__ or cause.__context__
    reason = first_line(error) or type(error).__name__
    return reason.split(". See full TensorStore details")[0][:300]


def fingerprint(state: Any) -> dict[str, int]:
    """Returns a sum over the bits of each array, by its path.

    Of 32-bit words by odd weights, modulo 2^32, so that any one word that changes
    changes it. Computed where the arrays are, however they are spread.
    """
    paths, arrays = _flat(state)
    sums = jax.device_get(_sums(arrays))
    return dict(zip(paths, map(int, sums), strict=True))


def host_fingerprint(state: Any) -> dict[str, int]:
    """Returns `fingerprint`, computed by the host."""

    def one(array: np.ndarray) -> int:
        unsigned = np.dtype(f"uint{8 * array.dtype.itemsize}")
        words = np.ascontiguousarray(array).view(unsigned).astype(np.uint32).ravel()
        odd = 2 * np.arange(words.size, dtype=np.uint32) + np.uint32(1)
        return int(np.sum(words * odd, dtype=np.uint32))

    paths, arrays = _flat(state)
    return dict(zip(paths, map(one, map(np.asarray, arrays)), strict=True))


def _flat(state: Any) -> tuple[list[str], list[Any]]:
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    return [jax.tree_util.keystr(path) for path, _ in flat], [x for _, x in flat]


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    def one(array: jax.Array) -> jax.Array:
        unsigned = f"uint{8 * array.dtype.itemsize}"
        words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
        place = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    return [one(array) for array in arrays]


def changes(now: dict[str, int], saved: dict[str, int]) -> str:
    """Says which arrays are others than those that were saved, if any.

    Files hold no sum over their arrays' content: a bit that has flipped on the disk
    would be trained on.
    """
    wrong = sorted(key for key in now if now[key] != saved.get(key))
    return f"the content of {', '.join(wrong[:3])} has changed" if wrong else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


@functools.cache
def _hush() -> None:
    """Drops, for good, what else follows an array that could not be written.

    It comes from threads in the background, at any time, a page for each of the other
    arrays; the failure itself is raised.
    """

    def without_echoes(hook: Callable, arguments: Callable) -> Callable:
        def filtered(*args) -> None:
            if str(arguments(*args)) != "Event loop is closed":
                hook(*args)

        return filtered

    sys.excepthook = without_echoes(sys.excepthook, lambda _, error, __: error)
    sys.unraisablehook = without_echoes(
        sys.unraisablehook, lambda unraisable: unraisable.exc_value
    )
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of a workdir, on process 0.

    File systems that know no locks are taken as they are.

    Raises:
      UserError: if another run is at work there.
    """
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(lock(workdir / LOCK_FILE))
            except Held:
                raise UserError(
                    f"another run is at work in {workdir}: wait for it, or end it"
                ) from None
            except OSError as error:
                raise UserError(
                    f"--workdir {workdir}: {error.strerror or error}"
                ) from error
        yield


def write_config(
    workdir: pathlib.Path,
    config: ConfigDict,
    class_names: Sequence[str],
    mirrored: Sequence[int],
    teacher: str = "",
    data: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a run is to its workdir.

    Args:
      workdir: folder of the run.
      config: the resolved configuration.
      class_names: of the dataset, for those who use the network without it.
      mirrored: see `Source`.
      teacher: which weights teach, if any do; see `Teacher.load`.
      data: what `trained_on` says of the training split.
    """
    content = {
        "format": FORMAT,
        "vt_flax": __version__,
        "config": config.to_dict(),
        "class_names": list(class_names),
        "mirrored": list(mirrored),
        "teacher": teacher,
        "data": data,
    }
    write_whole(workdir / CONFIG_FILE, json.dumps(content, indent=2) + "\n")


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the configuration of the run in a workdir; see `read_run`."""
    return read_run(workdir)["config"]


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what `write_config` wrote to a workdir.

    Raises:
      UserError: if there is nothing, or nothing that this version reads.
    """
    file = workdir / CONFIG_FILE
    try:
        content = json.loads(file.read_text())
        form, _ = content["format"], content["config"]
    except FileNotFoundError:
        # The folder of a checkpoint may have been named.
        folders = [workdir, *workdir.parents]
        inside = [p.parent for p in folders if p.name in ("checkpoints", "best")]
        hint = f": name the run's folder, {inside[0]}" if inside else ""
        raise UserError(
            f"{workdir} holds no run ({CONFIG_FILE} is missing){hint}"
        ) from None
    except NotADirectoryError:
        raise UserError(f"{workdir} is a file: name a run's folder") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read: it is damaged, or not of a run of vt_flax's "
            f"({type(error).__name__}: {error})"
        ) from error
    if form != FORMAT:
        raise UserError(
            f"{file} has format {form}; this version reads {FORMAT}: choose another "
            "workdir, or the version of vt_flax that wrote this one"
        )
    return content


def trained_on(source: Source) -> dict[str, Any]:
    """Returns what a run notes of its training split, to see whether it changes."""
    return {"examples": len(source), "identity": digest(source.identity())}


def check_classes(
    run: Mapping[str, Any], workdir: pathlib.Path, config: ConfigDict, source: Source
) -> str:
    """Checks that a dataset's classes are those that a run has learnt.

    Args:
      run: see `read_run`.
      workdir: the run's, for the message.
      config: what is configured now.
      source: a split of its dataset.

    Returns:
      What differs where the dataset is another than the run's: names may be others
      there that mean the same. Empty if nothing does.

    Raises:
      UserError: if the run's own dataset differs, or the number of classes does.
    """
    old, new = run["class_names"], source.class_names
    lines = _other_classes(old, new)
    if not lines:
        return ""
    told = (
        f"{source.name} has other classes than the run in {workdir}: {first_few(lines)}"
    )
    if config.data.name == run["config"]["data"]["name"] or len(old) != len(new):
        raise UserError(told)
    return told


def check_same_run(
    workdir: pathlib.Path,
    config: ConfigDict,
    teacher: str = "",
    class_names: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> list[str]:
    """Checks that a workdir's run may go on with what it is told, and finds.

    Args:
      workdir: folder of the run.
      config: the resolved configuration.
      teacher: see `write_config`.
      class_names: likewise; empty: not compared.
      data: likewise; None: not compared.

    Returns:
      What differs, a line each; empty for a new run.

    Raises:
      UserError: if its model, optimizer or averages are others, whose state would not
        fit; or its dataset, seed or batch size, which fix the order of the examples; or
        what the classes mean.
    """
    try:
        if workdir.is_file():
            raise UserError(f"--workdir {workdir} is a file: name a folder")
        new = not (workdir / CONFIG_FILE).exists()
        folder = workdir / "checkpoints"
        if new and folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"{workdir} has checkpoints but no {CONFIG_FILE}: choose another "
                "workdir"
            )
    except OSError as error:
        # Of what may not be looked into.
        raise UserError(f"--workdir {workdir}: {error.strerror or error}") from error
    if new:
        return []
    content = read_run(workdir)
    old, taught = content["config"], content.get("teacher", "")
    lines = differences(old, config.to_dict())
    fixed = (
        "model.",
        "optimizer.name:",
        "seed:",
        "batch_size:",
        "data.name:",
        "data.train_split:",
        "segmentation.label_map:",
        "segmentation.mask_feature:",
    )
    # All formulations have the same parameters.
    clashes = [
        line
        for line in lines
        if line.startswith(fixed) and not line.startswith("model.formulation:")
    ]
    # Switched on or off, these change what a state holds.
    for section, key in (("ema", "decay"), ("optimizer", "momentum")):
        if bool(old[section][key]) != bool(config[section][key]):
            clashes += [line for line in lines if line.startswith(f"{section}.{key}:")]
    if class_names:
        clashes += _other_classes(content["class_names"], class_names)
    # Workdirs of before have nothing of it.
    if data and content.get("data"):
        clashes += _other_data(content["data"], data)
    if clashes:
        raise UserError(
            f"{workdir} holds another run ({first_few(clashes)}): choose another "
            "workdir"
        )
    # A workdir may stay the teacher's while its newest weights do not.
    if teacher and taught and teacher != taught:
        lines.append(f"the teacher: {taught} -> {teacher}")
    return lines


def _other_classes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    if len(old) != len(new):
        # A workdir may have none, and classes by their numbers.
        return [f"classes: {len(old)} -> {len(new)}"] if old else []
    pairs = enumerate(zip(old, new, strict=True))
    return [f"class {i}: {a!r} -> {b!r}" for i, (a, b) in pairs if a != b]


def _other_data(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    if old["examples"] != new["examples"]:
        return [f"examples to train on: {old['examples']:,} -> {new['examples']:,}"]
    if old["identity"] != new["identity"]:
        return ["the examples to train on are others, or of another version"]
    return []


def abstract_like(state: Any, shardings: Any) -> Any:
    """Returns the shapes of a state, with a sharding for each of its arrays."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        shardings,
    )
