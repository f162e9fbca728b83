"""Measured rates on this machine, each as a ratio to a named reference of the same run.

python -m vt_flax.benchmark input --config configs/imagenet.py --save sheet.png
python -m vt_flax.benchmark step --config configs/imagenet.py --against torch
python -m vt_flax.benchmark profile --config configs/imagenet.py --trace FOLDER
python -m vt_flax.benchmark augmentation --config configs/imagenet.py --topology v5e:2x2
python -m vt_flax.benchmark save --config configs/quickstart.py
python -m vt_flax.benchmark collectives --config configs/imagenet.py --topology v5e:2x4
python -m vt_flax.benchmark attention --topology v5e:2x2

`input` measures the host's images a second against a bare tf.data chain, a Pillow
loader and JPEG decoding alone; --save writes a picture of what the network gets.
`step` measures a training step: its time with the batch on the devices already, and
that of the whole loop; compiling, with nothing and with everything in the cache;
memory; and the share of the devices' peak that it uses (MFU). --against takes plain
ResNets in turns with it: `flax_resnet`, as Flax's ImageNet example has it, `torch`, the
same in PyTorch, compiled where that works, or `torch_eager`, and `timm`'s; for a
VT-ResNet the one that it replaces. With --topology it only compiles, for TPUs that need
not be there.
`profile` tells what a training step spends its time on here, and leaves the profiler's
trace in a folder, for TensorBoard.
`augmentation` tells the augmentation's share of a training step: of its time here and,
with --topology, of what the TPU compiler counts; that needs no TPU.
`save` tells how long a checkpoint keeps the loop waiting, as a share of the steps from
one to the next.
`collectives` counts the collectives of a training step as the TPU compiler has it, with
BatchNorm over all examples, over those of some devices, and frozen.
`attention` compares the memory that a block of local attention needs, forward and
backward, with `attention=scan` and `attention=unfold`, as this machine's compiler plans
it or, with --topology, the TPU's. It takes no configuration.

Any key of the configuration can be changed: --config.data.data_dir=DATA
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from vt_flax import cli
from vt_flax.analysis.topology import parse_topology
from vt_flax.data.source import RandomAccessSource, Source
from vt_flax.data.sources import open_configured, open_source
from vt_flax.errors import UserError
from vt_flax.models import model_task
from vt_flax.paths import local_folder, writing
from vt_flax.training.config import load_config
from vt_flax.training.tasks import task_of

# The task that `input` and `augmentation` know.
CLASSES = "classification"
# Loads the configuration, with what a file derives from the batch size; 0: its own.
Load = Callable[..., ConfigDict]


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = cli.make_parser("benchmark", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    rate = _command(commands, "input", "the host's images a second")
    rate.add_argument(
        "--seconds", type=float, default=5.0, help="of each variant and round (5)"
    )
    rate.add_argument("--rounds", type=int, default=5, help="in turns (5)")
    rate.add_argument(
        "--examples", type=int, default=500, help="held by the references (500)"
    )
    rate.add_argument(
        "--compare", metavar="NAME", help="measure another dataset of data_dir too"
    )
    rate.add_argument("--save", metavar="FILE.png", help="write a contact sheet")
    step = _command(commands, "step", "how fast a training step is")
    step.add_argument(
        "--against",
        default="",
        metavar="A,B,...",
        help="references: flax_resnet, torch, torch_eager, timm",
    )
    step.add_argument(
        "--batch", metavar="N,...", help="examples in a step, each in turn (32)"
    )
    step.add_argument("--rounds", type=int, default=10, help="in turns (10)")
    step.add_argument("--warmup", type=int, default=3, help="steps before them (3)")
    step.add_argument(
        "--noise", action="store_true", help="no dataset: leave the whole loop out"
    )
    step.add_argument(
        "--no_compile", action="store_true", help="leave compile time and memory out"
    )
    step.add_argument(
        "--peak",
        choices=("published", "measured"),
        default="published",
        help="what MFU is the share of (published)",
    )
    step.add_argument(
        "--topology", metavar="NAME", help="only compile, for TPUs such as v5e:2x4"
    )
    step.add_argument("--chip", type=int, default=128, help="examples per chip (128)")
    profile = _command(commands, "profile", "what a training step spends its time on")
    profile.add_argument("--trace", required=True, metavar="FOLDER", help="to write")
    profile.add_argument("--batch", type=int, default=32, help="examples (32)")
    profile.add_argument("--steps", type=int, default=3, help="that are profiled (3)")
    profile.add_argument(
        "--of",
        choices=("ours", "flax_resnet"),
        default="ours",
        help="whose step: ours, or that of the plain ResNet (ours)",
    )
    share = _command(commands, "augmentation", "the augmentation's share of a step")
    share.add_argument("--batch", type=int, default=8, help="examples (8)")
    share.add_argument("--rounds", type=int, default=10, help="steps of each (10)")
    share.add_argument(
        "--topology", metavar="NAME", help="count for TPUs too, such as v5e:2x2"
    )
    share.add_argument("--chip", type=int, default=128, help="examples per chip (128)")
    save = _command(commands, "save", "how long a checkpoint is waited for")
    save.add_argument("--saves", type=int, default=10, help="how many are timed (10)")
    save.add_argument("--folder", default=".", help="on the disk to write to (.)")
    count = _command(commands, "collectives", "collectives in a step, by bn_group_size")
    count.add_argument(
        "--topology", metavar="NAME", default="v5e:2x4", help="(v5e:2x4)"
    )
    count.add_argument("--chip", type=int, default=8, help="examples per chip (8)")
    attention = _command(commands, "attention", "memory of local attention", False)
    attention.add_argument("--topology", metavar="NAME", help="such as v5e:2x2")
    args, overrides = parser.parse_known_args(argv)
    if args.command == "attention":
        if overrides:
            raise UserError(f"benchmark attention takes no {overrides[0]}")
        _attention(args)
        return
    if args.command == "step":
        args.batch = _batches(args)
    for option in (
        "seconds",
        "rounds",
        "examples",
        "batch",
        "chip",
        "saves",
        "warmup",
        "steps",
    ):
        value = getattr(args, option, 1)
        value = min(value) if isinstance(value, list) else value
        if value < 1 and (option != "seconds" or value <= 0):
            least = "over 0" if option == "seconds" else "at least 1"
            raise UserError(f"--{option} {value}: must be {least}")
        if not math.isfinite(value):
            raise UserError(f"--{option} {value}: must be finite")

    def load(batch: int = 0) -> ConfigDict:
        """Returns the configuration, for another batch size if one is given."""
        given = [f"--config.batch_size={batch}"] if batch else []
        config = load_config(args.config, [*overrides, *given])
        task = model_task(config.model.name)
        if args.command in ("input", "augmentation") and task != CLASSES:
            raise UserError(
                f"benchmark {args.command} measures crops and augmentation of "
                f"{CLASSES}; {config.model.name} is for {task}"
            )
        return config

    measure = {
        "input": _input,
        "step": _step,
        "profile": _profile,
        "augmentation": _augmentation,
        "save": _save,
        "collectives": _collectives,
    }
    measure[args.command](args, load)


def _command(
    commands, name: str, help_text: str, config: bool = True
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False
    )
    if config:
        cli.add_config_argument(parser)
    cli.add_format_argument(parser)
    return parser


def _input(args: argparse.Namespace, load: Load) -> None:
    config = load()
    # JAX and matplotlib take a while to import: only who measures waits for them.
    from vt_flax.analysis.input_rate import rows
    from vt_flax.viz.contact_sheet import draw_sheet

    data = config.data
    source = open_configured(data, data.train_split)
    other = None
    if args.compare:
        other = _random_access(
            open_source(args.compare, data.train_split, data.data_dir)
        )
    if args.save:
        # Before the measuring, which takes a minute or more.
        evaluation = open_configured(data, data.eval_split)
        with writing(f"--save {args.save}"):
            draw_sheet(pathlib.Path(args.save), source, evaluation, data, config.seed)
        print(f"contact sheet in {args.save}", file=sys.stderr)
    records, notes = rows(
        _random_access(source),
        data,
        seconds=args.seconds,
        rounds=args.rounds,
        examples=args.examples,
        other=other,
    )
    cli.print_rows(
        records,
        args.format,
        f"{source.name}: images a second at {data.image_size} x {data.image_size} "
        "(ours_ratio: ours over the row)",
        notes,
    )


def _random_access(source: Source) -> RandomAccessSource:
    if not isinstance(source, RandomAccessSource):
        raise UserError(f"benchmark input needs random access; {source.notes[0]}")
    return source


def _batches(args: argparse.Namespace) -> list[int]:
    if args.topology and args.batch:
        raise UserError("--batch: with --topology it is --chip that counts")
    try:
        return [int(number) for number in (args.batch or "32").split(",")]
    except ValueError as error:
        raise UserError(
            f"--batch {args.batch}: write numbers of examples, such as 64,128"
        ) from error


def _batch_size(args: argparse.Namespace) -> int:
    """Returns the batch size on all chips of a topology."""
    return parse_topology(args.topology).batch_size(args.chip)


def _step(args: argparse.Namespace, load: Load) -> None:
    batches = [_batch_size(args)] if args.topology else args.batch
    configs = {batch: load(batch) for batch in batches}
    config = configs[batches[0]]
    from vt_flax.analysis.step_rate import BESIDE, find_references

    names = [name for name in args.against.split(",") if name]
    reasons = []
    if args.topology:
        # Whether they are installed matters to nobody then.
        beside = [x for x in dict.fromkeys(names) if x in BESIDE]
        reasons = [f"{x} is left out: it runs on no TPU" for x in beside]
        names = [x for x in names if x not in BESIDE]
    references, missing = find_references(names, config)
    for reason in reasons + missing:
        print(reason, file=sys.stderr, flush=True)
    size = " x ".join(map(str, task_of(config).input_size(config)))
    title = f"{config.model.name} at {size}, a training step"
    if args.topology:
        from vt_flax.analysis.topology_rows import topology_rows

        rows = topology_rows(config, references, args.topology)
        title += (
            f" on {args.topology}, {args.chip} examples a chip, {config.model.dtype}"
        )
        cli.print_rows(rows, args.format, title)
        return
    from vt_flax.analysis.step_report import report
    from vt_flax.analysis.step_tables import cost_rows, rate_rows

    cli.set_up_devices(config)
    records, notes = report(
        configs,
        references,
        rounds=args.rounds,
        warmup=args.warmup,
        peak=args.peak,
        loop=not args.noise,
        compiling=not args.no_compile,
    )
    if args.format == "json":
        cli.print_rows(records, args.format)
        print("\n".join(notes), file=sys.stderr)
        return
    cli.print_rows(rate_rows(records), args.format, title, notes)
    if costs := cost_rows(records):
        print()
        cli.print_rows(costs, args.format, "Compiling, and memory of a device")


def _profile(args: argparse.Namespace, load: Load) -> None:
    config = load(args.batch)
    from vt_flax.analysis.step_profile import profile

    cli.set_up_devices(config)
    folder = local_folder("--trace", args.trace)
    records, notes = profile(config, args.of, args.batch, args.steps, folder)
    size = " x ".join(map(str, task_of(config).input_size(config)))
    title = f"{config.model.name} ({args.of}) at {size}, batch {args.batch}: a step"
    cli.print_rows(records, args.format, title, notes)


def _augmentation(args: argparse.Namespace, load: Load) -> None:
    config = load(args.batch)
    from vt_flax.analysis.augmentation_share import compiled_rows, measured_rows

    cli.start_devices()
    rows = []
    if args.topology:
        rows += compiled_rows(load(_batch_size(args)), args.topology)
    rows += measured_rows(config, args.batch, args.rounds)
    cli.print_rows(
        rows,
        args.format,
        f"{config.model.name} at {config.data.image_size}: a training step with "
        f"data.augment {config.data.augment} and without",
    )


def _save(args: argparse.Namespace, load: Load) -> None:
    config = load()
    from vt_flax.analysis.save_cost import rows
    from vt_flax.training.run import prepare

    cli.start_devices()
    cli.print_rows(
        rows(prepare(config), args.folder, args.saves),
        args.format,
        f"{config.model.name} at {config.data.image_size}, batch {config.batch_size}: "
        "what a checkpoint keeps the loop waiting",
    )


def _collectives(args: argparse.Namespace, load: Load) -> None:
    config = load(_batch_size(args))
    from vt_flax.analysis.batch_norm_collectives import collective_rows

    cli.print_rows(
        collective_rows(config, args.topology),
        args.format,
        f"{config.model.name} on {args.topology}, {args.chip} examples a chip: "
        "collectives in a training step",
    )


def _attention(args: argparse.Namespace) -> None:
    from vt_flax.analysis.attention_memory import SHAPE, rows

    if not args.topology:
        cli.start_devices()
    batch, height, width, channels = SHAPE
    cli.print_rows(
        rows(args.topology),
        args.format,
        f"MB of memory for a block's forward and backward pass, float32, {batch} x "
        f"{height} x {width} x {channels}, {args.topology or 'this machine'} "
        "(ratio: unfold over scan)",
    )


if __name__ == "__main__":
    cli.run(main)
