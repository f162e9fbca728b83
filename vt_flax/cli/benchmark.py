"""Measured rates on this machine.

vt_flax benchmark input --config configs/imagenet.py --save sheet.png
vt_flax benchmark step --config configs/imagenet.py --batch 64,128
vt_flax benchmark profile --config configs/imagenet.py --trace FOLDER

`input` measures the images per second that the host makes, and that JPEG decoding alone
makes; --save writes a picture of what the network gets.
`step` measures a training step: its time with the batch on the devices already, and
that of the training loop with its input; compiling (from JAX_COMPILATION_CACHE_DIR if
it is set); memory; and the share of the devices' peak that it uses (MFU).
`profile` prints what a training step spends its time on, and writes the profiler's
trace for TensorBoard.

`vt_flax plan` compiles a step for TPUs that need not be there. Comparisons with PyTorch
and others are commands in tests/benchmarks of the repository, see BENCHMARKS.md.

Any key of the configuration can be changed: --config.data.data_dir=DATA
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vt_flax.cli import parsing, tables
from vt_flax.data.sources import open_configured, open_source
from vt_flax.errors import UserError
from vt_flax.models import model_task
from vt_flax.paths import local_folder, writing
from vt_flax.training.config import load_config
from vt_flax.training.tasks import task_of


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("benchmark", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")

    rate = _command(commands, "input", "the host's images per second")
    rate.add_argument(
        "--seconds", type=float, default=5.0, help="per variant and round (5)"
    )
    rate.add_argument("--rounds", type=int, default=5, help="number of rounds (5)")
    rate.add_argument(
        "--compare", metavar="NAME", help="measure another dataset of data_dir too"
    )
    rate.add_argument("--save", metavar="FILE.png", help="write a contact sheet")

    step = _command(commands, "step", "how fast a training step is")
    step.add_argument(
        "--batch", metavar="N,...", default="32", help="batch sizes, one by one (32)"
    )
    step.add_argument(
        "--rounds", type=int, default=10, help="number of measurements (10)"
    )
    step.add_argument("--warmup", type=int, default=3, help="steps before them (3)")
    step.add_argument(
        "--noise", action="store_true", help="no dataset: leave the training loop out"
    )
    step.add_argument(
        "--peak",
        choices=("published", "measured"),
        default="published",
        help="FLOP/s that MFU is relative to (published)",
    )

    profile = _command(commands, "profile", "what a training step spends its time on")
    profile.add_argument(
        "--trace", required=True, metavar="FOLDER", help="folder to write the trace to"
    )
    profile.add_argument("--batch", type=int, default=32, help="batch size (32)")
    profile.add_argument("--steps", type=int, default=3, help="steps to profile (3)")

    args, overrides = parser.parse_known_args(argv)
    check_positive(args, "seconds", "rounds", "warmup", "steps")
    {"input": _input, "step": _step, "profile": _profile}[args.command](args, overrides)


def check_positive(args: argparse.Namespace, *options: str) -> None:
    """Raises `UserError` for an option that is not a positive, finite number."""
    for option in options:
        value = getattr(args, option, 1)
        if not 0 < value < math.inf:
            raise UserError(f"--{option} {value}: must be positive and finite")


def load_batch(
    args: argparse.Namespace, overrides: Sequence[str], batch: int
) -> ConfigDict:
    """Returns the configuration for a batch size.

    Raises:
      UserError: if it is not positive.
    """
    if batch < 1:
        raise UserError(f"--batch {batch}: must be at least 1")
    return load_config(args.config, [*overrides, f"--config.batch_size={batch}"])


def _command(commands: Any, name: str, help_text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False
    )
    parsing.add_config_argument(parser)
    parsing.add_format_argument(parser)
    return parser


def _input(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = load_config(args.config, overrides)
    task = model_task(config.model.name)
    if task != "classification":
        raise UserError(
            "benchmark input measures crops of classification; "
            f"{config.model.name} is for {task}"
        )
    # JAX and matplotlib take a while to import.
    from vt_flax.measure.input import report
    from vt_flax.viz.contact_sheet import draw_sheet

    data = config.data
    source = open_configured(data, data.train_split)
    other = None
    if args.compare:
        other = open_source(args.compare, data.train_split, data.data_dir)
    if args.save:
        # Before measuring, which takes a minute or more.
        evaluation = open_configured(data, data.eval_split)
        with writing(f"--save {args.save}"):
            draw_sheet(pathlib.Path(args.save), source, evaluation, data, config.seed)
        print(f"contact sheet in {args.save}", file=sys.stderr)
    records, notes = report(
        source,
        data,
        seconds=args.seconds,
        rounds=args.rounds,
        other=other,
    )
    title = (
        f"{source.name}: images per second at {data.image_size} x {data.image_size} "
        "(ours_ratio: ours over the row)"
    )
    tables.print_rows(records, args.format, title, notes)


def _step(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    try:
        batches = [int(number) for number in args.batch.split(",")]
    except ValueError as error:
        raise UserError(
            f"--batch {args.batch}: write batch sizes, such as 64,128"
        ) from error
    configs = {batch: load_batch(args, overrides, batch) for batch in batches}
    config = configs[batches[0]]
    from vt_flax.measure.step import report
    from vt_flax.plan.machine import start_devices

    start_devices(config)
    rates, costs, notes = report(
        configs,
        rounds=args.rounds,
        warmup=args.warmup,
        peak=args.peak,
        loop=not args.noise,
    )
    if args.format == "json":
        tables.print_rows(rates + costs, args.format)
        print("\n".join(notes), file=sys.stderr)
        return
    title = f"{config.model.name} at {_size(config)}, a training step"
    tables.print_rows(rates, args.format, title, notes)
    tables.print_rows(costs, args.format, "Compiling, and memory of a device")


def _profile(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    config = load_batch(args, overrides, args.batch)
    from vt_flax.measure.profile import profile
    from vt_flax.plan.machine import start_devices

    start_devices(config)
    folder = local_folder("--trace", args.trace)
    records, notes = profile(config, args.batch, args.steps, folder)
    title = f"{config.model.name} at {_size(config)}, batch {args.batch}: a step"
    tables.print_rows(records, args.format, title, notes)


def _size(config: ConfigDict) -> str:
    """Returns height and width of the training images."""
    return " x ".join(map(str, task_of(config).input_size(config)))
