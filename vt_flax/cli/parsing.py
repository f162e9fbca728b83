"""Arguments that commands share, parsed with one-line errors."""

import argparse
import ast
import os
import re
from collections.abc import Sequence
from typing import Any

from vt_flax.errors import UserError

# Longest side of an image that networks are counted or exported for; JPEG's limit.
MOST_PIXELS = 65536


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` instead of printing its usage."""

    def parse_known_args(self, args: Sequence[str], namespace: Any = None) -> Any:
        """Parses arguments, and returns `--config.KEY=VALUE` among the unknown ones.

        argparse would take `--config.duration=3 epochs`, which contains a space, for
        the value of the option before it.
        """
        overrides = {
            f"--config.{i}": argument
            for i, argument in enumerate(args)
            if re.match(r"--?config\.[^= ]+=", argument)
        }
        names = {argument: name for name, argument in overrides.items()}
        args = [names.get(argument, argument) for argument in args]
        known, rest = super().parse_known_args(args, namespace)
        return known, [overrides.get(argument, argument) for argument in rest]

    def error(self, message: str):
        """Raises `UserError`."""
        raise UserError(f"{message} (see {self.prog} --help)")


def make_parser(command: str, description: str) -> ArgumentParser:
    """Returns the parser of a command."""
    return ArgumentParser(
        prog=f"vt_flax {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # `--config.KEY=VALUE` must not be taken for an abbreviated `--config`.
        allow_abbrev=False,
    )


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --config."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="configuration file, and its argument if it takes one",
    )


def add_format_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --format: see `tables.print_rows`."""
    parser.add_argument(
        "--format",
        choices=("table", "json"),
        default="table",
        help="output for people or for programs (%(default)s)",
    )


def add_checkpoint_arguments(parser: ArgumentParser) -> None:
    """Adds --workdir, --step and --best, which choose a checkpoint."""
    parser.add_argument(
        "--workdir", required=True, metavar="FOLDER", help="folder of the run"
    )
    parser.add_argument(
        "--step", type=int, help="step of the checkpoint (default: the newest)"
    )
    parser.add_argument(
        "--best", action="store_true", help="take the best checkpoint instead"
    )


def add_process_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of commands that may run in several processes."""
    group = parser.add_argument_group(
        "several processes",
        "Start the same command on every machine. On Cloud TPUs, and under Slurm, Open "
        "MPI and Kubernetes, no option is needed; elsewhere:",
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


def parse_image_size(option: str, text: str) -> tuple[int, int]:
    """Returns height and width of `SIDE` or `HEIGHTxWIDTH`, in pixels.

    Args:
      option: command-line option, for the message.
      text: its value.

    Raises:
      UserError: for anything else, and for sides that no image has.
    """
    sides = text.split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() for side in sides):
        raise UserError(f"{option} {text!r}: write a side in pixels, or HEIGHTxWIDTH")
    height, width = int(sides[0]), int(sides[-1])
    if not 1 <= min(height, width) <= max(height, width) <= MOST_PIXELS:
        raise UserError(
            f"{option} {text}: must be at least 1 and at most {MOST_PIXELS}"
        )
    return height, width


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
