"""Cost and speed of a configuration on a TPU pod, without having one.

vt_flax plan --config configs/imagenet.py --topology v5e:16x16
vt_flax plan --config configs/imagenet.py --topology v5e:4x4 v4:2x2x4
vt_flax plan --config configs/imagenet.py --topology v5e:4x4 --save chart.png
    --sweep batch=1024,2048 bn_group_size=0,per_device
vt_flax plan --config configs/quickstart.py --topology here --measure

The TPU compiler (pip install "jax[tpu]") compiles the whole training step, which takes
minutes, and the compiled program is read for its memory, memory traffic and
collectives. Published figures of the chips turn them into bounds, which the program
cannot beat, and an estimate. A step that was compiled before is not compiled again.

TOPOLOGY is v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB or tpu7x:AxBxC (Ironwood), with the
number of chips along each axis, or `here`: this machine, with its own compiler and its
speed, measured by a product of matrices and a copy (or stated by --tflops and --gbs);
--measure runs the step too, and prints how far off the plan is. A chip is one JAX
device; a tpu7x is two, each with half of its memory.

--sweep takes keys of the configuration, and `batch` and `bn_group_size` for short; the
group size `per_device` is the examples on one device. Any key can be changed for all:
--config.model.bn_frozen=true
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from vt_flax.cli import parsing, tables
from vt_flax.errors import UserError
from vt_flax.paths import local_folder
from vt_flax.plan.sweep import BATCH, parse_sweep
from vt_flax.plan.topology import HERE, Topology, parse_topology
from vt_flax.viz.figures import check_name


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = parsing.make_parser("plan", __doc__)
    parsing.add_config_argument(parser)
    parser.add_argument(
        "--topology", required=True, nargs="+", metavar="TOPOLOGY", help="see above"
    )
    parser.add_argument(
        "--chip", type=int, metavar="N", help="examples per chip, which sets batch_size"
    )
    parser.add_argument(
        "--sweep",
        nargs="+",
        default=[],
        metavar="KEY=a,b,c",
        help="plan for each of these values, of several keys for all combinations",
    )
    parser.add_argument("--save", metavar="FILE.png|FILE.svg", help="draw a chart")
    parser.add_argument(
        "--examples", type=int, default=0, help="examples in an epoch, if not known"
    )
    parser.add_argument(
        "--host_rate",
        type=float,
        default=0.0,
        metavar="N",
        help="images/s that a host delivers, from `benchmark input`",
    )
    parser.add_argument("--measure", action="store_true", help="here: run the step too")
    parser.add_argument(
        "--tflops", type=float, default=0.0, help="here: TFLOP/s of a device"
    )
    parser.add_argument(
        "--gbs", type=float, default=0.0, help="here: GB/s of a device's memory"
    )
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="folder of earlier results (~/.cache/vt_flax/plan)",
    )
    parser.add_argument("--fresh", action="store_true", help="ignore earlier results")
    parsing.add_format_argument(parser)
    args, overrides = parser.parse_known_args(argv)
    _check(args)

    # JAX and TensorFlow take a while to import: bad input need not wait for them.
    from vt_flax.plan.cache import FOLDER, PlanCache
    from vt_flax.plan.cases import make_cases
    from vt_flax.plan.planning import plan_here, plan_pod

    cache = PlanCache(local_folder("--cache", args.cache or FOLDER), args.fresh)
    points = parse_sweep(args.sweep)
    places = [_place(args, name) for name in args.topology]
    cases = make_cases(
        args.config, overrides, places, points, args.chip or 0, args.examples
    )
    plans, problems = [], []
    for case in cases:
        try:
            if case.place.name == HERE:
                plans.append(plan_here(case, args.host_rate, args.measure))
            else:
                plans.append(plan_pod(case, cache, args.host_rate))
        except UserError as error:
            if len(cases) == 1:
                raise
            problems.append((case, str(error)))
            print(f"{case.label}: {error}", file=sys.stderr, flush=True)
    if not plans:
        raise UserError("; ".join(problem for _, problem in problems))
    _show(args, plans, problems)


def _check(args: argparse.Namespace) -> None:
    for option, least in (("chip", 1), ("examples", 0)):
        value = vars(args)[option]
        if value is not None and value < least:
            raise UserError(f"--{option} {value}: must be at least {least}")
    for option in ("host_rate", "tflops", "gbs"):
        value = vars(args)[option]
        if not 0 <= value < math.inf:
            raise UserError(f"--{option} {value}: must be at least 0, and finite")
    here = HERE in args.topology
    for option in ("measure", "tflops", "gbs"):
        if vars(args)[option] and not here:
            raise UserError(f"--{option} is for --topology {HERE}")
    if args.chip and any(BATCH in point for point in parse_sweep(args.sweep)):
        raise UserError(f"--chip {args.chip} and a sweep of {BATCH}: one or the other")
    if args.save:
        check_name("--save", local_folder("--save", args.save))


def _place(args: argparse.Namespace, name: str) -> Callable[[Any], Topology]:
    """Returns a function from a configuration to the topology of a name."""
    if name != HERE:
        place = parse_topology(name)
        return lambda config: place

    @functools.cache
    def measured(fsdp: int, dtype: str, cpu_devices: int) -> Topology:
        from vt_flax.parallel import devices
        from vt_flax.parallel.mesh import make_mesh
        from vt_flax.plan.machine import this_machine

        devices.use_cpu_devices(cpu_devices)
        devices.start_devices()
        mesh = make_mesh(fsdp=fsdp)
        return this_machine(mesh, dtype, args.tflops * 1e12, args.gbs * 1e9)

    return lambda config: measured(
        config.parallel.fsdp, config.model.dtype, config.parallel.cpu_devices
    )


def _show(
    args: argparse.Namespace, plans: Sequence[Any], problems: Sequence[tuple[Any, str]]
) -> None:
    from vt_flax.plan import report as plan_report

    if args.save:
        from vt_flax.plan.chart import draw_plans

        path = local_folder("--save", args.save)
        draw_plans(path, plans)
        print(f"wrote {path}", file=sys.stderr)
    if args.format == "json":
        rows = [plan_report.record(plan) for plan in plans]
        rows += [
            {"topology": case.place.name, **case.swept, "problem": problem}
            for case, problem in problems
        ]
        tables.print_rows(rows, args.format)
        return
    notes = plan_report.notes(plans)
    notes += [f"{case.label}: {problem}" for case, problem in problems]
    if args.sweep:
        rows = plan_report.sweep_rows(plans)
        tables.print_rows(rows, args.format, plan_report.title(plans), notes)
        return
    tables.print_rows(
        plan_report.columns(plans), args.format, plan_report.title(plans), notes
    )
    collectives = plan_report.collective_rows(plans)
    if collectives:
        tables.print_rows(collectives, args.format, "Collectives in a step")
