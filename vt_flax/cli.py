"""What the front doors share: arguments, one-line errors, tables."""

import argparse
import ast
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from vt_flax.errors import UserError, first_line
from vt_flax.parallel import processes
from vt_flax.parallel.cluster import find_cluster
from vt_flax.paths import typed_path
from vt_flax.texts import json_text, printable
from vt_flax.version import versions

# What to do about an error of JAX that contains a phrase.
DEVICE_ADVICE = {
    "known backends": '; pip install "jax[cuda13]" for GPUs, "jax[tpu]" for TPUs',
    "in use": "; end the other process, or set JAX_PLATFORMS=cpu",
    "cuda": '; "jax[cuda13]" needs an NVIDIA driver of 580 or newer, "jax[cuda12]" 525',
}
# A side of the largest image to count or to make a program for; JPEG's limit is near.
MOST_PIXELS = 65536
# Columns of a table that no terminal shows.
WIDEST = 1_000_000


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like every other bad input."""

    def parse_known_args(self, args: Sequence[str], namespace: Any = None) -> Any:
        """Parses arguments; overrides of the configuration are not among them.

        argparse would take `--config.duration=3 epochs`, in which there is a space, for
        the value of an option before it.
        """
        overrides = {
            f"--config.{i}": argument
            for i, argument in enumerate(args)
            if re.match(r"--?config\.[^= ]+=", argument)
        }
        names = {argument: name for name, argument in overrides.items()}
        args = [names.get(argument, argument) for argument in args]
        found, rest = super().parse_known_args(args, namespace)
        return found, [overrides.get(argument, argument) for argument in rest]

    def error(self, message: str):
        """Raises `UserError` instead of printing the usage."""
        raise UserError(f"{message} (see {self.prog} --help)")


def make_parser(command: str, description: str) -> ArgumentParser:
    """Returns a parser for `python -m vt_flax.COMMAND`."""
    return ArgumentParser(
        prog=f"python -m vt_flax.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # `--config.k=v` must never be taken for a shortened `--config`.
        allow_abbrev=False,
    )


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --config: which file."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a configuration file, and its argument if it takes one",
    )


def add_format_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --format: see `print_rows`."""
    parser.add_argument(
        "--format",
        choices=("table", "json"),
        default="table",
        help="for people or for programs (%(default)s)",
    )


def add_checkpoint_arguments(parser: ArgumentParser) -> None:
    """Adds --workdir, --step and --best: which weights are meant."""
    parser.add_argument(
        "--workdir", required=True, metavar="FOLDER", help="of a run: what it has saved"
    )
    parser.add_argument("--step", type=int, help="default: the newest checkpoint")
    parser.add_argument(
        "--best", action="store_true", help="the best checkpoint instead"
    )


def add_process_arguments(parser: ArgumentParser) -> None:
    """Adds what a command takes that may run in several processes."""
    group = parser.add_argument_group(
        "several processes",
        "The same command on every machine. On Cloud TPUs, under Slurm, Open MPI and "
        "Kubernetes nothing more is needed; elsewhere:",
    )
    group.add_argument(
        "--coordinator",
        default=os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
        metavar="HOST:PORT",
        help="address of process 0; the port must be open",
    )
    group.add_argument(
        "--processes", type=int, metavar="N", help="number of processes; 1: no others"
    )
    group.add_argument(
        "--process", type=int, metavar="I", help="index of this process, from 0"
    )
    group.add_argument(
        "--start_seconds",
        type=float,
        default=300.0,
        metavar="S",
        help="seconds to wait for all processes to start (%(default).0f)",
    )


def join_processes(args: argparse.Namespace) -> None:
    """Starts JAX over all processes of a run: see `processes.join`."""
    cluster = find_cluster(args.coordinator, args.processes, args.process)
    processes.join(cluster, args.start_seconds)


def agree(command: str, config: ConfigDict) -> None:
    """Checks that all processes run the same, and sets up timeouts and devices."""
    from vt_flax.parallel.agreement import check_equal

    options = {"command": command, "versions": versions(), **config.to_dict()}
    advice = "start the same command with the same code on all"
    check_equal("differs from", options, advice)
    processes.set_timeouts(
        config.parallel.heartbeat_timeout, config.parallel.progress_timeout
    )
    set_up_devices(config)


def set_up_devices(config: ConfigDict) -> None:
    """Applies `parallel.cpu_devices` and `compilation_cache`, and starts JAX's devices.

    Raises:
      UserError: if JAX has started with another number of them, or starts none.
    """
    use_cpu_devices(config.parallel.cpu_devices)
    keep_programs(config.compilation_cache)
    start_devices()


def start_devices() -> None:
    """Starts JAX's devices; commands that run networks call it before long work.

    JAX itself warns of a GPU or TPU that it cannot use.

    Raises:
      UserError: if JAX starts no device, as with a driver that is too old.
    """
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        processes.raise_if_lost()
        # A bare assertion fails if JAX_PLATFORMS=cuda and there is no NVIDIA device.
        reason = first_line(error) or f"none for {jax.config.jax_platforms} found"
        advice = [text for part, text in DEVICE_ADVICE.items() if part in reason]
        raise UserError(
            f"JAX starts no device: {reason}{''.join(advice[:1])}"
        ) from error


def use_cpu_devices(count: int) -> None:
    """Sets how many devices a process's CPUs count as; 0 leaves it as it is.

    Raises:
      UserError: when JAX has started with another number.
    """
    import jax

    if count:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError as error:
            if jax.default_backend() == "cpu" and jax.local_device_count() != count:
                raise UserError(
                    f"parallel.cpu_devices {count}: JAX has begun with "
                    f"{jax.local_device_count()} in this process; set it to 0"
                ) from error


def keep_programs(folder: str) -> None:
    """Keeps compiled programs for the next start, in a folder of the machine's."""
    import jax

    if not folder or jax.config.jax_compilation_cache_dir:
        return
    path = typed_path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        usable = os.access(path, os.W_OK)
    except OSError:
        usable = False
    if usable:
        jax.config.update("jax_compilation_cache_dir", str(path))
    else:
        # JAX would warn at each program, and not say what to change.
        print(
            f"note: compilation_cache {path} cannot be written to, so each start "
            "compiles anew: name another folder, or none",
            file=sys.stderr,
        )


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a front door: what goes wrong is one line on stderr and an exit status.

    Of several processes one that fails ends the others, with its reason.

    Args:
      main: takes the command line without the program's name.
    """
    # Orbax and TFDS log what is no concern of the user's, and errors that they raise.
    logging.set_verbosity(logging.FATAL)
    _disable_x64()
    try:
        with processes.failing_together():
            main(sys.argv[1:])
            processes.finish()
    except UserError as error:
        line = error.label + printable(" ".join(str(error).split()))
        _end(line, error.status, together=error.everywhere)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output (head, less) went away; that is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end("", 141)
    except Exception:
        _end(traceback.format_exc().rstrip(), 1)


def _disable_x64() -> None:
    """Turns `JAX_ENABLE_X64` off: what a command computes has types of its own.

    Parameters are float32 and the network's computation is of the configured type; 64
    bits would only change the random numbers that are drawn. It stays off in processes
    that this one starts.
    """
    os.environ["JAX_ENABLE_X64"] = "0"
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_enable_x64", False)


def _end(line: str, status: int, together: bool = False) -> None:
    """Prints why this process ends, and ends it.

    Args:
      line: what to print.
      status: exit status.
      together: whether all processes of a run end alike.
    """
    if line:
        print(line, file=sys.stderr, flush=True)
    if together:
        processes.finish()
    processes.end(status)


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Parses `OPTION=VALUE` strings; values are Python literals, else strings."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair!r}: write OPTION=VALUE")
        try:
            overrides[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[key] = value
    return overrides


def print_rows(
    rows: Sequence[dict[str, Any]],
    form: str,
    title: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Prints records as a table or as JSON.

    Args:
      rows: records with the same keys.
      form: `table` or `json`. JSON prints a list of the records, and neither title nor
        notes; what is not finite is null.
      title: a line above the table.
      notes: lines below the table.
    """
    if form == "json":
        print(json_text(list(rows)))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for key in rows[0] if rows else ():
        number = any(isinstance(row[key], (int, float)) for row in rows)
        # What is too long for a terminal goes on below: cut off, rows look alike.
        table.add_column(
            printable(key),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="ellipsis" if number else "fold",
        )
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    # In a log file or a pipe a table is as wide as it must be.
    width = None if sys.stdout.isatty() else WIDEST
    # What is shown are names of other people's making, in which [x] is no markup, and
    # :x: no smile.
    console = Console(
        file=sys.stdout, width=width, highlight=False, markup=False, emoji=False
    )
    if title:
        console.print(printable(title), soft_wrap=True)
    console.print(table)
    for note in notes:
        console.print(printable(note), soft_wrap=True)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return printable(str(value))


def print_results(results: dict[str, dict[str, float]], form: str, split: str) -> None:
    """Prints an evaluation: one record for each set of weights.

    Of results `KIND/CLASS` the table form makes a second table, a row for each class.
    """
    rows = [
        {"weights": name} | {key: _rounded(key, value) for key, value in result.items()}
        for name, result in results.items()
    ]
    if form == "json":
        print_rows(rows, form)
        return
    print_rows(
        [{k: v for k, v in row.items() if "/" not in k} for row in rows],
        form,
        f"Evaluation on {split} (in percent, but for the loss)",
    )
    classes = []
    for key in rows[0]:
        kind, slash, name = key.partition("/")
        if slash:
            found = {f"{row['weights']} {kind}": row[key] for row in rows}
            classes.append({"class": name, **found})
    if classes:
        print_rows(classes, form)


def _rounded(key: str, value: float | None) -> float | None:
    return value if value is None else round(value, 5 if key == "loss" else 3)
