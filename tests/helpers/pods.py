"""Real processes that train together on this machine."""

import contextlib
import importlib
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax._src import compiler, distributed
from PIL import Image
from quicker import ROUGH, spare_the_collector
from waiting import free_port

from vt_flax.cli import startup
from vt_flax.training.workdir import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A network that compiles in seconds. Its largest arrays are just large enough to be
# spread by `fsdp`.
SMALL = {
    "batch_size": 32,
    "duration": "20 steps",
    "model.stage_sizes": [1, 1, 1, 1],
    "model.project_last": True,
    "model.width": 16,
    "model.token_channels": 128,
    "model.heads": 4,
    "model.group_channels": 16,
    "model.dropout": 0.1,
    "model.survival_probability": 0.9,
    "data.image_size": 8,
    "data.crop_padding": 1,
    "data.eval_split": "test[:45]",
    "data.workers": 1,
    "schedule.learning_rate": 0.01,
    "schedule.warmup": "2 steps",
    "eval.every": "20 steps",
    "checkpoint.every": "5 steps",
    "log.every": "1 steps",
    "log.tensorboard": False,
}


def quick(devices: int) -> dict[str, str]:
    """Returns an environment of so many devices, and of quick compilation."""
    flags = {"xla_force_host_platform_device_count": devices, **ROUGH}
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": " ".join(f"--{name}={value}" for name, value in flags.items()),
    }


def arguments(workdir: Any, changes: dict[str, Any]) -> list[str]:
    """Returns the arguments of `train` for a network; without a name, that of SMALL."""
    base = {} if "model.name" in changes else SMALL
    config = "configs/cifar10.py:resnet18" if not base else "configs/quickstart.py"
    return [
        *("--config", config, "--workdir", str(workdir)),
        *(f"--config.{key}={value}" for key, value in {**base, **changes}.items()),
    ]


# Processes are forked from one that has imported everything and started nothing: to
# import takes longer than most of what they do.
_starter = multiprocessing.get_context("forkserver")
_starter.set_forkserver_preload(
    [
        *("vt_flax.cli.train", "vt_flax.cli.evaluate"),
        *("tensorflow", "vt_flax.data.prepare.digits"),
    ]
)


def _every_process_keeps_its_programs() -> None:
    """Lets all processes write to the cache of programs, not only the first.

    A program for CPUs has another key in each, so that the others would compile theirs
    again in each of their lives.
    """
    write, state = compiler._cache_write, distributed.global_state

    def write_as_the_first(*args: Any) -> None:
        with mock.patch.object(state, "process_id", 0):
            write(*args)

    compiler._cache_write = write_as_the_first


def _run(
    name: str,
    words: Sequence[str],
    devices: int,
    output: pathlib.Path,
    home: str,
    setup: Callable[[], None],
) -> None:
    """Runs `vt_flax NAME`, in a process of its own."""
    spare_the_collector()
    os.chdir(ROOT)
    for stream, file in ((1, output), (2, output.with_suffix(".err"))):
        os.dup2(os.open(file, os.O_WRONLY), stream)
    os.environ.update(quick(devices))
    if home:
        os.environ["HOME"] = home
    # Read when JAX was imported.
    jax.config.update("jax_disable_most_optimizations", True)
    _every_process_keeps_its_programs()
    # As in the tests' own process: see setup.cfg.
    warnings.filterwarnings("error", module="vt_flax")
    setup()
    sys.argv = [name, *words]
    startup.run(importlib.import_module(f"vt_flax.cli.{name}").main)


def _nothing() -> None:
    """Sets up nothing."""


class Process:
    """A command in a process of its own, whose output can be waited for."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        devices: int,
        output: pathlib.Path,
        home: str = "",
        setup: Callable[[], None] = _nothing,
    ):
        self.output = output
        for file in (output, output.with_suffix(".err")):
            file.write_text("")
        self._process = _starter.Process(
            target=_run, args=(name, words, devices, output, home, setup)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> str:
        return self.output.read_text()

    @property
    def err(self) -> str:
        """Returns what it wrote to stderr."""
        return self.output.with_suffix(".err").read_text()

    def wait_for(self, pattern: str, seconds: float = 120) -> None:
        """Waits until it has printed something."""
        limit = time.monotonic() + seconds
        while not re.search(pattern, self.out):
            assert self._process.is_alive(), self.out + self.err
            assert time.monotonic() < limit, self.out + self.err
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self._process.pid, number)

    def end(self, seconds: float = 120) -> int:
        """Waits until it has ended; returns its exit status."""
        self._process.join(seconds)
        assert not self._process.is_alive(), self.out + self.err
        return self._process.exitcode

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def pod(
    folder: pathlib.Path,
    changes: Sequence[dict[str, Any]],
    *,
    devices: int = 1,
    workdirs: Sequence[Any] | None = None,
    extra: Sequence[str] = (),
    command: str = "train",
    homes: Sequence[Any] = (),
    setup: Callable[[], None] = _nothing,
) -> Iterator[list[Process]]:
    """Starts processes that train together, and ends those that are left.

    Args:
      folder: for their output; `run` in it is the workdir.
      changes: of the configuration, for each process.
      devices: of each process.
      workdirs: of each, if they differ.
      extra: arguments of all.
      command: which; another than `train` gets `extra` alone.
      homes: the home folder of each, as on machines of their own.
      setup: a function of a module, called in each before the command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, count = free_port(), len(changes)
    processes = []
    try:
        for i, change in enumerate(changes):
            words = list(extra)
            if command == "train":
                workdir = workdirs[i] if workdirs else folder / "run"
                words += arguments(workdir, change)
            if count > 1:
                words += ["--coordinator", f"127.0.0.1:{port}"]
                words += ["--processes", str(count), "--process", str(i)]
            home = str(homes[i]) if homes else ""
            output = folder / f"{i}.out"
            processes.append(Process(command, words, devices, output, home, setup))
        yield processes
    finally:
        for process in processes:
            process.kill()


def make_images(folder: pathlib.Path) -> tuple[dict[str, Any], pathlib.Path]:
    """Makes images of two classes.

    Returns:
      The changes of a configuration that trains on them for ever, and the last file.
    """
    for i in range(40):
        file = folder / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (6 * i, 0, 0)).save(file)
    changes = {
        "duration": "100000 steps",
        "data.name": f"folder:{folder}",
        "data.train_split": "all",
        "data.eval_split": "all",
    }
    return changes, file


MEASURED = ("loss", "top1", "learning_rate", "grad_norm", "skipped")


def measured(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what a run has measured, without clock and memory."""
    return [
        {k: r[k] for k in ("kind", "step", *MEASURED)} if r["kind"] == "train" else r
        for r in read_metrics(folder / "run")
        if r["kind"] != "checkpoint"
    ]


def last_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of the newest checkpoint by path, as Orbax reads them."""
    saved = folder / "run" / "checkpoints"
    step = max(int(p.name) for p in saved.iterdir() if p.name.isdigit())
    folder = (saved / str(step) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        shapes = checkpointer.metadata(folder).item_metadata.tree
        to_host = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes
        )
        tree = checkpointer.restore(
            folder, args=ocp.args.PyTreeRestore(restore_args=to_host)
        )
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in flat}


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """Compares what two runs measured and their last states, to the bit."""
    assert measured(one) == measured(other)
    a, b = last_arrays(one), last_arrays(other)
    assert a.keys() == b.keys() and len(a) > 100
    for path, value in a.items():
        assert value.tobytes() == b[path].tobytes(), path
