"""Start of a command: its processes, and its errors in one line."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import logging
from ml_collections import ConfigDict

from vt_flax.errors import UserError
from vt_flax.parallel import processes
from vt_flax.parallel.cluster import find_cluster
from vt_flax.texts import printable
from vt_flax.version import versions

# Packages of the extra `train`.
TRAINING = (
    *("array_record", "jinja2", "matplotlib", "sklearn", "tensorboardX", "tensorflow"),
    "tensorflow_datasets",
)


def join_processes(args: argparse.Namespace) -> None:
    """Starts JAX over all processes of a run: see `processes.join`."""
    cluster = find_cluster(args.coordinator, args.processes, args.process)
    processes.join(cluster, args.start_seconds)


def agree(command: str, config: ConfigDict) -> None:
    """Checks that all processes run the same, and sets up timeouts and devices."""
    # Imports JAX, which some commands do not need.
    from vt_flax.parallel.devices import set_up_devices

    options = {"command": command, "versions": versions(), **config.to_dict()}
    advice = "start the same command with the same code on all"
    processes.check_equal("differs from", options, advice)
    processes.set_timeouts(
        config.parallel.heartbeat_timeout, config.parallel.progress_timeout
    )
    set_up_devices(config)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command; a `UserError` is printed as one line, with its exit status.

    A process that fails ends the others of its run, with the same line.

    Args:
      main: takes the arguments, without the program's name.
    """
    # Orbax and TFDS log their progress, and errors that they also raise.
    logging.set_verbosity(logging.FATAL)
    _disable_x64()
    try:
        with processes.failing_together():
            main(sys.argv[1:])
            processes.finish()
    except UserError as error:
        line = error.label + printable(" ".join(str(error).split()))
        _end(line, error.status, together=error.everywhere)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in TRAINING:
            extra = "pip install 'vt_flax[train]', for datasets, training and pictures"
            _end(f"error: {error.name} is not installed: {extra}", UserError.status)
        _end(traceback.format_exc().rstrip(), 1)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:
        # The reader of the output, such as `head`, has exited.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end("", 141)
    except Exception:
        _end(traceback.format_exc().rstrip(), 1)


def _disable_x64() -> None:
    """Turns `JAX_ENABLE_X64` off, here and in child processes.

    Types are configured, so it would only change random numbers.
    """
    os.environ["JAX_ENABLE_X64"] = "0"
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_enable_x64", False)


def _end(line: str, status: int, together: bool = False) -> None:
    """Prints why this process ends, and ends it.

    Args:
      line: the reason; empty for none.
      status: exit status.
      together: whether all processes of the run raise the same error.
    """
    if line:
        print(line, file=sys.stderr, flush=True)
    if together:
        processes.finish()
    processes.end(status)
